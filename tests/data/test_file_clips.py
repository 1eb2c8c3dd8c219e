"""Views of clips in files: the same frames and pixels for both streams, whoever reads them; and what goes wrong."""

import math
import os
import signal

import av
import numpy as np
import pandas as pd
import pytest
import torch

from d3d.data.file_clips import FileClips, View
from d3d.flow.cache import FieldsWriter
from d3d.video.decode import VideoError
from tests.video.test_decode import noise_video

HEIGHT, WIDTH, FRAMES = 20, 30, 24
VIEW = View(frames=8, size=12, fps=25, short_side=HEIGHT, bound=20)


def write(folder, name, frames=FRAMES):
    """Lossless frames whose red is 5 times their number, green 7 times the column and blue 11 times the row, and fields
    whose x is the number of their frame and whose y is 3 times the column, above no motion."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    path = folder / f"{name}.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        for i in range(frames):
            picture = np.stack([np.full_like(rows, 5 * i), 7 * columns, 11 * rows], -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    fields = np.stack([np.concatenate([np.full_like(rows, 128 + i), 128 + 3 * columns]) for i in range(frames - 1)])
    with FieldsWriter(folder / f"{name}.fields.mkv", 25) as writer:
        writer.add(fields.astype(np.uint8))
    return {"path": str(path), "flow": str(folder / f"{name}.fields.mkv"), "start": 0.0, "end": math.nan} | {
        "seconds": frames / 25
    }


def file_clips(rows, **changes):
    table = pd.DataFrame(rows)
    given = {"view": VIEW, "workers": 0} | changes
    return FileClips(table=table, labels=torch.arange(len(table)), **given)


def decoded(batch):
    """Numbers, columns and rows of the frames, numbers and columns of the fields, each (B, T, 12, 12), of a batch."""
    rgb, flow = (batch.inputs[stream] for stream in ("rgb", "flow"))
    assert rgb.shape[1:] == (3, 8, 12, 12)
    assert flow.shape[1:] == (2, 8, 12, 12)
    red, green, blue = (rgb[:, c] * 255 / by for c, by in enumerate((5, 7, 11)))
    return red, green, blue, flow[:, 0] * 127, flow[:, 1] * 127 / 3


def read(clips, draws=((),), streams=("rgb", "flow")):
    rows = np.arange(len(clips))
    return list(clips.batches([(rows, draw) for draw in draws], streams))


@pytest.fixture
def one(tmp_path):
    return file_clips([write(tmp_path, "a")])


def test_a_test_view_is_the_middle(one):
    (batch,) = read(one)
    red, green, blue, number, column = decoded(batch)
    assert red[0, :, 0, 0].tolist() == pytest.approx(list(range(8, 16)), abs=1e-3)
    assert green[0, 0, 0].tolist() == pytest.approx(list(range(9, 21)), abs=1e-3)
    assert blue[0, 0, :, 0].tolist() == pytest.approx(list(range(4, 16)), abs=1e-3)
    # The last field would show a frame that RGB lacks.
    assert number[0, :, 0, 0].tolist() == pytest.approx([8, 9, 10, 11, 12, 13, 14, 14], abs=1e-3)
    assert torch.allclose(column, green, atol=1e-3)


def test_training_views_are_the_same_for_both_streams(one):
    seen = set()
    for batch in read(one, [(3, epoch) for epoch in range(40)]):
        red, green, _, number, column = decoded(batch)
        first = round(red[0, 0, 0, 0].item())
        mirrored = green[0, 0, 0, 0] > green[0, 0, 0, 1]
        assert red[0, :, 5, 5].tolist() == pytest.approx(list(range(first, first + 8)), abs=1e-3)
        sign = -1 if mirrored else 1
        expected = [sign * n for n in (*range(first, first + 7), first + 6)]
        assert number[0, :, 5, 5].tolist() == pytest.approx(expected, abs=1e-3)
        assert torch.allclose(column, green, atol=1e-3)
        seen.add((first, bool(mirrored), round(green.min().item())))
    assert {m for _, m, _ in seen} == {True, False}
    assert {f for f, _, _ in seen} >= {0, 16} or len({f for f, _, _ in seen}) > 10
    assert len({c for _, _, c in seen}) > 8


def test_a_view_is_drawn_by_seed_and_epoch_alone(tmp_path):
    rows = [write(tmp_path, name) for name in "abcd"]
    draws = [(5, 0), (5, 1)]
    alone = read(file_clips(rows), draws)
    together = read(file_clips(rows, workers=2), draws)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.index, b.index)
        assert all(torch.equal(a.inputs[s], b.inputs[s]) for s in ("rgb", "flow"))
    steps = [(np.array([2]), (5, 1))]
    (single,) = file_clips(rows).batches(steps, ("rgb",))
    assert torch.equal(single.inputs["rgb"][0], alone[1].inputs["rgb"][2])
    assert not torch.equal(alone[0].inputs["rgb"], alone[1].inputs["rgb"])


def test_views_for_testing_lie_evenly(one):
    view = View(frames=8, size=12, fps=25, short_side=HEIGHT, bound=20, clips=3, crops=3)
    batches = list(file_clips([*one.table.to_dict("records")], view=view).batches([(np.array([0]), ())], ("rgb",)))
    (batch,) = batches
    assert batch.index.tolist() == [0] * 9
    rgb = batch.inputs["rgb"] * 255
    assert (rgb[:, 0, 0, 0, 0] / 5).round().tolist() == [0, 0, 0, 8, 8, 8, 16, 16, 16]
    assert (rgb[:, 1, 0, 0, 0] / 7).round().tolist() == [0, 9, 18] * 3
    assert (rgb[:, 2, 0, 0, 0] / 11).round().tolist() == [4] * 9


def test_a_short_video_is_looped_and_flow_never_jumps_back(tmp_path):
    (batch,) = read(file_clips([write(tmp_path, "short", frames=3)]))
    red, _, _, number, _ = decoded(batch)
    assert red[0, :, 0, 0].round().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    # From the last frame to the first there is no motion to be seen: the field before is repeated.
    assert number[0, :, 0, 0].round().tolist() == [0, 1, 1, 0, 1, 1, 0, 0]


def test_a_file_that_is_shorter_than_it_says_gives_its_last_frames(tmp_path):
    row = write(tmp_path, "a") | {"seconds": (FRAMES + 2) / 25}
    clips = file_clips([row], view=View(frames=8, size=12, fps=25, short_side=HEIGHT, bound=20, clips=2))
    red, _, _, number, _ = decoded(read(clips)[0])
    assert red[1, :, 0, 0].round().tolist() == list(range(16, 24))
    assert number[1, :, 0, 0].round().tolist() == [*range(16, 23), 22]


def test_a_segment_of_a_file(tmp_path):
    row = write(tmp_path, "a") | {"start": 5 / 25, "end": 14 / 25}
    view = View(frames=8, size=12, fps=25, short_side=HEIGHT, bound=20, clips=2)
    red, _, _, number, _ = decoded(read(file_clips([row], view=view))[0])
    assert red[:, 0, 0, 0].round().tolist() == [5, 6]
    assert number[:, 0, 0, 0].round().tolist() == [5, 6]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_damaged_is_skipped_and_named_or_raised(tmp_path, workers):
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
    assert list(clips.unread) == [str(path)]
    assert "damaged" in clips.unread[str(path)]
    with pytest.raises(VideoError, match=r"damaged.avi is damaged"):
        read(file_clips(rows, workers=workers, damaged="raise"), streams=("rgb",))


class Deadly(float):
    """A start at which the process dies, as it would in a codec that crashes."""

    def __mul__(self, other):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_names_its_file(tmp_path):
    rows = [write(tmp_path, name) for name in "abcd"]
    clips = file_clips(rows, workers=2)
    clips.table["start"] = clips.table["start"].astype(object)
    clips.table.at[2, "start"] = Deadly(0)
    with pytest.raises(ChildProcessError, match=r"a worker process died while it read \S*c.mkv: "):
        read(clips, streams=("rgb",))


def test_a_clip_of_one_frame_has_no_flow(tmp_path):
    row = write(tmp_path, "a") | {"end": 1 / 25}
    clips = file_clips([row])
    (batch,) = read(clips, streams=("flow",))
    assert len(batch.index) == 0
    assert "one frame has no flow" in clips.unread[row["path"]]
