import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from d3d.data.load import load
from d3d.s3dg.network import s3dg
from d3d.train.evaluate import calibrate, example_arrays, fuse_logits
from d3d.train.fuse import evaluate_ensemble
from tests import configs


def test_fusion_is_the_mean_softmax():
    a, b = np.log([[0.9, 0.1]]), np.log([[0.3, 0.7]]) + 5
    assert np.allclose(np.exp(fuse_logits([a, b])), [[0.6, 0.4]])


@given(arrays(np.float64, (2, 3, 4), elements=st.floats(-50, 50)))
def test_fusion_ignores_order_and_shifts(members):
    fused = fuse_logits(members)
    assert np.allclose(fused, fuse_logits(members[::-1]))
    assert np.allclose(fused, fuse_logits([members[0] + 7, members[1] - 3]), atol=1e-6)
    assert np.allclose(np.exp(fused).sum(1), 1)


def test_fusion_of_different_clips_is_an_error():
    with pytest.raises(ValueError, match="same clips and classes"):
        fuse_logits([np.zeros((3, 4)), np.zeros((2, 4))])
    a = {"logits/iid": np.eye(2), "labels/iid": np.array([0, 1]), "groups/iid": np.array(["a", "a"])}
    with pytest.raises(ValueError, match="did not score the same clips of 'iid'"):
        evaluate_ensemble([a, a | {"labels/iid": np.array([1, 0])}])


def test_an_ensemble_can_be_right_where_each_member_is_wrong():
    labels, groups = np.array([0]), np.array(["all"])
    a = {"logits/iid": np.log([[0.4, 0.5, 0.1]]), "labels/iid": labels, "groups/iid": groups}
    b = {"logits/iid": np.log([[0.4, 0.1, 0.5]]), "labels/iid": labels, "groups/iid": groups}
    siblings = {"siblings": np.array([1, 0, -1])}
    metrics, fused = evaluate_ensemble([a | siblings, b | siblings])
    assert fused["siblings"].tolist() == [1, 0, -1]
    # Both members have top-1 0, so the gain is the whole top-1.
    assert (metrics["iid/top1"], metrics["iid/top1_gain"]) == (1.0, 1.0)
    assert not [name for name in metrics if name.endswith("_gain") and name != "iid/top1_gain"]
    assert np.allclose(np.exp(fused["logits/iid"]), [[0.4, 0.3, 0.3]])


def test_fusion_by_logits_is_their_mean():
    a, b = np.array([[2.0, 0.0, 0.0]]), np.array([[0.0, 8.0, 1.0]])
    assert fuse_logits([a, b], by="logits").tolist() == [[1.0, 4.0, 0.5]]
    # A network with large logits weighs more by logits than by softmax.
    small, large = np.log([[0.1, 0.9]]), np.array([[60.0, 0.0]])
    assert fuse_logits([small, small, large]).argmax() == 1
    assert fuse_logits([small, small, large], by="logits").argmax() == 0


def test_activations_of_an_untrained_network_do_not_vanish_once_calibrated():
    clips = load(configs.data(frames=4, size=16, train_clips=16, test_clips=16), seed=0).splits["train"]
    model = s3dg(16, width=0.1)
    weights = {name: value.clone() for name, value in model.named_parameters()}
    calibrate(model, clips, "rgb", batch_size=16)
    assert not model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    first = model.features["Conv2d_1a_7x7"]
    assert first.norm.momentum == 0.1
    x = first.conv(clips.inputs("rgb", slice(None)))
    assert torch.allclose(first.norm.running_mean, x.mean((0, 2, 3, 4)), atol=1e-5)
    deep = model.endpoints(clips.inputs("rgb", slice(None)), ["Mixed_5c"])["Mixed_5c"]
    assert deep.std() > 1e-4


def test_examples_are_spread_over_the_clips_that_could_be_read():
    clips = load(configs.data(frames=6, size=16, train_clips=16, test_clips=32, flow="exact"), seed=0).splits["iid"]
    rows = np.setdiff1d(np.arange(32), [0, 31])
    examples = example_arrays(clips, rows)
    assert examples["examples/index"].tolist() == [0, 6, 12, 17, 23, 29]
    frames = examples["examples/frames"]
    assert frames.shape == (6, 4, 16, 16, 3)
    expected = clips.rgb[rows[[0, 6, 12, 17, 23, 29]]][:, :, [0, 2, 3, 5]].permute(0, 2, 3, 4, 1)
    assert np.array_equal(frames, expected.numpy())


def test_examples_of_large_clips_are_reduced_to_96_pixels():
    config = configs.data(frames=2, size=192, train_clips=16, test_clips=16, flow="exact")
    clips = load(config, seed=0).splits["iid"]
    frames = example_arrays(clips, np.arange(16))["examples/frames"]
    assert frames.shape == (6, 2, 96, 96, 3)
    # Means of 2 x 2 pixels.
    means = clips.rgb[0, :, 0].float().unflatten(1, (96, 2)).unflatten(3, (96, 2)).mean((2, 4))
    assert np.abs(frames[0, 0].astype(float) - means.permute(1, 2, 0).numpy()).max() <= 1
