"""Fixed views of video files: pixels, flow, and which fields count."""

import numpy as np
import pytest
import torch

from d3d.data import load as datasets
from d3d.data.clips import Batch
from d3d.data.fixed_views import _leads_to_a_new_frame, fixed_views
from tests import configs
from tests.flow.test_extract import moving_video

TINY = {"dataset": "folder", "frames": 6, "size": 24, "short_side": 32, "fps": 25.0, "bound": 4.0}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two classes of textures that move by one and by two pixels per frame; the shortest has four frames."""
    root = tmp_path_factory.mktemp("videos")
    for label in range(2):
        for i in range(5):
            moving_video(root / f"{label}/{i}.avi", label + 1, frames=4 if i == 0 else 8)
    return root


@pytest.fixture
def data(videos):
    config = configs.data(**TINY, root=str(videos), memory="yes")
    return datasets.load(config, seed=0, streams=("rgb", "flow"), workers=1, report=lambda line: None)


def test_a_fixed_view_is_the_middle_of_the_clip_with_its_flow_in_pixels(data):
    train = data.splits["train"]
    clips = fixed_views(train)
    (batch,) = train.batches([(np.arange(len(train)), ())], ("rgb", "flow"))
    assert clips.size == (6, 24, 24)
    assert torch.equal(clips.labels, train.labels)
    assert torch.equal(clips.inputs("rgb", slice(None)), batch.inputs["rgb"])
    assert torch.allclose(clips.inputs("flow", slice(None)), batch.inputs["flow"], atol=1e-3)
    # The textures move to the right: by one pixel per frame in the first class and by two in the second, at half size.
    speeds = [clips.true_flow[clips.labels == label, 0].float().median().item() for label in range(2)]
    assert speeds[1] == pytest.approx(2 * speeds[0], rel=0.4)
    assert speeds[0] > 0.2


def test_fields_to_repeated_and_looped_frames_do_not_count(data):
    train = data.splits["train"]
    clips = fixed_views(train)
    is_short = torch.from_numpy(train.sizes[:, 0] < 6)
    assert is_short.any()
    # Four frames are looped to six: the fourth field would lead back to the first frame.
    assert clips.mask[is_short][:, :, 0, 0].tolist() == [[True, True, True, False, True, True]] * int(is_short.sum())
    assert clips.mask[~is_short].all()
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 6, 32, 32), np.uint8))
    rgb[:, 3] = rgb[:, 2]
    assert _leads_to_a_new_frame(rgb, 6).tolist() == [True, True, False, True, True, True]


def test_clips_that_cannot_be_read_are_left_out(data, monkeypatch):
    train = data.splits["train"]
    every = fixed_views(train)
    read = type(train).batches

    def without_first(self, requests, streams):
        for batch in read(self, requests, streams):
            yield Batch(batch.index[1:], batch.labels[1:], {name: x[1:] for name, x in batch.inputs.items()})

    monkeypatch.setattr(type(train), "batches", without_first)
    clips = fixed_views(train)
    assert torch.equal(clips.rgb, every.rgb[1:])
    assert torch.equal(clips.labels, every.labels[1:])
    assert clips.table["path"].tolist() == every.table["path"].tolist()[1:]
    monkeypatch.setattr(type(train), "batches", lambda *_: iter(()))
    with pytest.raises(ValueError, match="no clip of a split could be read"):
        fixed_views(train)
