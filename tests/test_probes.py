"""Probes on features whose content is known."""

import numpy as np
import pytest
import torch

from d3d import probes
from d3d.datasets import DataConfig, load
from d3d.s3dg import s3dg
from d3d.sprites import CLASSES, SpriteConfig, render


@pytest.fixture(scope="module")
def tables():
    config = SpriteConfig(size=16, frames=16, rho=0.0)
    return render(config, "train/0", range(400)).table, render(config, "iid", range(200)).table


def features(table, columns, noise=0.0):
    x = table[columns].to_numpy()
    rng = np.random.default_rng(len(table))
    # Any invertible mixture holds the same, linearly.
    mixed = np.hstack([x, rng.normal(size=(len(x), 3))]) @ np.random.default_rng(0).normal(size=(x.shape[1] + 3, 12))
    return mixed + noise * rng.normal(size=mixed.shape)


def test_what_is_linearly_there_is_found(tables):
    columns = ["velocity_x", "velocity_y", "angular_velocity"]
    scores = probes.linear(*(features(t, columns) for t in tables), *tables)
    assert scores["velocity/r2"] > 0.99
    assert scores["velocity/r2_within"] > 0.95
    assert scores["rotation/r2"] > 0.99
    assert scores["velocity/selectivity"] > 0.3
    assert scores["hue/r2"] < 0.1
    assert scores["size/r2"] < 0.1


def test_naming_the_class_is_not_knowing_motion_within_it(tables):
    one_hot = [np.eye(len(CLASSES))[t["label"]] for t in tables]
    scores = probes.linear(*one_hot, *tables)
    assert scores["rotation/r2"] > 0.7
    assert scores["rotation/r2_within"] < 0.05
    assert scores["velocity/r2_within"] < 0.05
    assert scores["expansion/r2_within"] < 0.05


def test_noise_knows_nothing(tables):
    rng = np.random.default_rng(1)
    scores = probes.linear(rng.normal(size=(400, 8)), rng.normal(size=(200, 8)), *tables)
    assert all(value < 0.1 for name, value in scores.items() if name.endswith(("r2", "r2_within")))


def test_more_features_than_clips_do_not_fool_the_probe(tables):
    """Where class means are removed, leaving out one clip at a time leaks it: the penalty must not fall for that."""
    rng = np.random.default_rng(2)
    scores = probes.linear(rng.normal(size=(400, 700)), rng.normal(size=(200, 700)), *tables)
    assert all(-0.2 < value < 0.1 for name, value in scores.items() if name.endswith(("r2", "r2_within")))
    assert scores["motion/r2_within"] == pytest.approx(
        np.mean([scores[f"{name}/r2_within"] for name in ("velocity", "rotation", "expansion")])
    )


def test_the_control_task_costs_a_probe_that_names_the_kind(tables):
    kinds = sorted({*(tables[0]["class"] + tables[0]["family"]), *(tables[1]["class"] + tables[1]["family"])})
    named = [np.eye(len(kinds))[[kinds.index(k) for k in t["class"] + t["family"]]] for t in tables]
    scores = probes.linear(*named, *tables)
    assert scores["rotation/r2"] > 0.4
    assert scores["rotation/selectivity"] < 0.1


def test_features_are_means_over_time_and_quadrants():
    clips = load(DataConfig(frames=4, size=32, train_clips=16, test_clips=16), seed=0).splits["iid"]
    model = s3dg(16, width=0.1).eval()
    found = probes.pooled(model, clips, "rgb", ["Conv2d_1a_7x7", "Mixed_5c"], batch_size=3)
    with torch.no_grad():
        x = model.endpoints(clips.inputs("rgb", slice(None)), ["Conv2d_1a_7x7"])["Conv2d_1a_7x7"]
    corner = x[:, :, :, :8, :8].mean((2, 3, 4))
    assert np.allclose(found["Conv2d_1a_7x7"].reshape(16, -1, 4)[:, :, 0], corner, atol=1e-5)
    assert found["Mixed_5c"].shape == (16, model.endpoint_info["Mixed_5c"].channels)


def test_flat_names():
    assert probes.flat({"Mixed_4f": {"hue/r2": 0.5}}) == {"Mixed_4f/hue/r2": 0.5}


def test_probes_need_two_clips_a_class():
    with pytest.raises(ValueError, match="test_clips must be at least 32, two a class, not 16"):
        probes.ProbeConfig(test_clips=16)
