"""Files of ground truth and detections: what is read, what is written, and what is refused."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3d.detection.boxes import (
    check_table,
    read_detections,
    read_excluded,
    read_ground_truth,
    read_label_map,
    write_boxes,
)
from tests.video.official import write_lines

ROW = "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("boxes") / "boxes.csv"


def test_rows_of_all_lengths_are_read(path):
    write_lines(path, [f"{ROW},5", "", ROW, "1j20qq1JyX4,1798.5"])
    table = read_ground_truth(path)
    assert table.index.tolist() == [1, 3, 4]
    assert table["video"].tolist() == ["-5KQ66BBWC4"] * 2 + ["1j20qq1JyX4"]
    assert table["timestamp"].tolist() == [902, 902, 1798.5]
    assert table.loc[3, ["x1", "y1", "x2", "y2"]].tolist() == [0.077, 0.151, 0.283, 0.811]
    assert table.loc[4, ["x1", "y1", "x2", "y2"]].isna().all()
    assert table["action"].tolist() == [80, 80, -1]
    np.testing.assert_equal(table["person"].tolist(), [5, math.nan, math.nan])
    write_lines(path, [f"{ROW},0.25", ROW, "1j20qq1JyX4,1798.5"])
    np.testing.assert_equal(read_detections(path)["score"].tolist(), [0.25, 1, math.nan])


def test_an_empty_file_has_no_rows(path):
    path.write_text("")
    assert read_ground_truth(path).columns.tolist() == [
        "video", "timestamp", "x1", "y1", "x2", "y2", "action", "person",
    ]  # fmt: skip
    assert len(read_detections(path)) == 0


def test_boxes_may_reach_a_little_beyond_the_frame(path):
    write_lines(path, ["v,902,-0.1,-0.01,1.1,1.05,1,0.5"])
    assert read_detections(path)[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [[-0.1, -0.01, 1.1, 1.05]]


EDGES = "x1 <= x2 and y1 <= y2, as fractions of the frame, from -0.1 to 1.1"
SCORE = "a score from 0 to 1"
CELLS = "video, timestamp, alone or with x1, y1, x2, y2, action, score; score may be left out"
SMALL = "a video, a timestamp from 0 s on, and an action that is a small number"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        *((f"v,902,0,0,1,1,1,{s}", SCORE) for s in ("nan", "inf", "-inf", "-0.001", "1.001", "1e300")),
        *((f"v,902,{edge},0,0.5,1,1,0.5", EDGES) for edge in ("nan", "-inf", "inf", "0.6", "-0.2")),
        *((f"v,902,0,{edge},1,0.5,1,0.5", EDGES) for edge in ("nan", "0.6", "-0.2")),
        *((f"v,902,0,0,{edge},1,1,0.5", EDGES) for edge in ("nan", "inf", "320", "-0.05")),
        *((f"v,902,0,0,1,{edge},1,0.5", EDGES) for edge in ("nan", "inf", "240", "-0.05")),
        *((f"v,{second},0,0,1,1,1,0.5", SMALL) for second in ("nan", "inf", "-1", "1e300")),
        (",902,0,0,1,1,1,0.5", SMALL),
        ("v,902,0,0,1,1,1000000,0.5", SMALL),
        *((f"v,902,0,0,1,1,{action},0.5", CELLS) for action in ("-1", "1.0", "nan", "", "walk", "9" * 5000)),
        ("v,902,0,0,1,1,1,", CELLS),
        ("v,902,0,0,1,1,1,0.5,7", CELLS),
        ("v,902,0,0,1,1", CELLS),
        ("v,902,0", CELLS),
        ("v", CELLS),
        ("video,timestamp,x1,y1,x2,y2,action,score", CELLS),
    ],
)
def test_malformed_rows_are_refused(path, row, expected):
    write_lines(path, ["v,902,0,0,1,1,1,0.5", row, "v,903,nan,nan,nan,nan,1,0.5"])
    with pytest.raises(ValueError, match=rf"boxes.csv, line 2: '.*', expected {re.escape(expected)}$"):
        read_detections(path)


@pytest.mark.parametrize("person", ["0.9", "nan", "", "9" * 20])
def test_persons_that_are_no_numbers_are_refused(path, person):
    """Such as the scores of detections in the place of the ground truth."""
    write_lines(path, [f"{ROW},{person}"])
    with pytest.raises(ValueError, match=r"boxes.csv, line 1: '.*', expected "):
        read_ground_truth(path)


def test_a_missing_file_is_named(tmp_path):
    for read in (read_ground_truth, read_detections, read_excluded, read_label_map):
        with pytest.raises(FileNotFoundError, match=r"^no none.csv in '.*': it is "):
            read(tmp_path / "none.csv")


def test_excluded_timestamps(path):
    write_lines(path, ["v,0902", "v, 903.50"])
    assert read_excluded(path).to_numpy().tolist() == [["v", 902], ["v", 903.5]]
    write_lines(path, ["v,0902", "v,soon"])
    with pytest.raises(ValueError, match=r"boxes.csv, line 2: 'v,soon', expected 'video,timestamp'$"):
        read_excluded(path)


@pytest.mark.parametrize("key", ["id", "label_id"])
def test_label_maps_of_both_kinds(path, key):
    path.write_text("".join(f'item {{\n  name: "{n}"\n  {key}: {i}\n}}\n' for n, i in (("run/jog", 10), ("sit", 2))))
    assert list(read_label_map(path).items()) == [(2, "sit"), (10, "run/jog")]


videos = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=6)
numbers = st.floats(0, 1)
spans = st.tuples(numbers, numbers).map(sorted)
seconds = st.one_of(st.integers(0, 2000).map(float), st.floats(0, 2000))
rows = st.tuples(videos, seconds, spans, spans, st.integers(0, 999_999))


@given(st.lists(st.tuples(rows, st.one_of(st.none(), st.integers(0, 10**9)), numbers, st.booleans()), max_size=8))
@settings(max_examples=100)
def test_what_is_written_is_read(path, entries):
    records = [(v, t, x[0], y[0], x[1], y[1], a, p, s) for (v, t, x, y, a), p, s, _ in entries]
    columns = ["video", "timestamp", "x1", "y1", "x2", "y2", "action", "person", "score"]
    table = pd.DataFrame(records, columns=columns)
    table = table.astype({"video": str, "action": int} | {c: float for c in columns if c not in ("video", "action")})
    only_named = np.array([named for *_, named in entries], bool)
    table.loc[only_named, ["x1", "y1", "x2", "y2", "person", "score"]] = math.nan
    table.loc[only_named, "action"] = -1
    for last, read in (("person", read_ground_truth), ("score", read_detections)):
        written = table[[*columns[:7], last]]
        write_boxes(path, written)
        pd.testing.assert_frame_equal(read(path).reset_index(drop=True), written, check_exact=True)


def test_files_are_written_as_ava_s(path):
    write_lines(path, [f"{ROW},5", ROW, "1j20qq1JyX4,0012.5", "1j20qq1JyX4,0013"])
    text = path.read_text()
    write_boxes(path, read_ground_truth(path))
    assert path.read_text() == text.replace("0012.5", "12.5")


def test_a_table_without_persons_is_written(path):
    write_lines(path, [f"{ROW},5"])
    write_boxes(path, read_ground_truth(path).drop(columns="person"))
    assert path.read_text() == f"{ROW}\n"


TABLE = pd.DataFrame(
    {"video": ["v", "w"], "timestamp": [902, 903.5], "x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": [0.5, 0.6], "action": 1}
)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("video", "", "a video, on one line of at most 255 characters"),
        ("video", " w", "a video, on one line of at most 255 characters"),
        ("video", "w\nx", "a video, on one line of at most 255 characters"),
        ("video", 5, "a video, on one line of at most 255 characters"),
        ("timestamp", math.nan, "a timestamp from 0 to 1e+09 s"),
        ("timestamp", -1, "a timestamp from 0 to 1e+09 s"),
        ("timestamp", "soon", "a number as timestamp"),
        ("x1", math.nan, EDGES),
        ("y2", -0.01, EDGES),
        ("action", 1.5, "an action, a whole number from 0 on, or -1 without a box"),
        ("action", math.nan, "an action, a whole number from 0 on, or -1 without a box"),
        ("score", math.nan, SCORE),
        ("score", 1.5, SCORE),
        ("score", "high", "a number as score"),
        ("person", 0.5, "a person, a whole number"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, column, value, expected):
    last = "person" if column == "person" else "score"
    table = TABLE.assign(**{last: 1.0}).astype({column: object})
    assert len(check_table(table, "boxes", last)) == 2
    table.loc[1, column] = value
    with pytest.raises(ValueError, match=rf"^the table, row 1: ['\"].*['\"], expected {re.escape(expected)}$"):
        write_boxes(tmp_path / "boxes.csv", table)
    assert not (tmp_path / "boxes.csv").exists()


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match=r"^boxes has no column 'score', it needs video, timestamp, .*, score$"):
        check_table(TABLE, "boxes", "score")
    with pytest.raises(ValueError, match=r"^excluded has no column 'timestamp', it needs video, timestamp$"):
        check_table(TABLE[["video"]], "excluded", None)
