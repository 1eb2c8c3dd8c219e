"""Sets of videos in memory: the same views as decoded from files, what they take, and what is refused."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from d3d.data import memory
from d3d.data.file_clips import FileClips
from d3d.data.load import load
from d3d.data.views import ViewSpec
from d3d.flow.cache import FlowSpec
from d3d.flow.extract import extract
from d3d.video.decode import VideoError
from tests import configs
from tests.data.test_file_clips import HEIGHT, VIEW, write
from tests.video.official import folder as make_folder
from tests.video.test_decode import noise_video, write_video

SILENT = partial(lambda line: None)


def table_of(tmp_path):
    """Clips of several lengths, one shorter than a view, and a part of a file."""
    rows = [write(tmp_path, "a"), write(tmp_path, "b", frames=9), write(tmp_path, "short", frames=3)]
    rows.append(rows[0] | {"start": 5 / 25, "end": 18 / 25})
    return pd.DataFrame(rows)


def both(table, view=VIEW, streams=("rgb", "flow")):
    """The same clips decoded as they are needed and in memory."""
    labels = torch.arange(len(table))
    kept = memory.decode_all(table, view, device="cpu", workers=0, report=SILENT)
    if "flow" in streams:
        kept = memory.add_flow(kept, np.arange(len(table)), table, view, workers=0, report=SILENT)
    assert not kept.refused
    files = FileClips(table=table, labels=labels, view=view, workers=0)
    return files, kept.clips(np.arange(len(table)), table, labels, view)


def same(a, b):
    return torch.equal(a.index, b.index) and all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)


@pytest.mark.parametrize("view", [VIEW, ViewSpec(frames=5, size=16, fps=10, short_side=18, bound=3, clips=3, crops=3)])
def test_views_in_memory_equal_those_of_files(tmp_path, view):
    table = table_of(tmp_path)
    if view.short_side != HEIGHT:  # the fields of `write` have the size of its frames
        table = table.drop(columns="flow")
    streams = ("rgb", "flow") if "flow" in table else ("rgb",)
    files, kept = both(table, view, streams)
    rows = np.array([3, 0, 2, 1])
    requests = [(rows, seeds) for seeds in [(), *((7, 0, epoch) for epoch in range(12))]]
    mirrored = set()
    for a, b in zip(files.batches(requests, streams), kept.batches(requests, streams), strict=True):
        assert same(a, b)
        mirrored |= {bool(x) for x in a.inputs["rgb"][:, 1, 0, 0, 0] > a.inputs["rgb"][:, 1, 0, 0, 1]}
    assert mirrored == {True, False}


def test_a_partner_s_view_is_the_one_that_it_has_itself(tmp_path):
    files, kept = both(table_of(tmp_path))
    partners = np.array([2, 0, 3, 1])
    rows, seeds = np.array([1, 3, 0]), (5, 0, 2)
    (own,) = kept.batches([(partners[rows], seeds)], ("flow",))
    for clips in (files, kept):
        (batch,) = clips.with_partners(partners).batches([(rows, seeds)], ("rgb", "partner_flow"))
        assert batch.index.tolist() == rows.tolist()
        assert torch.equal(batch.inputs["partner_flow"], own.inputs["flow"])
        (alone,) = clips.batches([(rows, seeds)], ("rgb",))
        assert torch.equal(batch.inputs["rgb"], alone.inputs["rgb"])
        tests = clips.with_partners(partners).batches([(rows, ())], ("rgb", "partner_flow"))
        assert next(tests).inputs["partner_flow"].shape == (3, 2, 8, 12, 12)


def test_an_unreadable_partner_leaves_the_clip_out_and_is_named(tmp_path):
    files, _ = both(table_of(tmp_path))
    files.table.loc[2, "flow"] = str(tmp_path / "absent.mkv")
    clips = files.with_partners(np.array([2, 0, 3, 1]))
    (batch,) = clips.batches([(np.array([0, 1]), (1,))], ("rgb", "partner_flow"))
    assert batch.index.tolist() == [1]
    assert list(files.refused) == [files.table["path"][2]]


def test_tvl1_in_memory_equals_that_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("d3d.data.video_sets.cores", lambda: 0)  # without worker processes
    root = tmp_path / "videos"
    make_folder(root, lambda path, label, index: noise_video(path, "mpeg4"), each=3)
    options = {"dataset": "folder", "root": str(root), "frames": 4, "size": 32, "fps": 5.0, "bound": 3.0}
    extract(sorted(root.rglob("*.mp4")), root, tmp_path / "flow", FlowSpec(fps=5, short_side=32, bound=3))
    loaded = {
        name: load(configs.data(**options, **more), seed=0, streams=("flow",), workers=0, report=SILENT)
        for name, more in {
            "decoded": {"memory": "no", "flow_cache": str(tmp_path / "flow")},
            "cached": {"memory": "yes", "flow_cache": str(tmp_path / "flow")},
            "computed": {"memory": "yes"},
        }.items()
    }
    for split in ("train", "folder/test"):
        rows = np.arange(len(loaded["decoded"].splits[split]))
        batches = {n: next(data.splits[split].batches([(rows, (3, 0, 1))], ("flow",))) for n, data in loaded.items()}
        assert same(batches["decoded"], batches["cached"])
        assert same(batches["decoded"], batches["computed"])
    assert batches["decoded"].inputs["flow"].abs().max() > 0


def test_the_memory_is_stated_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 3e9)
    lines = []
    keep = partial(memory.keep_in_memory, num_clips=5, device="cpu", report=lines.append)
    assert keep("auto", required=1_400_000_000)
    assert not keep("auto", required=1_600_000_000)
    assert keep("yes", required=1_600_000_000)
    assert not keep("no", required=1)
    assert lines[0] == "5 clips take 1.40 GB, cpu has 3.00 GB free: they are decoded once and kept"
    assert lines[1].endswith("too little to keep them, so they are decoded in every epoch")
    assert len(lines) == 3
    with pytest.raises(
        ValueError, match=r"memory 'yes': 5 clips take 3.10 GB, cpu has 3.00 GB free: use a smaller sho"
    ):
        keep("yes", required=3_100_000_000)


def test_the_memory_required_is_the_memory_taken(tmp_path):
    table = table_of(tmp_path)
    _, kept = both(table)
    sizes = kept.sizes
    assert sizes.tolist() == [[24, 20, 30], [9, 20, 30], [3, 20, 30], [13, 20, 30]]
    taken = sum(x.numel() for x in kept.pixels.values())
    assert taken == memory.required_bytes(sizes, np.ones(4, dtype=bool)) == 49 * 600 * 5
    assert 10**8 < memory.free_bytes("cpu") < 10**14


def test_files_that_cannot_be_decoded_are_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr("d3d.data.video_sets.cores", lambda: 0)
    root = tmp_path / "videos"
    make_folder(root, lambda path, label, index: noise_video(path, "mpeg4"))
    damaged = root / "swim" / "swim0.mp4"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3 : len(content) // 2 : 50] = bytes(
        len(content[len(content) // 3 : len(content) // 2 : 50])
    )
    damaged.write_bytes(content)
    options = {"dataset": "folder", "root": str(root), "frames": 4, "size": 32, "memory": "yes"}
    data = load(configs.data(**options), seed=0, workers=0, report=SILENT)
    assert list(data.refused) == [str(damaged)]
    assert "is damaged" in data.refused[str(damaged)]
    paths = [path for clips in data.splits.values() for path in clips.table["path"]]
    assert len(paths) == 11
    assert str(damaged) not in paths
    with pytest.raises(VideoError, match=r"swim0.mp4 is damaged"):
        load(configs.data(**options, damaged="raise"), seed=0, workers=0, report=SILENT)


@pytest.mark.parametrize("cached", [True, False])
def test_a_clip_of_one_frame_has_no_flow(tmp_path, cached):
    table = table_of(tmp_path)
    table.loc[2, "end"] = 1 / 25
    table = table if cached else table.drop(columns="flow")
    kept = memory.decode_all(table, VIEW, device="cpu", workers=0, report=SILENT)
    kept = memory.add_flow(kept, np.arange(4), table, VIEW, workers=0, report=SILENT)
    assert list(kept.refused) == [2]
    assert kept.refused[2].startswith(f"{table['path'][2]} has fewer than two frames from 0 s on at 25 fps; flow needs")


def test_repeated_frames_can_be_dropped(tmp_path):
    """A video at 10 frames per second of which every third frame is shown twice."""
    shown = [t for t in range(12) for _ in range(2 if t % 3 == 2 else 1)]
    path = tmp_path / "a.mkv"
    write_video(path, [20 * t for t in shown])
    row = {"path": str(path), "start": 0.0, "end": np.nan, "seconds": 1.6, "fps": 10.0, "height": 32, "width": 48}
    sizes = {}
    for fps, repeats in [(10, "keep"), (10, "drop"), (5, "drop")]:
        view = ViewSpec(frames=4, size=16, fps=fps, short_side=32, bound=3, repeats=repeats)
        kept = memory.decode_all(pd.DataFrame([row]), view, device="cpu", workers=0, report=SILENT)
        frames = kept.stores["rgb"].clip(0, kept.sizes[0])
        sizes[fps, repeats] = (frames[:, 0, 0, 0].float() / 20).round().int().tolist()
    assert sizes[10, "keep"] == shown
    assert sizes[10, "drop"] == list(range(12))
    assert sizes[5, "drop"] == list(range(0, 12, 2))
    for options, message in [
        ({"memory": "no"}, "repeated_frames 'drop' needs memory 'yes' or 'auto'"),
        ({"flow_cache": "flow"}, "repeated_frames 'drop' needs an empty flow_cache"),
    ]:
        with pytest.raises(ValueError, match=message):
            configs.data(dataset="folder", root="x", repeated_frames="drop", **options)
