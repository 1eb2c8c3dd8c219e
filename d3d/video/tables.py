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
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import Any

import pandas as pd

from d3d.files import write_atomic
from d3d.messages import FORMULA, escape_cell, printable, shown

COLUMNS = ("path", "class", "label", "split", "start", "end", "group")
SPLITS = ("train", "val", "test", "")
# No film is longer.
MAX_SECONDS = 1e9
# Columns with facts about a whole file, which are measured if a cell is empty, and the range of each.
FACTS = {"seconds": (0, MAX_SECONDS), "fps": (0.001, 1000), "height": (1, 65536), "width": (1, 65536)}
MAX_COLUMNS = 1000
# Bytes of a table or annotation file: several times the largest official one.
MAX_BYTES = 2**29
CLASS_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,255}")
LABEL = re.compile(r"\d{1,9}", re.ASCII)
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
# Text that `escape_cell` has escaped.
ESCAPED = re.compile(r"'+[=+\-@\t\r\n]")


@dataclass(frozen=True)
class StoredFlow:
    """The flow that a data set brings with its videos.

    Attributes:
        manifest: Parameters of the flow, as in the manifest of a flow cache.
        summary: Statistics of the flow, as `d3d.flow.cache.summary` returns them.
        absent: Maps the path of each video without flow to the reason.
    """

    manifest: dict[str, Any]
    summary: dict[str, float]
    absent: dict[str, str]


@dataclass(frozen=True)
class Listing:
    """The clips of a data set.

    Attributes:
        table: One row per clip whose file exists.
        classes: Names of the classes in the order of their labels.
        missing: Names of the files that do not exist, each once.
        listed: Number of clips in the annotations; a file may hold several, as in AVA.
        flow: The flow that lies beside the videos, in shards that were written with it; else None.
        absent: Split and name of each clip whose file is missing; empty for AVA.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    missing: tuple[str, ...]
    listed: int
    flow: StoredFlow | None = None
    absent: tuple[tuple[str, str], ...] = ()

    def without_training(self) -> "Listing":
        """Returns the listing without training clips; clips that have no split yet stay."""
        table = self.table[self.table["split"] != "train"].reset_index(drop=True)
        absent = tuple((split, name) for split, name in self.absent if split != "train")
        missing = tuple(dict.fromkeys(name for _, name in absent))
        return Listing(table, self.classes, missing, len(table) + len(absent), self.flow, absent)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of clips that are listed, found and missing."""
        return {"listed": self.listed, "found": len(self.table), "missing": self.listed - len(self.table)}


def write_table(path: str | Path, listing: Listing) -> None:
    """Writes a listing as CSV for `read_table`, with paths relative to the CSV's folder.

    No cell is a formula to a spreadsheet: where a path would begin with =, +, -, @ or white space, it begins with ./;
    other text that does gets a leading apostrophe, which `read_table` removes.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If a class begins or ends with a blank, which `read_table` would not keep.
    """
    path = Path(path)
    for name in listing.classes:
        if name != name.strip():
            raise ValueError(f"class {shown(name)} begins or ends with a blank, which a table does not keep: rename it")
    relative = (os.path.relpath(p, path.parent) for p in listing.table["path"])
    table = listing.table.assign(path=[f"./{p}" if FORMULA.match(p) else p for p in relative])
    for name in table.select_dtypes(exclude="number").columns.drop("path"):
        table[name] = table[name].map(escape_cell)
    table.columns = [escape_cell(name) for name in table.columns]
    # Text is quoted, since a name with a carriage return would end its row.
    write_atomic({path: table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC).encode(errors="surrogateescape")})


