"""The networks that are probed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from d3d.data import sprite_classes
from d3d.data.sprite_clips import sprite_clips
from d3d.probing.networks import load_arm_network
from d3d.s3dg import checkpoints
from d3d.s3dg.checkpoints import save_checkpoint
from d3d.s3dg.network import s3dg
from d3d.study import plan, records
from d3d.study.parameters import DataConfig
from d3d.study.schema import make
from d3d.train.evaluate import predict
from tests import configs


def test_arms_get_their_checkpoints_and_arms_without_one_are_skipped(tmp_path, capsys):
    clips = sprite_clips(configs.data(frames=4, size=16), "train/0", 32)
    classes = tuple(c.name for c in sprite_classes.CLASSES)
    save_checkpoint(plan.weights_path(tmp_path, "rgb", 0), s3dg(16, width=0.1, seed=1), stream="rgb", classes=classes)
    (rgb, stream), (tuned, _), (random, _) = (
        load_arm_network(tmp_path, arm, 0, width=0.1, calibration_clips=clips) for arm in ("rgb", "tuned", "random")
    )
    assert stream == "rgb"
    assert all(torch.equal(a, b) for a, b in zip(rgb.parameters(), tuned.parameters(), strict=True))
    assert not torch.equal(rgb.Conv2d_0c_1x1.weight, random.Conv2d_0c_1x1.weight)
    assert load_arm_network(tmp_path, "d3d", 0, width=0.1, calibration_clips=clips) is None
    assert f"d3d: no weights at {tmp_path}/distill/d3d-seed0.safetensors, skipped" in capsys.readouterr().out


@pytest.mark.parametrize("arm", ["d3d", pytest.param("rgb", marks=pytest.mark.slow)])
def test_committed_networks_reach_the_accuracy_of_their_records(arm):
    """On the first 64 of the 4,000 clips of iid that the record is about, within four standard errors."""
    path = Path(plan.weights_path("results/portable", arm, 0))
    (record,) = (r for r in records.read_all("results/portable.jsonl", [path.parent.name]) if r.arm == arm)
    clips = sprite_clips(make(DataConfig, record.params), "iid", 64)
    model, about = checkpoints.load_checkpoint(path)
    accuracy = (predict(model, clips, about.stream).argmax(1) == clips.labels.numpy()).mean()
    assert accuracy == pytest.approx(record.metrics["iid/top1"], abs=4 * np.sqrt(0.25 / 64))


def test_committed_weights_are_small():
    paths = [Path(plan.weights_path("results/portable", arm, 0)) for arm in ("rgb", "flow", "d3d")]
    assert sum(path.stat().st_size for path in paths) < 3_000_000
