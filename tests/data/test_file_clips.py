"""Views of video files: both streams see the same frames and pixels, in any number of workers; and damaged files."""

import math
import os
import signal
from dataclasses import replace

import av
import numpy as np
import pandas as pd
import pytest
import torch

from d3d.data.file_clips import FileClips
from d3d.data.views import ViewSpec
from d3d.flow.cache import FieldsWriter
from d3d.video.decode import VideoError
from tests.video.test_decode import noise_video

HEIGHT, WIDTH, FRAMES = 20, 30, 24
VIEW = ViewSpec(frames=8, size=12, fps=25, short_side=HEIGHT, bound=20)


def write(folder, name, frames=FRAMES):
    """Writes a lossless video and its flow fields, whose values encode their position; returns its row of a table.

    Red is 5 times the frame number, green 7 times the column, blue 11 times the row; the flow's x is the frame number,
    its y 3 times the column.
    """
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    path = folder / f"{name}.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        for i in range(frames):
            image = np.stack([np.full_like(rows, 5 * i), 7 * columns, 11 * rows], -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    fields = np.stack([np.concatenate([np.full_like(rows, 128 + i), 128 + 3 * columns]) for i in range(frames - 1)])
    with FieldsWriter(folder / f"{name}.fields.mkv", 25) as writer:
        writer.add(fields.astype(np.uint8))
    return {"path": str(path), "flow": str(folder / f"{name}.fields.mkv"), "start": 0.0, "end": math.nan} | {
        "seconds": frames / 25,
        "height": HEIGHT,
        "width": WIDTH,
    }


def file_clips(rows, **overrides):
    table = pd.DataFrame(rows)
    options = {"view": VIEW, "workers": 0} | overrides
    return FileClips(table=table, labels=torch.arange(len(table)), **options)


def decode_values(batch):
    """Returns what the pixels of a batch encode, each (B, T, 12, 12).

    Frame number, column and row from RGB, then frame number and column from the flow.
    """
    rgb, flow = (batch.inputs[stream] for stream in ("rgb", "flow"))
    assert rgb.shape[1:] == (3, 8, 12, 12)
    assert flow.shape[1:] == (2, 8, 12, 12)
    frame, column, row = (rgb[:, c] * 255 / factor for c, factor in enumerate((5, 7, 11)))
    return frame, column, row, flow[:, 0] * 127, flow[:, 1] * 127 / 3


def read(clips, seeds=((),), streams=("rgb", "flow")):
    """Returns one batch of all clips per entry of `seeds`."""
    rows = np.arange(len(clips))
    return list(clips.batches([(rows, entry) for entry in seeds], streams))


@pytest.fixture
def one_clip(tmp_path):
    return file_clips([write(tmp_path, "a")])


def test_the_default_test_view_is_the_middle(one_clip):
    (batch,) = read(one_clip)
    frame, column, row, flow_frame, flow_column = decode_values(batch)
    assert frame[0, :, 0, 0].tolist() == pytest.approx(list(range(8, 16)), abs=1e-3)
    assert column[0, 0, 0].tolist() == pytest.approx(list(range(9, 21)), abs=1e-3)
    assert row[0, 0, :, 0].tolist() == pytest.approx(list(range(4, 16)), abs=1e-3)
    # The last field is repeated: the next would depend on a frame that RGB does not show.
    assert flow_frame[0, :, 0, 0].tolist() == pytest.approx([8, 9, 10, 11, 12, 13, 14, 14], abs=1e-3)
    assert torch.allclose(flow_column, column, atol=1e-3)


def test_training_views_are_the_same_for_both_streams(one_clip):
    views = set()
    for batch in read(one_clip, [(3, epoch) for epoch in range(40)]):
        frame, column, _, flow_frame, flow_column = decode_values(batch)
        first = round(frame[0, 0, 0, 0].item())
        mirrored = column[0, 0, 0, 0] > column[0, 0, 0, 1]
        assert frame[0, :, 5, 5].tolist() == pytest.approx(list(range(first, first + 8)), abs=1e-3)
        sign = -1 if mirrored else 1
        expected = [sign * n for n in (*range(first, first + 7), first + 6)]
        assert flow_frame[0, :, 5, 5].tolist() == pytest.approx(expected, abs=1e-3)
        assert torch.allclose(flow_column, column, atol=1e-3)
        views.add((first, bool(mirrored), round(column.min().item())))
    assert {mirrored for _, mirrored, _ in views} == {True, False}
    assert {first for first, _, _ in views} >= {0, 16} or len({first for first, _, _ in views}) > 10
    assert len({left for _, _, left in views}) > 8


def test_a_view_depends_on_its_seeds_and_row_alone(tmp_path):
    rows = [write(tmp_path, name) for name in "abcd"]
    seeds = [(5, 0), (5, 1)]
    without_workers = read(file_clips(rows), seeds)
    with_workers = read(file_clips(rows, workers=2), seeds)
    for a, b in zip(without_workers, with_workers, strict=True):
        assert torch.equal(a.index, b.index)
        assert all(torch.equal(a.inputs[s], b.inputs[s]) for s in ("rgb", "flow"))
    requests = [(np.array([2]), (5, 1))]
    (single,) = file_clips(rows).batches(requests, ("rgb",))
    assert torch.equal(single.inputs["rgb"][0], without_workers[1].inputs["rgb"][2])
    assert not torch.equal(without_workers[0].inputs["rgb"], without_workers[1].inputs["rgb"])


def test_test_views_are_spaced_evenly(one_clip):
    view = ViewSpec(frames=8, size=12, fps=25, short_side=HEIGHT, bound=20, clips=3, crops=3)
    clips = file_clips([*one_clip.table.to_dict("records")], view=view)
    (batch,) = clips.batches([(np.array([0]), ())], ("rgb",))
    assert batch.index.tolist() == [0] * 9
    rgb = batch.inputs["rgb"] * 255
    assert (rgb[:, 0, 0, 0, 0] / 5).round().tolist() == [0, 0, 0, 8, 8, 8, 16, 16, 16]
    assert (rgb[:, 1, 0, 0, 0] / 7).round().tolist() == [0, 9, 18] * 3
    assert (rgb[:, 2, 0, 0, 0] / 11).round().tolist() == [4] * 9


def test_a_short_video_is_looped_and_flow_never_jumps_back(tmp_path):
    (batch,) = read(file_clips([write(tmp_path, "short", frames=3)]))
    frame, _, _, flow_frame, _ = decode_values(batch)
    assert frame[0, :, 0, 0].round().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    # There is no motion from the last frame to the first: the field before is repeated.
    assert flow_frame[0, :, 0, 0].round().tolist() == [0, 1, 1, 0, 1, 1, 0, 0]


def test_a_video_shorter_than_its_header_says_yields_its_last_frames(tmp_path):
    row = write(tmp_path, "a") | {"seconds": (FRAMES + 2) / 25}
    view = ViewSpec(frames=8, size=12, fps=25, short_side=HEIGHT, bound=20, clips=2)
    frame, _, _, flow_frame, _ = decode_values(read(file_clips([row], view=view))[0])
    assert frame[1, :, 0, 0].round().tolist() == list(range(16, 24))
    assert flow_frame[1, :, 0, 0].round().tolist() == [*range(16, 23), 22]


def test_a_segment_of_a_file(tmp_path):
    row = write(tmp_path, "a") | {"start": 5 / 25, "end": 14 / 25}
    view = ViewSpec(frames=8, size=12, fps=25, short_side=HEIGHT, bound=20, clips=2)
    frame, _, _, flow_frame, _ = decode_values(read(file_clips([row], view=view))[0])
    assert frame[:, 0, 0, 0].round().tolist() == [5, 6]
    assert flow_frame[:, 0, 0, 0].round().tolist() == [5, 6]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_skipped_and_named_or_raises(tmp_path, workers):
    rows = [write(tmp_path, name) for name in "abc"]
    path = noise_video(tmp_path / "damaged.avi", "mpeg4")
    content = bytearray(path.read_bytes())
    content[len(content) // 3 :: 50] = bytes(len(content[len(content) // 3 :: 50]))
    path.write_bytes(content)
    rows[1] |= {"path": str(path), "seconds": 1.6}
    clips = file_clips(rows, workers=workers)
    (batch,) = read(clips, streams=("rgb",))
    assert batch.index.tolist() == [0, 2]
    assert batch.inputs["rgb"].shape[0] == 2
    assert list(clips.refused) == [str(path)]
    assert "damaged" in clips.refused[str(path)]
    with pytest.raises(VideoError, match=r"damaged.avi is damaged"):
        read(file_clips(rows, workers=workers, damaged="raise"), streams=("rgb",))


class KillsTheProcess(str):
    """A path that kills the process which opens it, as a crashing codec would."""

    def __str__(self):
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


class EndsTheProcess(str):
    """A path that ends the worker to which it is sent, before the worker reads a file."""

    def __reduce__(self):
        return os._exit, (1,)


def with_path(clips, row, kind):
    paths = clips.table["path"].astype(object)
    paths[row] = kind(paths[row])
    return replace(clips, table=clips.table.assign(path=paths))


def test_the_file_that_killed_a_worker_is_named(tmp_path):
    clips = file_clips([write(tmp_path, name) for name in "abcd"], workers=2)
    with pytest.raises(ChildProcessError, match=r"a worker process died while it read \S*c.mkv: "):
        read(with_path(clips, 2, KillsTheProcess), streams=("rgb",))


def test_a_worker_that_dies_before_it_reads_names_no_file(tmp_path):
    clips = file_clips([write(tmp_path, "a")], workers=1)
    with pytest.raises(ChildProcessError, match=r"a worker process died before it read a file; .* fewer workers$"):
        read(with_path(clips, 0, EndsTheProcess), streams=("rgb",))


def test_a_clip_of_one_frame_has_no_flow(tmp_path):
    row = write(tmp_path, "a") | {"end": 1 / 25}
    clips = file_clips([row])
    (batch,) = read(clips, streams=("flow",))
    assert len(batch.index) == 0
    reason = clips.refused[row["path"]]
    assert reason.startswith(f"{row['path']} has fewer than two frames from 0 s on at 25 fps")
    assert "use a higher fps" in reason
    # At 50 fps it has two frames and one field.
    (batch,) = read(file_clips([row], view=replace(VIEW, fps=50)), streams=("flow",))
    assert len(batch.index) == 1
