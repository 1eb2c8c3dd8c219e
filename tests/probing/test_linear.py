"""Probes on features whose content is known."""

import numpy as np
import pytest
import torch

from d3d.data.sprite_classes import CLASSES
from d3d.data.sprite_clips import sprite_clips
from d3d.data.sprites import render
from d3d.probing import linear as probes
from d3d.probing import probe
from d3d.s3dg.network import s3dg
from d3d.study.parameters import MAX_SEED
from d3d.study.run import Run
from tests import configs


@pytest.fixture(scope="module")
def tables():
    config = configs.clip(size=16, frames=16, rho=0.0)
    return render(config, "train/0", range(400)).table, render(config, "iid", range(200)).table


def features(table, columns, noise=0.0):
    x = table[columns].to_numpy()
    rng = np.random.default_rng(len(table))
    # Any invertible mixture holds the same, linearly.
    mixed = np.hstack([x, rng.normal(size=(len(x), 3))]) @ np.random.default_rng(0).normal(size=(x.shape[1] + 3, 12))
    return mixed + noise * rng.normal(size=mixed.shape)


def noise_of(rng, width, tables):
    return [probes.Sample(rng.normal(size=(len(t), width)), t) for t in tables]


def test_what_is_linearly_there_is_found(tables):
    columns = ["velocity_x", "velocity_y", "angular_velocity"]
    scores = probes.linear(*(probes.Sample(features(t, columns), t) for t in tables))
    assert scores["velocity/r2"] > 0.99
    assert scores["velocity/r2_within"] > 0.95
    assert scores["rotation/r2"] > 0.99
    assert scores["velocity/selectivity"] > 0.3
    assert scores["hue/r2"] < 0.1
    assert scores["texture/r2"] < 0.1
    assert scores["texture/accuracy"] < 0.6


def test_naming_the_class_is_not_knowing_motion_within_it(tables):
    one_hot = [np.eye(len(CLASSES))[t["label"]] for t in tables]
    scores = probes.linear(*map(probes.Sample, one_hot, tables))
    assert scores["rotation/r2"] > 0.7
    assert scores["rotation/r2_within"] < 0.05
    assert scores["velocity/r2_within"] < 0.05
    assert scores["expansion/r2_within"] < 0.05


def test_noise_knows_nothing(tables):
    rng = np.random.default_rng(1)
    scores = probes.linear(*noise_of(rng, 8, tables))
    assert all(value < 0.1 for name, value in scores.items() if name.endswith(("r2", "r2_within")))


def test_more_features_than_clips_do_not_fool_the_probe(tables):
    """Where class means are removed, leaving out one clip at a time leaks it: the penalty must not fall for that."""
    rng = np.random.default_rng(2)
    scores = probes.linear(*noise_of(rng, 700, tables))
    assert all(-0.2 < value < 0.1 for name, value in scores.items() if name.endswith(("r2", "r2_within")))
    assert scores["motion/r2_within"] == pytest.approx(
        np.mean([scores[f"{name}/r2_within"] for name in ("velocity", "rotation", "expansion")])
    )


def test_the_control_task_costs_a_probe_that_names_the_kind(tables):
    kinds = sorted({*(tables[0]["class"] + tables[0]["family"]), *(tables[1]["class"] + tables[1]["family"])})
    named = [np.eye(len(kinds))[[kinds.index(k) for k in t["class"] + t["family"]]] for t in tables]
    scores = probes.linear(*map(probes.Sample, named, tables))
    assert scores["rotation/r2"] > 0.4
    assert scores["rotation/selectivity"] < 0.1


def test_categories_are_told_by_their_largest_column(tables):
    indicators = [probes.targets(t) for t in tables]
    shape = [probes.Sample(found["shape"], t) for found, t in zip(indicators, tables, strict=True)]
    scores = probes.linear(*shape)
    assert scores["shape/accuracy"] == 1
    assert scores["shape/r2"] > 0.99
    # Six shapes, of which three have two textures each in equal parts: the shape leaves half open.
    assert 0.4 < scores["texture/accuracy"] < 0.8
    assert "shape/accuracy" not in probes.linear(*shape, names=("velocity", "texture"))


