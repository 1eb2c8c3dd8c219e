"""Tables of video clips: what is there, as CSV in and out; and reading text files so that errors name their line.

    write_table("ucf101.csv", listing)
    read_table("ucf101.csv").table            # a row a clip

A row has path, class, label (its index among the classes), split (train, val, test; empty where the set has none),
start and end in seconds of the file (0 and nan: all of it), and group, the source it was cut from.
"""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from d3d.files import write_atomic

COLUMNS = ("path", "class", "label", "split", "start", "end", "group")


@dataclass(frozen=True)
class Listing:
    """The clips whose file is there, the classes in the order of their labels, and the names of the files that are not.

    listed: clips in the annotations. Where a file holds several clips, as in AVA, it is missing once.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    missing: tuple[str, ...]
    listed: int

    @property
    def counts(self) -> dict[str, int]:
        """Clips listed, found and missing."""
        return {"listed": self.listed, "found": len(self.table), "missing": self.listed - len(self.table)}


def write_table(path: str | Path, listing: Listing) -> None:
    """A listing as CSV that `read_table` reads, with paths relative to its folder."""
    path = Path(path)
    table = listing.table.assign(path=[os.path.relpath(p, path.parent) for p in listing.table["path"]])
    write_atomic({path: table.to_csv(index=False).encode()})


def read_table(path: str | Path) -> Listing:
    """A CSV of path, class, label and split, where wanted start, end, group and more, as `write_table` writes it.

    Paths are relative to its folder. Raises as `read` does.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}: `d3d data … --out {path}` writes one")
    (number, head), *rows = cells_of(path, "a table") or [(1, [])]
    if lacking := [name for name in COLUMNS[:4] if name not in head]:
        raise ValueError(f"{path} has no column {lacking[0]!r}: a table needs {', '.join(COLUMNS[:4])}")
    for number, cells in rows:
        if len(cells) != len(head):
            raise wrong(path, number, ",".join(cells), f"{len(head)} cells, {','.join(head)}")
    table = pd.DataFrame([cells for _, cells in rows], index=[number for number, _ in rows], columns=head, dtype=str)
    if table.empty:
        raise ValueError(f"{path} lists no clip")
    blank = pd.Series("", index=table.index)
    number = {
        "label": table["label"].map(lambda cell: int(cell) if cell.isdecimal() else -1).astype(int),
        "start": table.get("start", blank).map(lambda cell: _seconds(cell or "0")).astype(float),
        "end": table.get("end", blank).map(lambda cell: _seconds(cell or "nan")).astype(float),
    }
    split, given = table["split"], table["path"]
    for expected, bad in {
        "a path and a class": (given == "") | (table["class"] == ""),
        "a label from 0 on": number["label"] < 0,
        "seconds, a start from 0 on before its end": ~(number["start"] >= 0) | (number["start"] >= number["end"]),
        "each file in one split only": split.groupby(given).transform("first") != split,
        "a split for all clips or for none": (split == "") & (split != "").any(),
    }.items():
        if bad.any():
            raise wrong(path, bad.idxmax(), ",".join(table.loc[bad.idxmax()]), expected)
    table = table.assign(**number, group=table.get("group", blank).where(lambda cells: cells != "", given))
    for name in set(head) - set(COLUMNS):
        table[name] = _typed(table[name])
    table = table[[*COLUMNS, *(name for name in head if name not in COLUMNS)]]
    classes = table.drop_duplicates(["class", "label"]).sort_values("label")
    if classes["label"].tolist() != list(range(classes["class"].nunique())):
        raise ValueError(f"{path}: every class must have one label, and the labels must be 0 to {len(classes) - 1}")
    if unknown := set(table["split"]) - {"train", "val", "test", ""}:
        raise ValueError(f"{path}: a split is train, val, test or empty, not {min(unknown)!r}")
    listed = len(table)
    table["path"] = [os.path.normpath(path.parent / p) for p in table["path"]]
    there = table["path"].isin(_beside(table["path"]))
    missing = tuple(dict.fromkeys(table.loc[~there, "path"]))
    return Listing(table[there].reset_index(drop=True), tuple(classes["class"]), missing, listed)


def _seconds(cell: str) -> float:
    """-1 for what is no number."""
    try:
        return float(cell)
    except ValueError:
        return -1.0


def _typed(cells: pd.Series) -> pd.Series:
    """Whole numbers, else numbers with nan where nothing is given, else text."""
    for kind in (int, float):
        try:
            return cells.map(lambda cell, kind=kind: kind(cell or "nan")).astype(kind)
        except ValueError:
            continue
    return cells


def _beside(paths: Iterable[str]) -> set[str]:
    """What lies beside the paths: listing each folder once is quick where asking for each file is not."""
    folders = {os.path.dirname(path) for path in paths}
    return {os.path.join(f, name) for f in folders if os.path.isdir(f or ".") for name in os.listdir(f or ".")}


def cells_of(path: Path, officially: str) -> list[tuple[int, list[str]]]:
    """Numbered rows of a CSV file that are not blank, cells stripped."""
    reader = csv.reader(io.StringIO(_text(path, officially)))
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    return [(number, row) for number, row in rows if any(row)]


def _text(path: Path, officially: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path.name} in {str(path.parent)!r}: it is {officially}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text: it must be {officially}") from None


def lines_of(path: Path, officially: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. Raises FileNotFoundError that says which file this is."""
    for number, line in enumerate(_text(path, officially).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def wrong(path: Path, number: int, line: str, expected: str) -> ValueError:
    """To be raised: the file, the line, what stands there and what should."""
    return ValueError(f"{path}, line {number}: {line!r}, expected {expected}")
