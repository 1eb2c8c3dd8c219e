"""AVA v2.1: its clips of one second, and its formats: rows of boxes, the list of actions, excluded timestamps.

    boxes = read_boxes("ava_val_v2.1.csv", "AVA's boxes of val", last="person")
    actions = read_actions("ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt")    # {1: "bend/bow (at the waist)", …}

A key frame is a video and a timestamp in seconds. A row has a box and an action of a key frame, or, with two cells,
only names a key frame. Boxes are fractions of the frame's width (x) and height (y).
"""

import os
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from d3d.messages import printable, shown
from d3d.video.listing import find_videos, unique_path
from d3d.video.tables import COLUMNS, MAX_SECONDS, Listing, each_row, line_error, read_lines, read_text

CORNERS = ("x1", "y1", "x2", "y2")
BOX_COLUMNS = ("video", "timestamp", *CORNERS, "action")
# The action of a row that only names a key frame.
NO_ACTION = -1
ACTION = re.compile(r'name:\s*"([^"]+)"\s*(?:label_)?id:\s*(\d{1,9})\b', re.ASCII)
# How the last cell of a row is read, and its value if it is left out.
LAST = {"person": (int, nan), "score": (float, 1.0)}
SMALL = {"person": "an action and a person that are small numbers", "score": "an action that is a small number"}
EXCLUDED = re.compile(r"([^,]+),\s*(\d{1,9}(?:\.\d{0,9})?)", re.ASCII)
# A clip is the second around its timestamp.
HALF_CLIP = 0.5


def read_ava(root: Path, folder: Path, _: int) -> Listing:
    """Lists AVA's boxes as clips: one row per box of a person and action, each once, of the second around it."""
    label_maps = sorted(folder.glob("ava_action_list_v2.1*.pbtxt*"))
    if len(label_maps) != 1:
        raise FileNotFoundError(
            f"'{printable(folder)}' must hold one ava_action_list_v2.1*.pbtxt, there are {len(label_maps)}"
        )
    (label_map,) = label_maps
    actions = read_actions(label_map)
    label = {number: i for i, number in enumerate(actions)}
    splits = [s for s in ("train", "val") if os.path.lexists(folder / f"ava_{s}_v2.1.csv")]
    if not splits:
        raise FileNotFoundError(f"no ava_train_v2.1.csv or ava_val_v2.1.csv in '{printable(folder)}'")
    table = pd.concat([_read_split(folder, split) for split in splits], ignore_index=True)
    table = table[table["action"].isin(label)]
    if table.empty:
        raise ValueError(
            f"no action of {', '.join(splits)} is in {printable(label_map)}: use the label map of the same version"
        )
    split_counts = table.groupby("video")["split"].nunique()
    if (split_counts > 1).any():
        raise ValueError(f"video {shown(split_counts.idxmax())} is both in ava_train_v2.1.csv and in ava_val_v2.1.csv")
    videos = find_videos(root)
    paths = {video: unique_path(videos.get(video, []), video) for video in split_counts.index}
    table = table.assign(
        path=table["video"].map(paths), label=table["action"].map(label), start=table["timestamp"] - HALF_CLIP,
        end=table["timestamp"] + HALF_CLIP, group=table["video"],
    )  # fmt: skip
    table["class"] = table["action"].map(actions)
    missing = tuple(sorted(set(table.loc[table["path"].isna(), "video"])))
    clips = table[table["path"].notna()].reset_index(drop=True)
    return Listing(clips[[*COLUMNS, *CORNERS, "person"]], tuple(actions.values()), missing, len(table))


def _read_split(folder: Path, split: str) -> pd.DataFrame:
    """One row per person box and action of a split, each once, without the excluded timestamps."""
    path, description = folder / f"ava_{split}_v2.1.csv", f"AVA's boxes of {split}"
    table = read_boxes(path, description, last="person", earliest=HALF_CLIP)
    table = table[table["action"] != NO_ACTION]
    x1, y1, x2, y2 = table[[*CORNERS]].to_numpy().T
    wrong = ~((x1 >= 0) & (x1 < x2) & (x2 <= 1) & (y1 >= 0) & (y1 < y2) & (y2 <= 1))
    refuse_rows(path, description, table.index[wrong], "x1 < x2 and y1 < y2 within [0, 1], as fractions of the frame")
    excluded = read_excluded(
        folder / f"ava_{split}_excluded_timestamps_v2.1.csv", f"AVA's list of excluded timestamps of {split}"
    )
    is_excluded = pd.MultiIndex.from_frame(table[["video", "timestamp"]]).isin(pd.MultiIndex.from_frame(excluded))
    table = table[~is_excluded].drop_duplicates(ignore_index=True).assign(split=split)
    return table.astype({"person": int}) if table["person"].notna().all() else table


