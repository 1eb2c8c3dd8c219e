"""Scene sets: inputs, boxes and labels are those of the rendered scenes, and the flow is what the stream shall see."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from d3d.data.clips import Clips
from d3d.data.scenes import key_frame, render_scenes
from d3d.detection.scene_sets import BATCH, scene_set
from d3d.detection.scoring import frame_map
from d3d.flow.estimate import tvl1_clip
from d3d.study.schema import changed
from tests import configs

EXACT = configs.data(size=16, frames=2, flow="exact", bound=1.0)


def test_the_scenes_of_a_set_are_those_that_are_rendered():
    scenes = scene_set(EXACT, "iid", BATCH + 2)
    rendered = render_scenes(EXACT.clip, "iid", range(BATCH, BATCH + 2))
    rgb = scenes.inputs("rgb", slice(BATCH, None))
    assert torch.allclose(rgb, rendered.rgb, atol=0.5001 / 255)
    assert torch.equal(scenes.key_frames(slice(BATCH, None)), rgb[:, :, key_frame(2)])
    assert torch.equal(scenes.inputs("flow", torch.tensor([BATCH])), rendered.flow[:1].half().float().clamp(-1, 1))
    last = scenes.scene_of_box >= BATCH
    assert np.allclose(scenes.boxes[last].numpy(), rendered.boxes[["x1", "y1", "x2", "y2"]].to_numpy())
    assert scenes.scene_of_box[last].tolist() == rendered.boxes["scene"].tolist()
    assert scenes.labels[last].argmax(1).tolist() == rendered.boxes["label"].tolist()
    assert scenes.labels.sum(1).eq(1).all()


def test_a_network_sees_scenes_as_it_sees_clips():
    scenes = replace(scene_set(EXACT, "iid", 2), bound=0.7)
    clips = Clips(scenes.rgb, scenes.flow, None, None, torch.zeros(2, dtype=torch.int64), scenes.table, 0.7)
    for stream in ("rgb", "flow"):
        assert torch.equal(scenes.inputs(stream, slice(None)), clips.inputs(stream, slice(None)))


def test_tvl1_flow_is_that_of_the_stored_frames_and_cached(tmp_path):
    config = changed(EXACT, flow="tvl1", flow_cache=str(tmp_path))
    scenes = scene_set(config, "iid", 1)
    assert torch.equal(scenes.flow, tvl1_clip(scenes.rgb.float() / 255).half())
    (path,) = tmp_path.glob("*.npy")
    written = path.stat().st_mtime_ns
    assert torch.equal(scene_set(config, "iid", 1).flow, scenes.flow)
    assert path.stat().st_mtime_ns == written
    scene_set(changed(config, amplitude=1.0), "iid", 1)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_the_ground_truth_finds_itself():
    truth = scene_set(EXACT, "iid", 4).ground_truth()
    result = frame_map(truth, truth.assign(score=1.0))
    assert result.mean == 1
    assert result.key_frames == 4


def test_a_set_without_scenes_is_refused():
    with pytest.raises(ValueError, match="count must be at least 1 scene, not 0"):
        scene_set(EXACT, "iid", 0)
