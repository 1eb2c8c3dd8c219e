"""Tables of clips with absurd cells, columns, encodings and paths, read by `d3d data`, `d3d train` and `d3d flow`."""

import gzip
import os
from functools import cache
from itertools import cycle

import numpy as np
import pytest

from d3d.video.decode import encode
from tests.bad_inputs.harness import BadInput, assert_refused

HEADER = "path,class,label,split"
ROWS = ("a.mp4,walk,0,train", "b.mp4,walk,0,test", "c.mp4,wave,1,train", "d.mp4,wave,1,test")
FACTS = "seconds,fps,height,width"
TRAIN = ["--frames", "4", "--size", "16", "--epochs", "1", "--width", "0.1", "--workers", "1"]
# `d3d train` makes the folder of its results before it reads anything.
COMMANDS = {
    "data": ["data", "--dataset", "table", "--root", "a.csv", "--out", "out.csv"],
    "train": ["train", "--dataset", "table", "--root", "a.csv", "--results", "../results", *TRAIN],
    "flow": ["flow", "--dataset", "table", "--root", "a.csv", "--out", "flow", "--devices", "cpu"],
}
# What reads a table reads all of it first, so that each case needs one command only; `d3d train` takes longest.
COMMAND = cycle(COMMANDS[name] for name in ("data", "flow", "data", "flow", "train", "data", "flow"))


@cache
def video():
    """The bytes of six frames of noise, 32 x 24 pixels."""
    frames = np.random.default_rng(0).integers(0, 255, (6, 24, 32, 3), dtype=np.uint8)
    return encode(frames, fps=25)


def write_videos(folder):
    for name in "abcd":
        (folder / f"{name}.mp4").write_bytes(video())


def table(*rows, header=HEADER):
    """Writes the videos and a table of these rows."""

    def write(folder):
        write_videos(folder)
        text = "\n".join([header, *rows]) + "\n"
        (folder / "a.csv").write_bytes(text.encode(errors="surrogateescape"))

    return write


def content(data):
    """Writes the videos and a table of these bytes."""

    def write(folder):
        write_videos(folder)
        (folder / "a.csv").write_bytes(data)

    return write


def cell(column, value, message, name=""):
    """A table whose second clip has this value in one column; the sentence names line, column and value."""
    header = f"{HEADER},{column}" if column not in HEADER else HEADER
    rows = [row if header == HEADER else f"{row}," for row in ROWS]
    cells = rows[1].split(",")
    cells[header.split(",").index(column)] = value
    rows[1] = ",".join(cells)
    expected = rf"(d3d train: )?a\.csv, line 3: {column} '.*', expected {message}"
    return BadInput(f"{column} {name or value or 'empty'}", next(COMMAND), table(*rows, header=header), expected)


def refused(name, write, message, command=None):
    return BadInput(name, command or next(COMMAND), write, rf"(d3d train: )?{message}")


