"""Files of boxes with absurd rows, for `d3d detection score`."""

import os

import pytest

from tests.bad_inputs.harness import BadInput, assert_refused
from tests.video.official import write_lines

ROW = "v,0902,0.1,0.1,0.5,0.5,1,{}"
FILES = {"truth.csv": [ROW.format(0)], "detections.csv": [ROW.format(0.5)], "excluded.csv": ["v,0903"],
         "actions.pbtxt": ['label { name: "sit" label_id: 1 }']}  # fmt: skip
COMMAND = ["detection", "score", "truth.csv", "detections.csv", "--label-map", "actions.pbtxt", "--excluded",
           "excluded.csv"]  # fmt: skip


def case(name, spoil, message, *flags, code=1):
    """Files that are right but for what `spoil` does in their folder."""

    def write(folder):
        for file, lines in FILES.items():
            write_lines(folder / file, lines)
        spoil(folder)

    return BadInput(name, [*COMMAND, *flags], write, message, code)


def detection(name, row, expected):
    def spoil(folder):
        write_lines(folder / "detections.csv", [ROW.format(0.5), row])

    return case(f"detections: {name}", spoil, rf"detections\.csv, line 2: ['\"].*['\"], expected {expected}")


def made(file, name, make, message):
    def spoil(folder):
        (folder / file).unlink()
        make(folder / file)

    return case(f"{file}: {name}", spoil, message)


SCORE, EDGES, CELLS = "a score from 0 to 1", "x1 <= x2 and y1 <= y2, .*", "video, timestamp, alone or with .*"
CASES = [
    *(detection(f"a score of {value}", ROW.format(value), SCORE) for value in ("nan", "inf", "2", "-1", "1e308")),
    detection("a score of text", ROW.format("high"), CELLS),
    detection("a box of nan", "v,902,nan,0,1,1,1,0.5", EDGES),
    detection("a box in pixels", "v,902,10,20,300,200,1,0.5", EDGES),
    detection("a box of 5000 digits", f"v,902,0,0,{'9' * 5000},1,1,0.5", EDGES),
    detection("an action of 5000 digits", f"v,902,0,0,1,1,{'9' * 5000},0.5", CELLS),
    detection("a header", "\x1b[2J,timestamp,x1,y1,x2,y2,action,score", CELLS),
    detection("ten thousand cells", "v,902" + ",1" * 10_000, CELLS),
    made("detections.csv", "a FIFO", os.mkfifo, r"detections\.csv is not a regular file: .*"),
    made("detections.csv", "a folder", os.mkdir, r"detections\.csv is not a regular file: .*"),
    made("detections.csv", "absent", lambda _: None, r"no detections\.csv in '\.': it is detections in AVA's format"),
    made("detections.csv", "not UTF-8", lambda path: path.write_bytes(b"\n\xff"), r"detections\.csv, line 2 is no .*"),
    made("detections.csv", "an open quote", lambda path: path.write_text('"v'), r"detections\.csv, line 1 is no .*"),
    made("truth.csv", "detections", lambda path: path.write_text(ROW.format(0.5)), r"truth\.csv, line 1: .*"),
    made("truth.csv", "a device", lambda path: path.symlink_to("/dev/zero"), r"truth\.csv is not a regular file: .*"),
    made("actions.pbtxt", "empty", lambda path: path.touch(), r"actions\.pbtxt names no action, .*"),
    made("excluded.csv", "a row of boxes", lambda path: path.write_text(ROW.format(1)), r"excluded\.csv, line 1: .*"),
    case("an IoU of 0", lambda _: None, "iou must be above 0 and at most 1, not 0.0", "--iou", "0"),
    case("an IoU of text", lambda _: None, ".*argument --iou: invalid float value: 'half'", "--iou", "half", code=2),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_detections_are_refused_in_one_sentence(case, tmp_path):
    assert_refused(case, tmp_path)
