"""Folders of shards that are not what was written, and absurd options of `d3d data --shards`."""

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from d3d.data.shard_writer import write_shards
from d3d.video.annotations import read
from d3d.video.decode import encode
from d3d.video.shards import index_content, read_index
from tests.bad_inputs.harness import BadInput, assert_refused

VIDEOS = ("swim/a.mp4", "swim/b.mp4", "wave/a.mp4", "wave/b.mp4")
TRAIN = ["train", "--dataset", "shards", "--root", "shards", "--results", "../results", "--frames", "4", "--size", "16",
         "--epochs", "1", "--width", "0.1", "--workers", "1", "--damaged", "raise"]  # fmt: skip
DATA = ["data", "--dataset", "folder", "--root", "videos", "--shards"]
TAR, INDEX, MANIFEST = "shards/clips-000000.tar", "shards/clips-000000.jsonl", "shards/manifest.json"


@pytest.fixture(scope="module")
def template():
    """Four videos as files and as shards, made once; each case changes a copy."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        for seed, video_name in enumerate(VIDEOS):
            (folder / "videos" / video_name).parent.mkdir(parents=True, exist_ok=True)
            frames = np.random.default_rng(seed).integers(0, 255, (6, 24, 32, 3), dtype=np.uint8)
            (folder / "videos" / video_name).write_bytes(encode(frames, fps=25))
        write_shards(read("folder", folder / "videos"), folder / "videos", folder / "shards", report=lambda line: None)
        yield folder


def trained(name, change, message):
    """Training on shards that `change`, given the folder of videos and shards, spoils."""
    return BadInput(f"train: {name}", TRAIN, change, rf"d3d train: {message}")


def written(name, options, message, change=None, code=1):
    return BadInput(f"data: {name}", [*DATA, *options], change, message, code)


def instead(path, make):
    def change(folder):
        (folder / path).unlink()
        make(folder / path)

    return change


def put(path, content):
    return lambda folder: (folder / path).write_bytes(content)


def manifest(**values):
    def change(folder):
        content = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(content | values))

    return change


def entry(**values):
    """Writes an index whose checksum is right and whose first video has other values."""

    def change(folder):
        size, (first, *others) = read_index(folder / TAR)
        (folder / INDEX).write_bytes(index_content("clips-000000.tar", size, [first._replace(**values), *others]))

    return change


def video(**values):
    def change(folder):
        _, (first, *_) = read_index(folder / TAR)
        entry(video=first.video._replace(**values))(folder)

    return change


def clip(**values):
    def change(folder):
        _, (first, *_) = read_index(folder / TAR)
        entry(clips=[first.clips[0] | values])(folder)

    return change


FOREIGN = r"shards/manifest\.json is not the manifest of a folder of shards: delete it, and run .*"
WRONG = r"shards/clips-000000\.jsonl is not the index that was written with its shard: delete it, and run .*"
DAMAGED = r"shards/clips-000000\.tar/swim/a\.mp4 is damaged: .*"
CASES = [
    trained("no manifest", lambda folder: (folder / MANIFEST).unlink(), r"no shards at shards: `d3d data … .*"),
    trained("a manifest that is a FIFO", instead(MANIFEST, os.mkfifo), FOREIGN),
    trained("a manifest that is empty", put(MANIFEST, b""), FOREIGN),
    trained("a deep manifest", put(MANIFEST, b"[" * 10**6), FOREIGN),
    trained("a shard that leads out of the folder", manifest(shards=["../videos.tar"]), FOREIGN),
    trained("classes of other shards", manifest(classes=["wave", "swim"]), r"shards has a manifest of other .*"),
    trained("a tar that is missing", lambda folder: (folder / TAR).unlink(), rf"{TAR} is missing: copy what is .*"),
    trained("an index that is missing", lambda folder: (folder / INDEX).unlink(), rf"{INDEX} is missing: copy .*"),
    trained("an index that is a FIFO", instead(INDEX, os.mkfifo), WRONG),
    trained("an index that is cut", lambda folder: os.truncate(folder / INDEX, 300), WRONG),
    trained("an index of zeros", put(INDEX, b"\0" * 1000), WRONG),
    trained("a video outside of its shard", entry(name="../../swim/a.mp4"), WRONG),
    trained("a video of 2^62 bytes", video(size=2**62), WRONG),
    trained("a video before its shard", video(offset=-1), WRONG),
    trained("a video beyond its shard", video(offset=2**62), DAMAGED),
    trained("a label that is text", clip(label="0"), WRONG),
    trained("a split of its own", clip(split="all"), WRONG),
    trained("a foreign tar", put("shards/more.tar", b""), r"shards/more\.tar is no shard of this set: move it .*"),
    trained("a tar of zeros", lambda folder: put(TAR, bytes((folder / TAR).stat().st_size))(folder), DAMAGED),
    trained("a tar that is empty", put(TAR, b""), DAMAGED),
    trained("a tar that is a FIFO", instead(TAR, os.mkfifo), r"shards/clips-000000\.tar/swim/a\.mp4 .*"),
    written("no part", ["out", "--shard", "0/3"], r"shard must be i/n with i from 1 to n, such as 2/4, not '0/3'"),
    written("no size", ["out", "--shard-gb", "nan"], r"shard_gb must lie in \[0\.000001, 1000\], not nan"),
    written("a file", ["videos/swim/a.mp4"], r"videos/swim/a\.mp4 is a file, but it must be a folder"),
    written("other shards", ["shards", "--shard-gb", "0.5"], r"shards holds shards of other videos, .*"),
    written("no cache", ["out", "--flow-cache", "videos"], r"no flow cache at videos: `d3d flow --out FOLDER` .*"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shards_that_are_not_what_was_written_are_refused(case, template, tmp_path):
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    assert_refused(case, tmp_path)
