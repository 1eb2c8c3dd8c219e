"""Tables of video clips, written to and read from CSV; and text-file readers whose errors name the line.

    write_table("ucf101.csv", listing)
    read_table("ucf101.csv").table            # one row per clip

Columns:
    path: The video file.
    class: Name of the class.
    label: Index of the class.
    split: train, val or test; empty if the data set has no splits.
    start, end: Seconds of the file; 0 and nan: all of it.
    group: The source that the clip was cut from.
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
# No film is longer.
MAX_SECONDS = 1e9


@dataclass(frozen=True)
class Listing:
    """The clips of a data set.

    Attributes:
        table: One row per clip whose file exists.
        classes: Names of the classes in the order of their labels.
        missing: Names of the files that do not exist, each once.
        listed: Number of clips in the annotations; a file may hold several, as in AVA.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    missing: tuple[str, ...]
    listed: int

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of clips that are listed, found and missing."""
        return {"listed": self.listed, "found": len(self.table), "missing": self.listed - len(self.table)}


def write_table(path: str | Path, listing: Listing) -> None:
    """Writes a listing as CSV for `read_table`, with paths relative to the CSV's folder."""
    path = Path(path)
    table = listing.table.assign(path=[os.path.relpath(p, path.parent) for p in listing.table["path"]])
    write_atomic({path: table.to_csv(index=False).encode(errors="surrogateescape")})


def read_table(path: str | Path) -> Listing:
    """Reads a CSV as `write_table` writes it: path, class, label, split and optionally start, end, group and others.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the table is malformed; the message names the file, the line and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}: `d3d data … --out {path}` writes one")
    (_, header), *rows = read_rows(path, "a table", names=True) or [(1, [])]
    header = [cell.strip() for cell in header]
    if absent := [name for name in COLUMNS[:4] if name not in header]:
        raise ValueError(f"{path} has no column {absent[0]!r}: its header must name {', '.join(COLUMNS[:4])}")
    for number, cells in rows:
        if len(cells) != len(header):
            raise line_error(path, number, ",".join(cells), f"{len(header)} cells, {','.join(header)}")
    numbers = [number for number, _ in rows]
    table = pd.DataFrame([cells for _, cells in rows], index=numbers, columns=header, dtype=str)
    stated = table["path"]
    table = table.apply(lambda column: column.str.strip())
    if table.empty:
        raise ValueError(f"{path} lists no clip")
    blank = pd.Series("", index=table.index)
    numeric = {
        "label": table["label"].map(lambda cell: int(cell) if cell.isdecimal() else -1).astype(int),
        "start": table.get("start", blank).map(lambda cell: _seconds(cell or "0")).astype(float),
        "end": table.get("end", blank).map(lambda cell: _seconds(cell or "nan")).astype(float),
    }
    split, paths = table["split"], table["path"]
    for expected, invalid in {
        "a path and a class": (paths == "") | (table["class"] == ""),
        "a label from 0 on": numeric["label"] < 0,
        "seconds, a start from 0 on before its end": ~numeric["start"].between(0, MAX_SECONDS)
        | (numeric["start"] >= numeric["end"]),
        "each file in one split only": split.groupby(paths).transform("first") != split,
        "a split for all clips or for none": (split == "") & (split != "").any(),
    }.items():
        if invalid.any():
            raise line_error(path, invalid.idxmax(), ",".join(table.loc[invalid.idxmax()]), expected)
    table = table.assign(**numeric, group=table.get("group", blank).where(lambda cells: cells != "", paths))
    for name in set(header) - set(COLUMNS):
        table[name] = _infer_type(table[name])
    table = table[[*COLUMNS, *(name for name in header if name not in COLUMNS)]]
    classes = table.drop_duplicates(["class", "label"]).sort_values("label")
    if classes["label"].tolist() != list(range(classes["class"].nunique())):
        raise ValueError(f"{path}: every class must have one label, and the labels must be 0 to {len(classes) - 1}")
    if unknown := set(table["split"]) - {"train", "val", "test", ""}:
        raise ValueError(f"{path}: a split is train, val, test or empty, not {min(unknown)!r}")
    listed = len(table)
    stated, stripped = ([os.path.normpath(path.parent / p) for p in paths] for paths in (stated, table["path"]))
    files = _list_folders([*stated, *stripped])
    # A name may begin or end with blanks, which may also have been typed for the eye.
    table["path"] = [a if a in files else b for a, b in zip(stated, stripped, strict=True)]
    exists = table["path"].isin(files)
    missing = tuple(dict.fromkeys(table.loc[~exists, "path"]))
    return Listing(table[exists].reset_index(drop=True), tuple(classes["class"]), missing, listed)


def _seconds(cell: str) -> float:
    """The cell as a number, or -1 if it is none."""
    try:
        return float(cell)
    except ValueError:
        return -1.0


def _infer_type(cells: pd.Series) -> pd.Series:
    """Converts a column to int, else to float with nan for empty cells, else leaves it as text."""
    for kind in (int, float):
        try:
            return cells.map(lambda cell, kind=kind: kind(cell or "nan")).astype(kind)
        except ValueError:
            continue
    return cells


def _list_folders(paths: Iterable[str]) -> set[str]:
    """All files in the folders of `paths`: listing each folder once is faster than a look-up per file."""
    folders = {os.path.dirname(path) for path in paths}
    return {os.path.join(f, name) for f in folders if os.path.isdir(f or ".") for name in os.listdir(f or ".")}


def read_rows(path: Path, description: str, *, names: bool = False) -> list[tuple[int, list[str]]]:
    """Reads the rows of a CSV file that are not blank, each with its line number, its cells stripped.

    Args:
        path: The CSV file.
        description: What the file is, for error messages.
        names: Whether cells are names of files, which may be any bytes and are not stripped.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8 text.
    """
    text = _read_text(path, description, errors="surrogateescape" if names else "strict")
    reader = csv.reader(io.StringIO(text, newline=""))
    rows = [(reader.line_num, [cell if names else cell.strip() for cell in row]) for row in reader]
    return [(number, row) for number, row in rows if any(cell.strip() for cell in row)]


def _read_text(path: Path, description: str, errors: str = "strict") -> str:
    try:
        content = path.read_bytes()
        if b"\0" in content:
            raise ValueError(f"{path} is no text: it must be {description}")
        return content.decode("utf-8-sig", errors)
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path.name} in {str(path.parent)!r}: it is {description}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text: it must be {description}") from None


def read_lines(path: Path, description: str) -> Iterator[tuple[int, str]]:
    """Yields the lines that are not blank, each with its number and stripped; arguments and errors as `read_rows`."""
    for number, line in enumerate(_read_text(path, description).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def line_error(path: Path, number: int, line: str, expected: str) -> ValueError:
    """A ValueError that names the file and the line, quotes it and says what was expected."""
    return ValueError(f"{path}, line {number}: {line!r}, expected {expected}")
