"""Tables of ground-truth boxes and of detections, read from AVA's CSV files and written to them.

    ground_truth = read_ground_truth("ava_val_v2.1.csv")
    detections = read_detections("detections.csv")
    write_boxes("detections.csv", detections)

Columns:
    video, timestamp: The key frame: a video's name and seconds.
    x1, y1, x2, y2: Left, upper, right and lower edge, as fractions of the frame's width and height.
    action: Number of the action; -1 in a row that only names a key frame, whose edges are nan.
    person: Ground truth only: a person of the video, nan if unknown. The column may be missing.
    score: Detections only, in [0, 1].
"""

import csv
import io
from collections.abc import Iterable, Iterator
from math import isnan, nan
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from d3d.files import write_atomic
from d3d.messages import shown
from d3d.video.ava import BOX_COLUMNS, CORNERS, NO_ACTION, read_actions, read_boxes, refuse_rows
from d3d.video.ava import read_excluded as read_excluded_timestamps
from d3d.video.tables import MAX_SECONDS, each_row, is_class_name, line_error

# How far a box may reach beyond the frame, in its widths and heights: regressed boxes may, boxes in pixels are refused.
MARGIN = 0.1
Last = Literal["person", "score"]


def read_ground_truth(path: str | Path) -> pd.DataFrame:
    """Reads boxes of ground truth: rows `video,timestamp,x1,y1,x2,y2,action,person`, of which 2 or 7 cells may stand.

    Args:
        path: CSV file without a header.

    Returns:
        One row per row of the file, in its order, with its line as the index.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row is malformed, naming the file, the line and what was expected.
    """
    return _read(Path(path), "ground truth in AVA's format", "person")


def read_detections(path: str | Path) -> pd.DataFrame:
    """Reads detections: rows `video,timestamp,x1,y1,x2,y2,action,score`, of which 2 or 7 cells may stand.

    Args:
        path: CSV file without a header. The score of a row of 7 cells is 1.

    Returns:
        One row per row of the file, in its order, with its line as the index.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row is malformed, naming the file, the line and what was expected.
    """
    return _read(Path(path), "detections in AVA's format", "score")


def _read(path: Path, description: str, last: Last) -> pd.DataFrame:
    table = read_boxes(path, description, last=last)
    for row, expected in _first_wrong(_checks(table)):
        refuse_rows(path, description, table.index[[row]], expected)
    return table


def _first_wrong(checks: Iterable[tuple[np.ndarray, str]]) -> list[tuple[int, str]]:
    """The first row that a check finds wrong, and what was expected; empty if there is none."""
    wrong_rows = [(int(np.argmax(wrong)), expected) for wrong, expected in checks if wrong.any()]
    return [min(wrong_rows, key=lambda row: row[0])] if wrong_rows else []


def _checks(table: pd.DataFrame) -> Iterator[tuple[np.ndarray, str]]:
    """Yields the rows whose numbers are wrong, as a mask, and what was expected."""
    boxed = table["action"].to_numpy() != NO_ACTION
    x1, y1, x2, y2 = table[[*CORNERS]].to_numpy().T
    low, high = -MARGIN, 1 + MARGIN
    inside = (low <= x1) & (x1 <= x2) & (x2 <= high) & (low <= y1) & (y1 <= y2) & (y2 <= high)
    yield boxed & ~inside, f"x1 <= x2 and y1 <= y2, as fractions of the frame, from {low:g} to {high:g}"
    if "score" in table:
        yield boxed & ~table["score"].between(0, 1).to_numpy(), "a score from 0 to 1"


def read_people(path: str | Path) -> pd.DataFrame:
    """Reads boxes of persons: rows `video,timestamp,x1,y1,x2,y2,action,score`, as detectors of persons write them.

    The action is ignored and may be empty; it and the score may be left out. Rows of the same box, such as
    detections of several actions, count once, with the highest of their scores.

    Args:
        path: CSV file without a header.

    Returns:
        Columns video, timestamp, x1, y1, x2, y2, score: one row per box, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row is malformed, naming the file, the line and what was expected.
    """
    path, description = Path(path), "boxes of persons"
    rows: dict[tuple, float] = {}
    for line, cells in each_row(path, description):
        try:
            second, *corners = map(float, cells[1:6])
            score = float(cells[7]) if len(cells) > 7 else 1.0
            x1, y1, x2, y2 = corners
        except ValueError:
            second = nan
        named = len(cells) <= 8 and cells[0] and 0 <= second <= MAX_SECONDS
        low, high = -MARGIN, 1 + MARGIN
        if not (named and low <= x1 <= x2 <= high and low <= y1 <= y2 <= high and 0 <= score <= 1):
            expected = (
                "video, timestamp, x1, y1, x2, y2, an action that is ignored, score: edges as fractions of the frame "
                "with x1 <= x2 and y1 <= y2, and a score from 0 to 1"
            )
            raise line_error(path, line, ",".join(cells), expected)
        box = (cells[0], second, *corners)
        rows[box] = max(score, rows.get(box, 0.0))
    table = pd.DataFrame(list(rows), columns=[*BOX_COLUMNS[:2], *CORNERS])
    return table.astype({"video": str} | dict.fromkeys(table.columns[1:], float)).assign(score=[*rows.values()])