def _unescape(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and ESCAPED.match(cell) else cell


def read_table(path: str | Path) -> Listing:
    """Reads a CSV as `write_table` writes it: path, class, label, split and optionally start, end, group and others.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the table is malformed; the message names the file, the line and what was expected.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no table at {printable(path)}: `d3d data … --out FILE` writes one")
    (_, header), *rows = read_rows(path, "a table of clips as CSV", names=True) or [(1, [])]
    header = [_unescape(cell.strip()) for cell in header]
    _check_header(path, header)
    for number, cells in rows:
        if len(cells) != len(header):
            raise line_error(path, number, ",".join(cells), f"{len(header)} cells as in the header, not {len(cells)}")
    if not rows:
        raise ValueError(f"{printable(path)} lists no clip")
    table = pd.DataFrame([cells for _, cells in rows], index=[n for n, _ in rows], columns=header, dtype=str)
    stated = table["path"]
    table = table.apply(lambda column: column.str.strip())
    for name in set(header) - {"path"}:
        table[name] = table[name].map(_unescape)
    blank = pd.Series("", index=table.index)
    numeric = {
        "label": table["label"].map(lambda cell: int(cell) if LABEL.fullmatch(cell) else -1).astype(int),
        "start": table.get("start", blank).map(lambda cell: _number(cell or "0")),
        "end": table.get("end", blank).map(_number),
    }
    _check_cells(path, table, numeric)
    table = table.assign(group=table.get("group", blank).where(lambda cells: cells != "", table["path"]), **numeric)
    for name in set(header) - set(COLUMNS):
        table[name] = _infer_type(table[name])
    table = table[[*COLUMNS, *(name for name in header if name not in COLUMNS)]]
    classes = table.drop_duplicates("class").sort_values("label")["class"]
    folder = os.fspath(path.parent)
    full = {p: os.path.normpath(os.path.join(folder, p)) for p in {*stated, *table["path"]}}
    files = _list_folders(full.values())
    # A name may begin or end with blanks, which may also have been typed for the eye.
    table["path"] = [full[a] if full[a] in files else full[b] for a, b in zip(stated, table["path"], strict=True)]
    exists = table["path"].isin(files)
    absent = tuple(table.loc[~exists, ["split", "path"]].itertuples(index=False, name=None))
    missing = tuple(dict.fromkeys(path for _, path in absent))
    return Listing(table[exists].reset_index(drop=True), tuple(classes), missing, len(table), absent=absent)


def _check_header(path: Path, header: list[str]) -> None:
    if absent := [name for name in COLUMNS[:4] if name not in header]:
        needed = f"its header must name {', '.join(COLUMNS[:4])}, with commas between them"
        raise ValueError(f"{printable(path)} has no column {absent[0]!r}: {needed}")
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"{printable(path)} has {len(header)} columns: a table has at most {MAX_COLUMNS}")
    if len(set(header)) < len(header):
        repeated = next(name for i, name in enumerate(header) if name in header[:i])
        raise ValueError(f"{printable(path)} has two columns {shown(repeated)}: each column needs its own name")


def _check_cells(path: Path, table: pd.DataFrame, numeric: dict[str, pd.Series]) -> None:
    """Checks the cells of a table, stripped text, and the numbers of label, start and end.

    Raises:
        ValueError: Naming the line, the cell and what was expected.
    """
    names, split, files = table["class"], table["split"], table["path"].map(os.path.normpath)
    label, start, end, count = *numeric.values(), names.nunique()
    wrong_label = (label >= count) | (label.groupby(names).transform("first") != label)
    wrong_label |= names.groupby(label).transform("first") != names
    seconds = f"seconds, a start from 0 on before its end, at most {MAX_SECONDS:g}"
    checks = [
        ("path", table["path"] == "", "the path of a video"),
        (
            "class",
            ~names.map({name: is_class_name(name) for name in names.unique()}),
            "a class, on one line of at most 255 characters",
        ),
        ("label", label < 0, "a label, a whole number from 0 on"),
        ("label", wrong_label, f"one label per class, from 0 to {count - 1}"),
        ("split", ~split.isin(SPLITS), "train, val, test or nothing"),
        ("split", (split == "") & (split != "").any(), "a split for all clips or for none"),
        ("split", split.groupby(files).transform("first") != split, "each file in one split only"),
        ("start", ~start.between(0, MAX_SECONDS), seconds),
        ("end", (end <= start) | (end > MAX_SECONDS), seconds),
    ]
    for name, (low, high) in FACTS.items():
        if name in table:
            values = table[name].map(_number)
            wrong = values.notna() & ~values.between(low, high)
            expected = f"a number from {low:g} to {high:g}, or nothing"
            if name in ("height", "width"):
                wrong, expected = wrong | (values % 1 > 0), f"pixels, a whole n{expected.removeprefix('a n')}"
            checks.append((name, wrong, expected))
    for name, wrong, expected in checks:
        if wrong.any():
            number = wrong.idxmax()
            cell = table.at[number, name] if name in table else ""
            raise ValueError(f"{printable(path)}, line {number}: {name} {shown(cell)}, expected {expected}")
    clips = table.assign(path=files)
    if (repeated := clips.duplicated()).any():
        row = clips.loc[repeated.idxmax()]
        first = clips.index[(clips == row).all(axis=1)][0]
        raise line_error(path, row.name, ",".join(row), f"each clip once, it is already in line {first}")


def is_class_name(name: str) -> bool:
    """Whether a name is fit for records, pages and terminals: 1 to 255 characters without control characters."""
    return CLASS_NAME.fullmatch(name) is not None


def _number(cell: str) -> float:
    """The cell as a number, nan if it is empty, inf if it is none."""
    if not cell:
        return nan
    try:
        return inf if "_" in cell else float(cell)
    except ValueError:
        return inf


def _infer_type(cells: pd.Series) -> pd.Series:
    """Converts a column to int, else to float with nan for empty cells, else leaves it as text."""
    if cells.map(lambda cell: WHOLE_NUMBER.fullmatch(cell) is not None).all():
        return cells.map(int)
    numbers = cells.map(_number)
    return cells if numbers.abs().eq(inf).any() else numbers


def _list_folders(paths: Iterable[str]) -> set[str]:
    """All files in the folders of `paths`: listing each folder once is faster than a look-up per file."""
    folders = {os.path.dirname(path) for path in paths}
    return {os.path.join(f, name) for f in folders if os.path.isdir(f or ".") for name in os.listdir(f or ".")}


def read_rows(path: Path, description: str, *, names: bool = False) -> list[tuple[int, list[str]]]:
    """Reads all rows of a CSV file; arguments, rows and errors as `each_row`."""
    return list(each_row(path, description, names=names))


def each_row(path: Path, description: str, *, names: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a CSV file that are not blank, each with the number of its first line, its cells stripped.

    Args:
        path: The CSV file.
        description: What the file is, for error messages.
        names: Whether cells are names of files, which may be any bytes and are not stripped.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8 text, or not CSV, naming the line.
    """
    text = read_text(path, description, errors="surrogateescape" if names else "strict")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        for row in reader:
            if "".join(row).strip():
                yield number, row if names else [cell.strip() for cell in row]
            number = reader.line_num + 1
    except csv.Error as error:
        reason = f"is no row of CSV ({error}); a quote at the start of a cell must be closed at its end"
        raise ValueError(f"{printable(path)}, line {number} {reason}") from None


def read_text(path: Path, description: str, errors: str = "strict") -> str:
    """Reads a text file; arguments and errors as `read_rows`, `errors` is that of `bytes.decode`."""
    name = printable(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no {printable(path.name)} in '{printable(path.parent)}': it is {description}")
    # Opening a FIFO would wait for a writer, and a device may have no end.
    if not os.path.isfile(path):
        raise ValueError(f"{name} is not a regular file: it must be {description}")
    if (size := os.path.getsize(path)) > MAX_BYTES:
        raise ValueError(f"{name} has {size} bytes: it must be {description}, of at most {MAX_BYTES}")
    content = path.read_bytes()
    if b"\0" in content:
        raise ValueError(f"{name} is no text in UTF-8: it must be {description}")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line} is no text in UTF-8: the file must be {description}") from None


def read_lines(path: Path, description: str) -> Iterator[tuple[int, str]]:
    """Yields the lines that are not blank, each with its number and stripped; arguments and errors as `read_rows`."""
    for number, line in enumerate(read_text(path, description).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def line_error(path: Path, number: int, line: str, expected: str) -> ValueError:
    """A ValueError that names the file and the line, quotes it and says what was expected."""
    return ValueError(f"{printable(path)}, line {number}: {shown(line)}, expected {expected}")