SECONDS = r"seconds, a start from 0 on before its end, at most 1e\+09"
LABEL = "a label, a whole number from 0 on"
LABELS = "one label per class, from 0 to 1"
CLASS = "a class, on one line of at most 255 characters"
SPLIT = "train, val, test or nothing"
PIXELS = "pixels, a whole number from 1 to 65536, or nothing"
CELLS = [
    *(cell("start", value, SECONDS) for value in ("inf", "nan", "1e308", "1e15", "-1", "soon", "1_0")),
    cell("start", "9" * 5000, SECONDS, "of 5000 digits"),
    *(cell("end", value, SECONDS) for value in ("inf", "-inf", "1e308", "1e15", "-1", "0", "soon")),
    *(cell("label", value, LABEL) for value in ("", "-1", "1.0", "True", "nan", "inf", "1e0", "9" * 10)),
    cell("label", "9" * 5000, LABEL, "of 5000 digits"),
    *(cell("label", value, LABELS) for value in ("1", "2", "999999999")),
    *(cell("split", value, SPLIT) for value in ("dev", "Train", "0")),
    cell("split", "", "a split for all clips or for none"),
    cell("path", "", "the path of a video"),
    cell("class", "", CLASS),
    cell("class", "\x1b[31mred", CLASS, "of a terminal escape"),
    cell("class", "wa\x07lk", CLASS, "of a control character"),
    cell("class", '"wa\nlk"', CLASS, "of two lines"),
    cell("class", "w" * 10_000, CLASS, "of 10,000 characters"),
    *(cell("seconds", value, r"a number from 0 to 1e\+09, or nothing") for value in ("inf", "1e15", "-1", "long")),
    *(cell("fps", value, "a number from 0.001 to 1000, or nothing") for value in ("inf", "0", "-25", "1e308", "PAL")),
    *(cell("height", value, PIXELS) for value in ("inf", "0", "-1", "1e15", "tall", "24.5")),
    *(cell("width", value, PIXELS) for value in ("1e308", "0", "65537")),
]  # fmt: skip
FILES = [
    refused("an empty file", content(b""), r"a\.csv has no column 'path': its header must name .*"),
    refused("blank lines only", content(b"\n \n\n"), r"a\.csv has no column 'path': its header must name .*"),
    refused("a header only", table(), r"a\.csv lists no clip"),
    refused("a missing column", table("a.mp4,walk,0", header="path,class,label"), r"a\.csv has no column 'split': .*"),
    refused("two columns of one name", table("a.mp4,walk,0,train,x", header=f"{HEADER},path"),
            r"a\.csv has two columns 'path': each column needs its own name"),
    refused("a million columns", table(header=HEADER + ",x" * 10**6),
            r"a\.csv has 1000004 columns: a table has at most 1000"),
    refused("a row too short", table(ROWS[0], "b.mp4,walk,0"),
            r"a\.csv, line 3: 'b.mp4,walk,0', expected 4 cells as in the header, not 3"),
    refused("a row of a million cells", table(ROWS[0], ROWS[1] + ",x" * 10**6),
            r"a\.csv, line 3: '.*', expected 4 cells as in the header, not 1000004"),
    refused("a row twice", table(*ROWS, ROWS[1]), r"a\.csv, line 6: 'b.mp4,.*', expected each clip once, .* line 3"),
    refused("a row twice, spelt differently", table(*ROWS, f"x/../{ROWS[1]}"),
            r"a\.csv, line 6: 'b.mp4,.*', expected each clip once, .* line 3"),
    refused("a file in two splits, spelt differently", table(*ROWS, "./a.mp4,walk,0,test"),
            r"a\.csv, line 6: split 'test', expected each file in one split only"),
    refused("semicolons", table("a.mp4;walk;0;train", header=HEADER.replace(",", ";")),
            r"a\.csv has no column 'path': .* with commas between them"),
    refused("a quote never closed", table(*ROWS[:2], '"c.mp4,wave,1,train', ROWS[3]),
            r"a\.csv, line 4 is no row of CSV \(.*\); a quote at the start of a cell must be closed at its end"),
    refused("a quote closed too early", table(*ROWS[:2], '"c".mp4,wave,1,train', ROWS[3]),
            r"a\.csv, line 4 is no row of CSV .*"),
    refused("a cell of a megabyte", table(ROWS[0], f"{'b' * 2**20},walk,0,test"), r"a\.csv, line 3 is no row of .*"),
    refused("NUL bytes", content(f"{HEADER}\na\0.mp4,walk,0,train\n".encode()), r"a\.csv is no text in UTF-8: .*"),
    refused("UTF-16", content(f"{HEADER}\na.mp4,walk,0,train\n".encode("utf-16")), r"a\.csv is no text in UTF-8: .*"),
    refused("a gzip file", content(gzip.compress("\n".join([HEADER, *ROWS]).encode(), mtime=0)),
            r"a\.csv is no text in UTF-8: .*"),
    refused("a video", content(video()), r"a\.csv is no text in UTF-8: .*"),
    refused("a folder", lambda folder: (folder / "a.csv").mkdir(), r"a\.csv is not a regular file: it must be .*"),
    refused("a link to itself", lambda folder: (folder / "a.csv").symlink_to("a.csv"),
            r"a\.csv is not a regular file: it must be .*"),
    refused("a link to nothing", lambda folder: (folder / "a.csv").symlink_to("b.csv"),
            r"a\.csv is not a regular file: it must be .*"),
    refused("a FIFO", lambda folder: os.mkfifo(folder / "a.csv"), r"a\.csv is not a regular file: it must be .*"),
    refused("a device", lambda folder: (folder / "a.csv").symlink_to("/dev/zero"),
            r"a\.csv is not a regular file: it must be .*"),
    refused("no file", None, r"no table at a\.csv: .*"),
    refused("a name of 5,000 characters", None, r"no table at a+….*a+\.csv: .*",
            ["data", "--dataset", "table", "--root", f"{'a' * 5000}.csv"]),
    refused("none of the clips exists", table("x.mp4,walk,0,train", "y.mp4,wave,1,train"),
            r"root 'a\.csv' holds none of the 2 clips listed, not even x\.mp4"),
    refused("a path of 5,000 characters", table(f"{'x' * 5000}.mp4,walk,0,train"),
            r"root 'a\.csv' holds none of the 1 clips listed, not even x+….*x+\.mp4"),
]  # fmt: skip
PATHS = [
    refused("a flow cache that would leave its folder", table(*ROWS, "../e.mp4,walk,0,train", "/dev/null,walk,0,train"),
            r"\S+ does not lie below root \S*: a flow cache has the folders of its root", COMMANDS["flow"]),
]  # fmt: skip


@pytest.mark.parametrize("case", [*CELLS, *FILES, *PATHS], ids=str)
def test_a_table_is_refused_in_one_sentence(case, tmp_path):
    assert_refused(case, tmp_path)