def read_boxes(
    path: Path, description: str, *, last: Literal["person", "score"], earliest: float = 0.0
) -> pd.DataFrame:
    """Reads rows of 8 cells, of 7 without the last, or of 2, which only name a key frame.

    Corners and scores are any numbers, also nan: `refuse_rows` refuses those that a caller does not want.

    Args:
        path: The CSV file, without a header.
        description: What the file is, for error messages.
        last: What the eighth cell is: a person, a whole number, nan if left out; or a score, 1 if left out.
        earliest: The smallest timestamp, seconds.

    Returns:
        One row per row of the file, with its line as the index and the columns `BOX_COLUMNS` and `last`. A row of two
        cells has the action `NO_ACTION`, and nan elsewhere.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row is malformed, naming the file, the line and what was expected.
    """
    lines, actions, numbers = array("q"), array("q"), array("d")
    videos: list[str] = []
    for line, cells in each_row(path, description):
        try:
            second, *corners, action, value = _parse(cells, last)
        except (ValueError, IndexError):
            others = ", ".join((*BOX_COLUMNS[2:], last))
            expected = f"video, timestamp, alone or with {others}; {last} may be left out"
            raise line_error(path, line, ",".join(cells), expected) from None
        small = action < 10**6 and not (last == "person" and abs(value) >= 2**31)
        if not (cells[0] and earliest <= second <= MAX_SECONDS and small):
            expected = f"a video, a timestamp from {earliest:g} s on, and {SMALL[last]}"
            raise line_error(path, line, ",".join(cells), expected)
        lines.append(line)
        videos.append(cells[0])
        actions.append(action)
        numbers.extend((second, *corners, value))
    columns = np.array(numbers).reshape(-1, 6).T
    table = pd.DataFrame(dict(zip(("timestamp", *CORNERS), columns, strict=False)), index=np.array(lines, np.int64))
    table.insert(0, "video", pd.Series(videos, table.index, dtype=str))
    return table.assign(**{"action": np.array(actions, np.int64), last: columns[5]})


def _parse(cells: Sequence[str], last: str) -> tuple:
    """The numbers of a row: timestamp, corners, action and the last cell; raises ValueError or IndexError."""
    if len(cells) == 2:
        return float(cells[1]), nan, nan, nan, nan, NO_ACTION, nan
    action = int(cells[6])
    if action < 0:
        raise ValueError
    convert, absent = LAST[last]
    (value,) = map(convert, cells[7:]) if len(cells) > 7 else (absent,)
    return *map(float, cells[1:6]), action, value


def refuse_rows(path: Path, description: str, lines: Sequence[int], expected: str) -> None:
    """Raises a ValueError that quotes the first of the rows of a CSV file, if any.

    Args:
        path: The CSV file.
        description: What the file is, for error messages.
        lines: Lines of the rows that are refused, in the file's order.
        expected: What was expected.
    """
    if len(lines):
        cells = next(cells for line, cells in each_row(path, description) if line == lines[0])
        raise line_error(path, lines[0], ",".join(cells), expected)


def read_actions(path: Path) -> dict[int, str]:
    """Reads the names of the actions by number, in the order of the numbers, from entries with `id` or `label_id`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it names no action, or an action or number twice.
    """
    entries = [(name, int(number)) for name, number in ACTION.findall(read_text(path, "AVA's list of actions"))]
    if not entries:
        expected = 'expected entries such as label { name: "…" label_id: 1 }'
        raise ValueError(f"{printable(path)} names no action, {expected}")
    for k, kind in enumerate(("action", "number")):
        value, count = Counter(entry[k] for entry in entries).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{printable(path)} has the {kind} {shown(value)} {count} times, expected each once")
    return {number: name for name, number in sorted(entries, key=lambda entry: entry[1])}


def read_excluded(path: Path, description: str) -> pd.DataFrame:
    """Reads a list of excluded timestamps, one `video,timestamp` per line.

    Args:
        path: The file.
        description: What it is, for error messages.

    Returns:
        Columns video and timestamp, seconds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is anything else, naming the file and the line.
    """
    rows = []
    for number, line in read_lines(path, description):
        match = EXCLUDED.fullmatch(line)
        if not match:
            raise line_error(path, number, line, "'video,timestamp'")
        rows.append((match[1].strip(), float(match[2])))
    return pd.DataFrame(rows, columns=["video", "timestamp"]).astype({"timestamp": float})
