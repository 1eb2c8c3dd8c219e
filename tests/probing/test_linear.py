"""Linear probes of features whose content is known."""

import numpy as np
import pytest
import torch

from d3d.data.sprite_classes import CLASSES
from d3d.data.sprite_clips import sprite_clips
from d3d.data.sprites import render
from d3d.probing import linear, probe
from d3d.s3dg.network import s3dg
from d3d.study.parameters import MAX_SEED
from d3d.study.run import Run
from tests import configs


@pytest.fixture(scope="module")
def tables():
    config = configs.clip(size=16, frames=16, rho=0.0)
    return render(config, "train/0", range(400)).table, render(config, "iid", range(200)).table


def mixed_columns(table, columns):
    """A random linear mixture of some columns and noise, from which a linear probe can recover the columns."""
    x = table[columns].to_numpy()
    rng = np.random.default_rng(len(table))
    mixture = np.random.default_rng(0).normal(size=(x.shape[1] + 3, 12))
    return np.hstack([x, rng.normal(size=(len(x), 3))]) @ mixture


def noise(rng, num_features, tables):
    return [linear.ProbeData(rng.normal(size=(len(t), num_features)), t) for t in tables]


def test_probes_find_what_the_features_hold_and_nothing_else(tables):
    columns = ["velocity_x", "velocity_y"]
    scores = linear.fit_probes(*(linear.ProbeData(mixed_columns(t, columns), t) for t in tables))
    assert scores["velocity/r2"] > 0.99
    assert scores["velocity/r2_within"] > 0.95
    assert scores["velocity/selectivity"] > 0.3
    assert scores["texture/r2"] < 0.1
    assert scores["texture/accuracy"] < 0.6


def test_features_that_hold_the_class_predict_no_motion_within_it(tables):
    one_hot = [np.eye(len(CLASSES))[t["label"]] for t in tables]
    scores = linear.fit_probes(*map(linear.ProbeData, one_hot, tables))
    assert scores["velocity/r2"] > 0.2
    assert scores["velocity/r2_within"] < 0.05


def test_noise_predicts_nothing(tables):
    rng = np.random.default_rng(1)
    scores = linear.fit_probes(*noise(rng, 8, tables))
    assert all(value < 0.1 for name, value in scores.items() if name.endswith(("r2", "r2_within")))


def test_more_features_than_clips_do_not_fool_the_probe(tables):
    """Leave-one-out would choose too small a penalty here: after subtracting class means, a clip's value leaks."""
    rng = np.random.default_rng(2)
    scores = linear.fit_probes(*noise(rng, 700, tables))
    assert all(-0.2 < value < 0.1 for name, value in scores.items() if name.endswith(("r2", "r2_within")))


def test_features_that_hold_class_and_family_have_no_selectivity(tables):
    kinds = sorted({*(tables[0]["class"] + tables[0]["family"]), *(tables[1]["class"] + tables[1]["family"])})
    one_hot = [np.eye(len(kinds))[[kinds.index(k) for k in t["class"] + t["family"]]] for t in tables]
    scores = linear.fit_probes(*map(linear.ProbeData, one_hot, tables))
    assert scores["velocity/r2"] > 0.2
    assert scores["velocity/selectivity"] < 0.1


def test_the_largest_column_is_the_predicted_category(tables):
    shape = [linear.ProbeData(linear.property_values(t)["shape"], t) for t in tables]
    scores = linear.fit_probes(*shape)
    assert scores["shape/accuracy"] == 1
    assert scores["shape/r2"] > 0.99
    # Three of the six shapes come with two textures equally often.
    assert 0.4 < scores["texture/accuracy"] < 0.8
    assert "shape/accuracy" not in linear.fit_probes(*shape, properties=("velocity", "texture"))


def test_time_order_is_predicted_only_from_features_that_hold_it(tables):
    rng = np.random.default_rng(0)
    half_shuffled = [t.assign(in_order=np.arange(len(t)) >= len(t) // 2) for t in tables]
    data = [
        linear.ProbeData(t[["in_order"]].to_numpy() + 0.01 * rng.normal(size=(len(t), 1)), t) for t in half_shuffled
    ]
    scores = linear.fit_probes(*data, properties=("time_order",))
    assert scores["time_order/accuracy"] == 1
    assert scores["time_order/r2"] > 0.99
    assert set(scores) == {f"time_order/{name}" for name in ("r2", "r2_within", "selectivity", "accuracy")}
    scores = linear.fit_probes(*noise(rng, 3, half_shuffled), properties=("time_order",))
    assert scores["time_order/accuracy"] < 0.65


CONFIG = configs.data(frames=6, size=32, train_clips=64, test_clips=64, flow="exact", noise=0.0)


@pytest.fixture(scope="module")
def probe_clips():
    return linear.render_probe_clips(CONFIG)


def test_half_of_the_clips_for_time_order_have_shuffled_frames(probe_clips):
    test, half_shuffled = probe_clips.test, probe_clips.test_half_shuffled
    assert torch.equal(test.rgb[32:], half_shuffled.rgb[32:])
    assert half_shuffled.table["in_order"].tolist() == [False] * 32 + [True] * 32
    frames = [{f.tobytes() for f in clips.rgb[0].transpose(0, 1).numpy()} for clips in (test, half_shuffled)]
    assert frames[0] == frames[1]
    assert not torch.equal(test.rgb[:32], half_shuffled.rgb[:32])
    assert not torch.equal(test.flow[:32], half_shuffled.flow[:32])


def test_no_network_can_be_trained_on_the_clips_for_probing(probe_clips):
    assert torch.equal(probe_clips.train.rgb, sprite_clips(CONFIG, f"train/{MAX_SEED}", 64).rgb)
    with pytest.raises(ValueError, match=rf"seed must lie in \[0, {MAX_SEED - 1}\]"):
        configs.training(seed=MAX_SEED)


def test_features_are_means_over_time_and_space(probe_clips):
    model = s3dg(16, width=0.1).eval()
    features = linear.pooled_features(model, probe_clips.test, "rgb", ["Conv2d_1a_7x7", "Mixed_5c"])
    with torch.no_grad():
        x = model.endpoints(probe_clips.test.inputs("rgb", slice(None)), ["Conv2d_1a_7x7"])["Conv2d_1a_7x7"]
    assert np.allclose(features["Conv2d_1a_7x7"], x.mean((2, 3, 4)), atol=1e-5)
    assert features["Mixed_5c"].shape == (64, model.endpoint_info["Mixed_5c"].channels)


def test_all_endpoints_but_poolings_are_probed_for_all_properties(probe_clips):
    model = s3dg(16, width=0.1)
    assert [e for e in model.features if not e.startswith("MaxPool")] == list(linear.ENDPOINTS)
    scores = linear.linear_probes(model, probe_clips, "rgb")
    assert {name.split("/")[0] for name in scores} == set(linear.ENDPOINTS)
    assert {name.split("/")[1] for name in scores} == set(linear.PROPERTIES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"test_clips": 48}, "test_clips must be at least 64, four per class, not 48"),
        ({"decoder_epochs": 0}, "decoder_epochs must be at least 1, not 0"),
        ({"pictures": 999}, r"pictures must lie between 0 and test_clips \(256\), not 999"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        configs.probing(**values)


def test_an_unknown_endpoint_is_refused():
    config = configs.probing(endpoint="Mixed_4g")
    with pytest.raises(ValueError, match=r"endpoint must be one of Conv2d_1a_7x7, .*, not 'Mixed_4g'"):
        probe.run(Run("probe", config, "cpu", {}))
