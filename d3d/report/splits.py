"""The official splits of a data set as one study: the mean over the splits for each seed.

table = over_splits(records.load_cells("results/jhmdb-splits.jsonl").values())
judge(rules, table, over_clips=ClipScores("results/jhmdb-splits.jsonl", CELLS).interval)

tables = by_split(records.load("results/transfer.jsonl"))  # of arms that are called after their split
judge(rules, over_splits(tables.values()), over_clips=ClipScores("results/transfer.jsonl", tables).interval)
"""

from collections.abc import Iterable

import pandas as pd

from d3d.report.labels import split_of


def by_split(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Divides the records of one folder by the official split that their arms are called after.

    Args:
        table: as `records.load` gives it, of arms such as `rgb_k400_s1`; other arms are left out.

    Returns:
        By split, s1 to s3, the table of its arms, which are called `rgb_k400` in all of them.
    """
    names = table["arm"].map(split_of)
    divided = table.assign(arm=names.str[0], split=names.str[1])
    return {split: rows.drop(columns="split") for split, rows in divided.groupby("split") if split}


def over_splits(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Averages every metric of every arm and seed over the splits; what one of the splits lacks is left out.

    Args:
        tables: one per split, as `records.load` gives it.

    Raises:
        ValueError: there is no split, or a split has two values for a seed.
    """
    tables = list(tables)
    if not tables:
        raise ValueError("there is no split to average over")
    key = ["experiment", "arm", "seed", "metric"]
    for table in tables:
        if table.duplicated(key).any():
            row = table[table.duplicated(key)].iloc[0]
            raise ValueError(f"{row['metric']} of {row['arm']} has two values for seed {row['seed']} in one split")
    groups = pd.concat(tables).groupby(key, sort=False, as_index=False)
    means = groups.agg(value=("value", "mean"), stand_in=("stand_in", "any"), splits=("value", "size"))
    return means[means["splits"] == len(tables)].drop(columns="splits").reset_index(drop=True)