def read_excluded(path: str | Path) -> pd.DataFrame:
    """Reads the key frames that are not scored, one `video,timestamp` per line, as a table of these columns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed, naming the file and the line.
    """
    return read_excluded_timestamps(Path(path), "AVA's list of excluded timestamps")


def read_label_map(path: str | Path) -> dict[int, str]:
    """Reads the names of the scored actions by number, from a .pbtxt of entries `label { name: "…" label_id: 1 }`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file names no action, or one twice.
    """
    return read_actions(Path(path))


def check_table(table: pd.DataFrame, name: str, last: Last | None) -> pd.DataFrame:
    """Checks a table as the readers check a file, and returns it with their columns and types.

    Args:
        table: with the columns above.
        name: what it is, for errors.
        last: the last column, "person" or "score"; None: of key frames, the columns video and timestamp alone.

    Raises:
        ValueError: If a column is missing or a value wrong, naming the table, the row and what was expected.
    """
    columns = BOX_COLUMNS if last else BOX_COLUMNS[:2]
    if last == "score" or last in table:
        columns = (*columns, last)
    if absent := [column for column in columns if column not in table]:
        raise ValueError(f"{name} has no column {absent[0]!r}, it needs {', '.join(columns)}")
    numbers = {column: pd.to_numeric(table[column], errors="coerce").astype(float) for column in columns[1:]}
    checked = pd.DataFrame({"video": table["video"]} | numbers)
    checks = [(numbers[c].isna().to_numpy() & table[c].notna().to_numpy(), f"a number as {c}") for c in numbers]
    for k, expected in _first_wrong([*checks, *_key_checks(checked), *(_checks(checked) if last else ())]):
        row = table[[*columns]].iloc[k]
        text = ",".join(map(str, row))
        raise ValueError(f"{name}, row {shown(row.name)}: {shown(text)}, expected {expected}")
    return checked.astype({"action": int}) if last else checked


def _key_checks(table: pd.DataFrame) -> Iterator[tuple[np.ndarray, str]]:
    """As `_checks`, of the key frames, actions and persons."""
    stripped = [v for v in table["video"].unique() if isinstance(v, str) and is_class_name(v) and v == v.strip()]
    yield ~table["video"].isin(stripped).to_numpy(), "a video, on one line of at most 255 characters"
    yield ~table["timestamp"].between(0, MAX_SECONDS).to_numpy(), f"a timestamp from 0 to {MAX_SECONDS:g} s"
    if "action" in table:
        yield ~_is_whole(table["action"], NO_ACTION, 10**6), "an action, a whole number from 0 on, or -1 without a box"
    if "person" in table:
        wrong = table["person"].notna().to_numpy() & ~_is_whole(table["person"], -(2**31), 2**31)
        yield wrong, "a person, a whole number"


def _is_whole(values: pd.Series, low: int, end: int) -> np.ndarray:
    return ((values >= low) & (values < end) & (values % 1 == 0)).to_numpy()


def write_boxes(path: str | Path, table: pd.DataFrame) -> None:
    """Writes ground truth or detections as CSV for their readers, with all digits of their numbers.

    Args:
        path: The CSV file.
        table: Rows with a score, with or without a person; where the person is unknown, a row has 7 cells.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the table is malformed, naming the row and what was expected.
    """
    last: Last = "score" if "score" in table else "person"
    table = check_table(table, "the table", last)
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    values = table[last] if last in table else pd.Series(np.nan, table.index)
    columns = [table[name].tolist() for name in BOX_COLUMNS]
    for video, second, *corners, action, value in zip(*columns, values.tolist(), strict=True):
        cells = [video, f"{second:04.0f}" if second.is_integer() else repr(second)]
        if action != NO_ACTION:
            cells += [*map(repr, corners), action]
            if not isnan(value):
                cells.append(repr(value) if last == "score" else int(value))
        writer.writerow(cells)
    write_atomic({Path(path): lines.getvalue().encode()})