def test_what_size_alone_tells_is_no_motion():
    """At a given speed a small sprite grows faster: its radius tells its expansion, and that is not motion."""
    rng = np.random.default_rng(3)
    config = configs.clip(size=64, frames=6, amplitude=0.75)
    tables = [render(config, split, range(960)).table for split in ("train/0", "iid")]
    known = []
    for table in tables:
        by_class = np.eye(len(CLASSES))[table["label"]]
        size = np.hstack([by_class / table[["radius"]].to_numpy(), by_class, by_class * table[["radius"]].to_numpy()])
        known.append(probes.Sample(size + 1e-3 * rng.normal(size=size.shape), table))
    scores = probes.linear(*known)
    assert scores["expansion/r2_within"] > 0.08
    assert scores["expansion/r2_beyond_size"] < 0.03
    told = probes.linear(*(probes.Sample(features(t, ["expansion", "angular_velocity"]), t) for t in tables))
    assert told["expansion/r2_beyond_size"] > 0.6
    parts = [told[f"{name}/r2_beyond_size"] for name in probes.MOTION]
    assert told["motion/r2_beyond_size"] == pytest.approx(np.mean(parts))


def test_time_order_is_told_where_it_is_in_the_features(tables):
    rng = np.random.default_rng(0)
    mixed = [t.assign(in_order=np.arange(len(t)) >= len(t) // 2) for t in tables]
    known = [probes.Sample(t[["in_order"]].to_numpy() + 0.01 * rng.normal(size=(len(t), 1)), t) for t in mixed]
    scores = probes.linear(*known, names=("time_order",))
    assert scores["time_order/accuracy"] == 1
    assert scores["time_order/r2"] > 0.99
    assert set(scores) == {f"time_order/{name}" for name in ("r2", "r2_within", "selectivity", "accuracy")}
    assert probes.linear(*noise_of(rng, 3, mixed), names=("time_order",))["time_order/accuracy"] < 0.65


CONFIG = configs.data(frames=6, size=32, train_clips=64, test_clips=64, flow="exact", noise=0.0)


@pytest.fixture(scope="module")
def sets():
    return probes.probed_sets(CONFIG)


def test_half_of_the_mixed_clips_have_their_frames_shuffled(sets):
    assert torch.equal(sets.test.rgb[32:], sets.test_mixed.rgb[32:])
    assert sets.test_mixed.table["in_order"].tolist() == [False] * 32 + [True] * 32
    frames = [{f.tobytes() for f in clips.rgb[0].transpose(0, 1).numpy()} for clips in (sets.test, sets.test_mixed)]
    assert frames[0] == frames[1]
    assert not torch.equal(sets.test.rgb[:32], sets.test_mixed.rgb[:32])
    assert not torch.equal(sets.test.flow[:32], sets.test_mixed.flow[:32])


def test_no_network_was_trained_on_the_probes_clips(sets):
    assert torch.equal(sets.fit.rgb, sprite_clips(CONFIG, f"train/{MAX_SEED}", 64).rgb)
    with pytest.raises(ValueError, match=rf"seed must lie in \[0, {MAX_SEED - 1}\]"):
        configs.training(seed=MAX_SEED)


def test_features_are_means_over_time_and_space(sets):
    model = s3dg(16, width=0.1).eval()
    found = probes.pooled(model, sets.test, "rgb", ["Conv2d_1a_7x7", "Mixed_5c"])
    with torch.no_grad():
        x = model.endpoints(sets.test.inputs("rgb", slice(None)), ["Conv2d_1a_7x7"])["Conv2d_1a_7x7"]
    assert np.allclose(found["Conv2d_1a_7x7"], x.mean((2, 3, 4)), atol=1e-5)
    assert found["Mixed_5c"].shape == (64, model.endpoint_info["Mixed_5c"].channels)


def test_every_endpoint_that_computes_is_probed(sets):
    model = s3dg(16, width=0.1)
    assert [e for e in model.features if not e.startswith("MaxPool")] == list(probes.ENDPOINTS)
    scores = probes.linear_probes(model, sets, "rgb")
    assert {name.split("/")[0] for name in scores} == set(probes.ENDPOINTS)
    assert {name.split("/")[1] for name in scores} == {*probes.TARGETS, "motion"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"test_clips": 48}, "test_clips must be at least 64, four per class, not 48"),
        ({"decoder_epochs": 0}, "decoder_epochs must be at least 1, not 0"),
        ({"pictures": 999}, r"pictures must lie between 0 and test_clips \(256\), not 999"),
    ],
)
def test_a_value_out_of_range_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        configs.probing(**values)


def test_an_endpoint_that_is_not_probed_is_named():
    config = configs.probing(endpoint="Mixed_4g")
    with pytest.raises(ValueError, match=r"endpoint must be one of Conv2d_1a_7x7, .*, not 'Mixed_4g'"):
        probe.run(Run("probe", config, "cpu", {}))
