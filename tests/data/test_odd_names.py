"""Files whose names are any bytes, below a relative root: checked, listed, in a flow cache, and as clips."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest

from d3d.data.command import main
from d3d.data.load import load
from d3d.data.video_sets import _hold_out
from d3d.flow.cache import FlowSpec, fields_path, refusals, summary
from d3d.flow.extract import extract
from d3d.study.parameters import ClipConfig, DataConfig, FilesConfig, FlowConfig
from d3d.video.tables import read_table
from tests.video import test_odd_files
from tests.video.test_odd_files import RATE, encode

# Hidden files are no part of a set.
NAMES = [name for name in test_odd_files.NAMES if not name.startswith(b".")]
SPEC = FlowSpec(fps=RATE, short_side=16, bound=5)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two classes of files with odd names; the working folder is their root's parent."""
    monkeypatch.chdir(tmp_path)
    encode("plain.mkv", [i / RATE for i in range(4)], "ffv1", size=(24, 16))
    for folder in ("odd:class", "b\udcff"):
        os.makedirs(os.path.join("videos", folder))
        for name in NAMES:
            shutil.copy("plain.mkv", os.path.join("videos", folder, os.fsdecode(name)))
    os.remove("plain.mkv")
    return "videos"


def test_a_table_has_the_names_that_were_checked(root, tmp_path, capsys):
    damaged = os.path.join(root, "odd:class", "damaged\n\udcfe.mkv")
    with open(damaged, "wb") as file:
        file.write(b"no video")
    main(["--dataset", "folder", "--root", root, "--out", "lists/table.csv"])
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{2 * len(NAMES) + 1} listed, {2 * len(NAMES) + 1} found, 0 missing, 1 unreadable"
    assert "damaged\\n\\xfe.mkv cannot be opened as a video" in out
    listing = read_table("lists/table.csv")
    paths = {os.path.join(root, folder, os.fsdecode(name)) for folder in ("odd:class", "b\udcff") for name in NAMES}
    assert {os.path.relpath(path) for path in listing.table["path"]} == paths
    assert not listing.missing
    assert set(listing.classes) == {"odd:class", "b\udcff"}
    # The same from another folder.
    os.chdir(tmp_path / "lists")
    assert len(read_table("table.csv").table) == len(paths)


def test_blanks_that_are_not_part_of_a_name_are_ignored(root):
    shutil.copy(f"{root}/odd:class/-e.mkv", f"{root}/odd:class/end.mkv ")
    with open("table.csv", "w") as file:
        file.write("class, path, label, split\n")
        file.write(f"a, {root}/odd:class/-e.mkv , 0, train\nb,{root}/odd:class/end.mkv , 1, train\n")
    listing = read_table("table.csv")
    assert [os.path.basename(path) for path in listing.table["path"]] == ["-e.mkv", "end.mkv "]


def test_a_missing_name_can_be_printed(root, capsys):
    with open("table.csv", "wb") as file:
        file.write(b"path,class,label,split\nvideos/odd:class/-e.mkv,a,0,train\n\xff.mkv,a,0,train\n")
    main(["--dataset", "table", "--root", "table.csv"])
    assert "missing: \\xff.mkv" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("start", ["inf", "1e308", "nan", "-1"])
def test_a_start_that_no_film_has_is_named(root, start):
    with open("table.csv", "w") as file:
        file.write(f"path,class,label,split,start\n{root}/odd:class/-e.mkv,a,0,train,{start}\n")
    with pytest.raises(ValueError, match=r"table.csv, line 2: .* expected seconds, a start from 0 on before its end"):
        read_table("table.csv")


def test_flow_and_clips_of_any_name(root):
    lines = []
    videos = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]
    extract(videos, root, "a:cache", SPEC, report=lines.append)
    assert summary("a:cache")["videos"] == len(videos) == 2 * len(NAMES)
    assert not refusals("a:cache")
    assert all(fields_path("a:cache", root, video).is_file() for video in videos)
    files = FilesConfig(dataset="folder", root=root, fps=RATE, short_side=16)
    config = DataConfig(clip=ClipConfig(frames=4, size=16), flow=FlowConfig(flow_cache="a:cache", bound=5), files=files)
    data = load(config, seed=0, streams=("rgb", "flow"), workers=1)
    assert not data.refused
    count = 0
    for clips in data.splits.values():
        (batch,) = clips.batches([(np.arange(len(clips)), ())], ("rgb", "flow"))
        count += len(batch.labels)
    assert count == len(videos)


def test_a_name_that_begins_with_two_dots_lies_below_its_root(tmp_path):
    assert fields_path("cache", tmp_path, tmp_path / "..f.mkv").name == "..f.mkv.mkv"
    with pytest.raises(ValueError, match="does not lie below root"):
        fields_path("cache", tmp_path / "root", tmp_path / "f.mkv")


def test_an_unexpected_error_names_the_video(root, monkeypatch):
    def fail(*_):
        raise ValueError("all input arrays must have the same shape")

    monkeypatch.setattr("d3d.flow.extract.tvl1", fail)
    with pytest.raises(RuntimeError, match=r"videos/\S*-e.mkv could not be computed: ValueError: all input arrays"):
        extract([f"{root}/odd:class/-e.mkv"], root, "cache", SPEC, report=lambda _: None)


def test_the_split_of_plain_names_is_what_it_was():
    """Names that are text keep their place, whatever other bytes names may have."""
    table = pd.DataFrame({"path": [f"a/{i}.mp4" for i in range(10)], "label": 0})
    assert [i for i, split in enumerate(_hold_out(table)) if split == "test"] == [2, 3]
