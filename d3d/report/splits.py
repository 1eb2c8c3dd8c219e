"""The official splits of a data set as one study: the mean over the splits for each seed.

table = over_splits(records.load_cells("results/jhmdb-splits.jsonl").values())
judge(rules, table, over_clips=ClipScores("results/jhmdb-splits.jsonl", CELLS).interval)
"""

from collections.abc import Iterable

import pandas as pd


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
