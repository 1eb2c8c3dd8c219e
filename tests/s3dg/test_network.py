"""The network against TF-slim's activations and a plain reference, and its interface."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, LayerGradCam
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from d3d.s3dg import ops
from d3d.s3dg.blocks import ConvBlock, Mixed, SeparableConv, can_pool
from d3d.s3dg.folding import fold
from d3d.s3dg.network import MIXED, POOLS, S3DG, s3dg
from d3d.s3dg.weights import load_tf
from tests.s3dg import reference
from tests.s3dg.reference import randomize, relative_error, smooth_clips, variables


def max_error(model: S3DG, clips: torch.Tensor) -> float:
    """The largest relative error of logits and endpoints against the reference."""
    logits, endpoints = reference.network(variables(model), clips, training=model.training)
    actual = model.endpoints(clips, endpoints) | {"logits": model(clips)}
    pairs = [(actual[name], value) for name, value in (endpoints | {"logits": logits}).items()]
    assert all(a.shape == b.shape for a, b in pairs)
    return max(relative_error(a, b) for a, b in pairs)


@pytest.mark.parametrize("size", ["small", "small_odd"])
def test_equals_the_original(golden, size):
    expected = np.load(golden / f"{size}_golden.npz")
    clips = expected["input"] if "input" in expected else np.load(golden / "small_golden.npz")["input"]
    model = load_tf(golden / "small_weights.npz")
    x = torch.from_numpy(clips).permute(0, 4, 1, 2, 3)
    names = [n for n in expected["endpoint_order"].tolist() if n in model.endpoint_info]
    assert len(names) >= 13
    with torch.no_grad():
        logits, folded, activations = model(x), fold(model)(x), model.endpoints(x, names)
    assert np.abs(logits.numpy() - expected["logits"]).max() < 5e-5
    assert np.abs(folded.numpy() - expected["logits"]).max() < 5e-5
    for name in names:
        activation = activations[name].permute(0, 2, 3, 4, 1).numpy()
        assert activation.shape == tuple(expected[f"ep/{name}/shape"])
        assert activation.shape[-1] == model.endpoint_info[name].channels
        assert np.abs(activation.mean((0, 1, 2, 3)) - expected[f"ep/{name}/chan_mean"]).max() < 1e-4
        assert np.abs(activation.ravel()[:64] - expected[f"ep/{name}/first64"].ravel()).max() < 1e-4
        assert np.abs(activation.ravel()[-64:] - expected[f"ep/{name}/last64"].ravel()).max() < 1e-4
        if f"ep/{name}/full" in expected:
            assert np.abs(activation - expected[f"ep/{name}/full"]).max() < 1e-4


@settings(max_examples=12, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 48), st.integers(1, 48)),
    channels=st.sampled_from([2, 3]),
    training=st.booleans(),
)
def test_equals_the_reference_at_any_size(size, channels, training):
    model = randomize(s3dg(3, in_channels=channels, width=0.25, dropout=0.0)).double().train(training)
    clips = smooth_clips(2, channels, *size)
    model_copy, clips_copy = copy.deepcopy(model), clips.clone()
    logits = model(clips.requires_grad_())
    expected, _ = reference.network(variables(model_copy), clips_copy.requires_grad_(), training=training)
    assert relative_error(logits, expected) < 1e-8
    for value in (logits, expected):
        (value * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
    assert relative_error(clips.grad, clips_copy.grad) < 1e-6
    for (name, a), b in zip(model.named_parameters(), model_copy.parameters(), strict=True):
        if a.requires_grad:
            assert relative_error(a.grad, b.grad) < 1e-6, name


def test_equals_the_reference_where_the_last_map_is_larger_than_the_heads_window():
    model = randomize(s3dg(3, width=0.25)).double().eval()
    with torch.no_grad():
        assert max_error(model, smooth_clips(1, 3, 17, 256, 232)) < 1e-12


def symmetric_padding(model, patch):
    same_pad = ops.same_pad

    def symmetric(n, k, s):
        total = sum(same_pad(n, k, s))
        return (k // 2, total - k // 2) if k == 7 else same_pad(n, k, s)

    patch.setattr(ops, "same_pad", symmetric)


def small_epsilon(model, patch):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-5


def reversed_temporal_kernel(model, patch):
    for module in model.modules():
        if isinstance(module, SeparableConv):
            patch.setattr(module.temporal.conv.weight, "data", module.temporal.conv.weight.data.flip(2))


def missing_gate(model, patch):
    patch.setattr(ops, "gate", lambda xs, weights: torch.cat(xs, -1))


def swapped_branches(model, patch):
    gate = ops.gate

    def swapped_gate(xs, weights):
        order = [0, 2, 1, 3] if len(xs) == 4 else [0]
        return gate([xs[i] for i in order], [weights[i] for i in order])

    patch.setattr(ops, "gate", swapped_gate)


def global_mean_in_the_head(model, patch):
    def forward(self, x):
        return self.Conv2d_0c_1x1(self.endpoints(x, ["Mixed_5c"])["Mixed_5c"].mean((2, 3, 4), keepdim=True)).flatten(1)

    patch.setattr(S3DG, "forward", forward)


@pytest.mark.parametrize(
    "mistake",
    [
        symmetric_padding,
        small_epsilon,
        reversed_temporal_kernel,
        missing_gate,
        swapped_branches,
        global_mean_in_the_head,
    ],
)
def test_the_comparison_detects_mistakes(mistake, monkeypatch):
    right, wrong = (randomize(s3dg(3, width=0.25)).double().eval() for _ in range(2))
    clips = smooth_clips(1, 3, 32, 64, 64)
    with torch.no_grad():
        assert max_error(right, clips) < 1e-12
        expected, endpoints = reference.network(variables(right), clips)
        mistake(wrong, monkeypatch)
        activation = wrong.endpoints(clips, ["Mixed_5c"])["Mixed_5c"]
        assert activation.shape == endpoints["Mixed_5c"].shape, "the mistake should not change the shape"
        # float32 explains differences below 1e-5.
        assert relative_error(wrong(clips), expected) > 5e-4


def test_parameter_count_and_strides_are_the_originals():
    model = s3dg(400)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 9_518_848
    assert model.endpoint_info["Mixed_4f"] == (832, (4, 16, 16))
    assert model.endpoint_info["Mixed_5c"] == (1024, (8, 32, 32))


def test_initialisation_is_the_originals():
    model = s3dg(50, width=0.5)
    weight = model.features["Mixed_4f"].Branch_1[1].spatial.conv.weight
    assert weight.abs().max() <= 0.02
    assert 0.0085 < weight.std() < 0.0092  # a normal of std 0.01, truncated at two standard deviations
    temporal = model.features["Mixed_4f"].Branch_1[1].temporal
    signal = torch.rand(1, temporal.conv.in_channels, 5, 3, 3)
    assert torch.equal(temporal(signal), signal), "temporal convolutions start as the identity"
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("bias"))


def test_endpoints_skip_later_stages():
    model = s3dg(5, width=0.25).eval()
    model.features["Mixed_4b"].forward = lambda x: pytest.fail("computed past the last endpoint")
    activations = model.endpoints(torch.rand(1, 3, 8, 32, 32), ["Mixed_3c", "Conv2d_2b_1x1"])
    assert {k: tuple(v.shape) for k, v in activations.items()} == {
        "Conv2d_2b_1x1": (1, 16, 4, 8, 8),
        "Mixed_3c": (1, 120, 4, 4, 4),
    }


def test_one_pass_computes_endpoints_and_what_the_classifier_reads():
    model, clips = s3dg(5, width=0.25).eval(), torch.rand(2, 3, 8, 32, 32)
    names = ["Mixed_4f", "Mixed_3c", "MaxPool_4a_3x3"]
    with torch.no_grad():
        pooled, activations = model.pooled_and_endpoints(clips, names)
        assert torch.equal(pooled, model.pooled(clips))
        expected = model.endpoints(clips, names)
    assert list(activations) == list(expected)
    assert all(torch.equal(x, expected[name]) for name, x in activations.items())


@pytest.mark.parametrize("size", [(9, 33, 65), (16, 64, 64)])
def test_endpoint_info_gives_channels_and_strides(size):
    model = s3dg(3, width=0.25).eval()
    assert list(model.endpoint_info) == list(model.features)
    assert set(MIXED) | set(POOLS) < set(model.endpoint_info)
    with torch.no_grad():
        activations = model.endpoints(torch.rand(1, 3, *size), model.endpoint_info)
    for name, (channels, stride) in model.endpoint_info.items():
        assert activations[name].shape == (1, channels, *(-(-n // s) for n, s in zip(size, stride, strict=True)))


def test_head_averages_overlapping_windows():
    model = s3dg(3, width=0.25).eval()
    features = torch.randn(1, 256, 4, 1, 1)
    model.features["Mixed_5c"].forward = lambda x: features
    weight, bias = model.Conv2d_0c_1x1.weight[:, :, 0, 0, 0], model.Conv2d_0c_1x1.bias
    frames = features[0, :, :, 0, 0]
    windows = (frames[:, :-1] + frames[:, 1:]) / 2
    logits = model(torch.rand(1, 3, 32, 32, 32))[0]
    assert torch.allclose(logits, weight @ windows.mean(1) + bias, atol=1e-6)
    assert not torch.allclose(logits, weight @ frames.mean(1) + bias, atol=1e-3)


def test_the_seed_determines_the_weights_and_the_random_state_is_unchanged():
    rng_state = torch.random.get_rng_state()
    a, b, c = s3dg(4, width=0.25, seed=1), s3dg(4, width=0.25, seed=1), s3dg(4, width=0.25, seed=2)
    assert torch.equal(rng_state, torch.random.get_rng_state())
    weights = [m.features["Mixed_3b"].Branch_0.conv.weight for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_folding_keeps_the_logits_and_the_original_network():
    model = randomize(s3dg(4, width=0.25)).double()
    clips = smooth_clips(2, 3, 9, 40, 40)
    folded = fold(model)
    assert model.training
    assert not folded.training
    assert not any(isinstance(m, nn.BatchNorm3d) for m in folded.modules())
    assert sum(isinstance(m, nn.BatchNorm3d) for m in model.modules()) == 57
    with torch.no_grad():
        assert relative_error(folded(clips), model.eval()(clips)) < 1e-10
        assert torch.equal(fold(folded)(clips), folded(clips))


def test_every_relu_and_endpoint_can_be_hooked():
    model = randomize(s3dg(3, width=0.25)).eval()
    relus = [m for m in model.modules() if isinstance(m, nn.ReLU)]
    assert len(relus) == 57 + 19
    calls = []
    for module in [*relus, *model.features.values()]:
        module.register_forward_hook(lambda m, i, o: calls.append(m))
        module.register_full_backward_hook(lambda m, i, o: calls.append(m))
    model(torch.rand(1, 3, 4, 32, 32, requires_grad=True)).sum().backward()
    assert len(calls) == 2 * (len(relus) + len(model.features))


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_captum_attributes_to_clips_and_layers():
    model = randomize(s3dg(3, width=0.25)).eval()
    clips, baselines = torch.rand(2, 2, 3, 4, 32, 32)
    attributions = DeepLift(model).attribute(clips.requires_grad_(), baselines, target=1)
    assert attributions.shape == clips.shape
    assert attributions.isfinite().all()
    assert attributions.abs().amax((1, 2, 3, 4)).gt(0).all()
    assert LayerGradCam(model, model.features["Mixed_4f"]).attribute(clips, target=1).shape == (2, 1, 1, 2, 2)


def test_autocast_computes_in_bfloat16_and_stays_close():
    model = randomize(s3dg(3, width=0.25)).eval()
    clips = smooth_clips(4, 3, 8, 64, 64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(clips)
        loss = F.cross_entropy(model.train()(clips).float(), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model = randomize(s3dg(3, width=0.25)).eval()
    assert relative_error(logits.float(), model(clips)) < 0.05


def test_autocast_does_not_change_float64():
    model, clips = randomize(s3dg(3, width=0.25)).double().eval(), smooth_clips(1, 3, 4, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(clips), model(clips.clone()))
        assert model(clips).dtype == torch.float64


def test_an_empty_batch_gives_no_logits():
    assert s3dg(3, width=0.25).eval()(torch.rand(0, 3, 4, 32, 32)).shape == (0, 3)


def test_one_small_clip_is_enough_if_no_batch_norm_trains():
    model, clips = randomize(s3dg(3, width=0.25)), torch.rand(1, 3, 8, 32, 32)
    assert fold(model).train()(clips).shape == (1, 3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    assert model(clips).shape == (1, 3)


@pytest.mark.parametrize("part", ["relu", "norm"])
def test_replaced_modules_disable_the_kernels(part):
    """On a GPU one kernel replaces norm and ReLU, unless one of them was replaced."""
    model = s3dg(3, width=0.25)
    block = model.features["Mixed_3b"].Branch_0
    assert block.can_fuse()
    setattr(block, part, nn.Identity())
    assert not block.can_fuse()


def test_global_hooks_disable_the_kernels():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    block = s3dg(3, width=0.25).features["Mixed_3b"].Branch_0
    try:
        assert not block.can_fuse()
    finally:
        handle.remove()
    assert block.can_fuse()


def test_hooks_disable_the_product_of_three_convolutions(monkeypatch):
    """Of any module that the product would pass over; `_can_join` asks only what decides."""
    monkeypatch.setattr(ops, "kernels_support", lambda x: True)
    block, x = s3dg(3, width=0.25).features["Mixed_3b"], torch.zeros(1)
    points = block.Branch_0, block.Branch_1[0], block.Branch_2[0]
    for module in (block.Branch_1, block.Branch_2, *points, points[0].conv, points[1].norm, points[2].relu):
        assert block._can_join(x)
        handle = module.register_forward_hook(lambda *_: None)
        assert not block._can_join(x)
        handle.remove()
    points[1].norm.eval()
    assert not block._can_join(x)
    points[1].norm.train()
    points[2].norm.eps = 1e-5
    assert not block._can_join(x)
    points[2].norm.eps = points[0].norm.eps
    assert block._can_join(x)
    points[2].conv = nn.Conv3d(1, 1, 1)
    assert not block._can_join(x)


def test_hooks_disable_the_pool_of_gated_activations(monkeypatch):
    monkeypatch.setattr(ops, "kernels_support", lambda x: True)
    features, x = s3dg(3, width=0.25).features, torch.zeros(1, 1)
    pairs = [(a, b) for a, b in pairwise([*features.values(), None]) if can_pool(a, b, x)]
    names = {module: name for name, module in features.items()}
    assert [(names[a], names[b]) for a, b in pairs] == [
        ("Conv2d_2c_3x3", "MaxPool_3a_3x3"),
        ("Mixed_3c", "MaxPool_4a_3x3"),
        ("Mixed_4f", "MaxPool_5a_2x2"),
    ]
    for stage, pool in pairs:
        gate = stage.self_gating if isinstance(stage, Mixed) else stage[1]
        for module in (stage, pool, gate):
            handle = module.register_forward_hook(lambda *_: None)
            assert not can_pool(stage, pool, x)
            handle.remove()
        assert can_pool(stage, pool, x)
        assert not can_pool(stage, nn.MaxPool3d(2), x)


def test_activations_stay_channels_last():
    model = s3dg(3, width=0.25).eval()
    for block in model.modules():
        if isinstance(block, ConvBlock):
            block.register_forward_hook(
                lambda m, i, o: (
                    pytest.fail("not channels-last") if not o.permute(0, 2, 3, 4, 1).is_contiguous() else None
                )
            )
    with torch.no_grad():
        model(torch.rand(2, 3, 8, 32, 32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s3dg(4, width=0), "width must be positive and at most 8, not 0"),
        (lambda: s3dg(4, width=float("nan")), "width must be positive and at most 8, not nan"),
        (lambda: s3dg(4, width=1e9), "width must be positive and at most 8, not 1000000000.0"),
        (lambda: s3dg(0), "num_classes must be at least 1 and at most 100000, not 0"),
        (lambda: s3dg(10**9), "num_classes must be at least 1 and at most 100000, not 1000000000"),
        (lambda: s3dg(4, in_channels=10**9), "in_channels must be at least 1 and at most 1000, not 1000000000"),
        (lambda: s3dg(4, width=0.25)(torch.rand(1, 2, 8, 32, 32)), r"clips must be floating point \(B, 3, T, H, W\)"),
        (lambda: s3dg(4, width=0.25)(torch.zeros(1, 3, 8, 32, 32).byte()), "not torch.uint8"),
        (lambda: s3dg(4, width=0.25)(torch.rand(1, 3, 0, 32, 32)), r"T, H and W of at least 1, not \(0, 32, 32\)"),
        (lambda: s3dg(4, width=0.25)(torch.rand(1, 3, 8, 32, 32)), r"one clip of size \(8, 32, 32\): give two"),
        (lambda: s3dg(4, width=0.25).endpoints(torch.rand(1, 3, 8, 32, 32), ["Mixed_6a"]), "no endpoint 'Mixed_6a'"),
    ],
)
def test_wrong_arguments_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
