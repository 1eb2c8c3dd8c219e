"""The network against TF-slim's own activations and against a plain reference, and the promises of its interface."""

import copy

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, LayerGradCam
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from d3d.s3dg import ops
from d3d.s3dg.network import MIXED, POOLS, S3DG, ConvBlock, SeparableConv, fold, s3dg
from d3d.s3dg.weights import load_tf
from tests.s3dg import reference
from tests.s3dg.reference import apart, lively, smooth_clips, variables


def difference(model: S3DG, clips: torch.Tensor) -> float:
    """The largest relative difference from the reference, of logits and of every endpoint."""
    want, endpoints = reference.network(variables(model), clips, training=model.training)
    found = model.endpoints(clips, endpoints) | {"logits": model(clips)}
    pairs = [(found[name], value) for name, value in (endpoints | {"logits": want}).items()]
    assert all(a.shape == b.shape for a, b in pairs)
    return max(apart(a, b) for a, b in pairs)


@pytest.mark.parametrize("which", ["small", "small_odd"])
def test_equals_the_original(golden, which):
    expected = np.load(golden / f"{which}_golden.npz")
    clips = expected["input"] if "input" in expected else np.load(golden / "small_golden.npz")["input"]
    model = load_tf(golden / "small_weights.npz")
    x = torch.from_numpy(clips).permute(0, 4, 1, 2, 3)
    names = [n for n in expected["endpoint_order"].tolist() if n in model.endpoint_info]
    assert len(names) >= 13
    with torch.no_grad():
        logits, folded, found = model(x), fold(model)(x), model.endpoints(x, names)
    assert np.abs(logits.numpy() - expected["logits"]).max() < 5e-5
    assert np.abs(folded.numpy() - expected["logits"]).max() < 5e-5
    for name in names:
        activation = found[name].permute(0, 2, 3, 4, 1).numpy()
        assert activation.shape == tuple(expected[f"ep/{name}/shape"])
        assert activation.shape[-1] == model.endpoint_info[name].channels
        assert np.abs(activation.mean((0, 1, 2, 3)) - expected[f"ep/{name}/chan_mean"]).max() < 1e-4
        assert np.abs(activation.ravel()[:64] - expected[f"ep/{name}/first64"].ravel()).max() < 1e-4
        assert np.abs(activation.ravel()[-64:] - expected[f"ep/{name}/last64"].ravel()).max() < 1e-4
        if f"ep/{name}/full" in expected:
            assert np.abs(activation - expected[f"ep/{name}/full"]).max() < 1e-4


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 48), st.integers(1, 48)),
    channels=st.sampled_from([2, 3]),
    training=st.booleans(),
)
def test_equals_the_reference_at_any_size(size, channels, training):
    model = lively(s3dg(3, in_channels=channels, width=0.25, dropout=0.0)).double().train(training)
    clips = smooth_clips(2, channels, *size)
    twin, clips_too = copy.deepcopy(model), clips.clone()
    logits = model(clips.requires_grad_())
    want, _ = reference.network(variables(twin), clips_too.requires_grad_(), training=training)
    assert apart(logits, want) < 1e-8
    for value in (logits, want):
        (value * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
    assert apart(clips.grad, clips_too.grad) < 1e-6
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        if a.requires_grad:
            assert apart(a.grad, b.grad) < 1e-6, name


def test_equals_the_reference_where_the_last_map_is_larger_than_the_heads_window():
    model = lively(s3dg(3, width=0.25)).double().eval()
    with torch.no_grad():
        assert difference(model, smooth_clips(1, 3, 17, 256, 232)) < 1e-12


def symmetric_padding(model, patch):
    plain = ops.same_before
    patch.setattr(ops, "same_before", lambda n, k, s: k // 2 if k == 7 else plain(n, k, s))


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

    def swapped(xs, weights):
        order = [0, 2, 1, 3] if len(xs) == 4 else [0]
        return gate([xs[i] for i in order], [weights[i] for i in order])

    patch.setattr(ops, "gate", swapped)


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
def test_the_comparison_has_teeth(mistake, monkeypatch):
    right, wrong = (lively(s3dg(3, width=0.25)).double().eval() for _ in range(2))
    clips = smooth_clips(1, 3, 32, 64, 64)
    with torch.no_grad():
        assert difference(right, clips) < 1e-12
        want, endpoints = reference.network(variables(right), clips)
        mistake(wrong, monkeypatch)
        found = wrong.endpoints(clips, ["Mixed_5c"])["Mixed_5c"]
        assert found.shape == endpoints["Mixed_5c"].shape, "silently wrong, not of another shape"
        # What float32 explains is below 1e-5.
        assert apart(wrong(clips), want) > 5e-4


def test_size_and_parameters_of_the_original():
    model = s3dg(400)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 9_518_848
    assert model.endpoint_info["Mixed_4f"] == (832, (4, 16, 16))
    assert model.endpoint_info["Mixed_5c"] == (1024, (8, 32, 32))


def test_the_original_initialisation():
    model = s3dg(50, width=0.5)
    weight = model.features["Mixed_4f"].Branch_1[1].spatial.conv.weight
    assert weight.abs().max() <= 0.02
    assert 0.0085 < weight.std() < 0.0092  # a normal of 0.01 cut at two deviations
    temporal = model.features["Mixed_4f"].Branch_1[1].temporal
    signal = torch.rand(1, temporal.conv.in_channels, 5, 3, 3)
    assert torch.equal(temporal(signal), signal), "temporal convolutions start as the identity"
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("bias"))


def test_endpoints_compute_no_further_than_asked():
    model = s3dg(5, width=0.25).eval()
    model.features["Mixed_4b"].forward = lambda x: pytest.fail("computed past the last endpoint")
    found = model.endpoints(torch.rand(1, 3, 8, 32, 32), ["Mixed_3c", "Conv2d_2b_1x1"])
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "Conv2d_2b_1x1": (1, 16, 4, 8, 8),
        "Mixed_3c": (1, 120, 4, 4, 4),
    }


@pytest.mark.parametrize("size", [(9, 33, 65), (16, 64, 64)])
def test_endpoint_info_tells_channels_and_strides(size):
    model = s3dg(3, width=0.25).eval()
    assert list(model.endpoint_info) == list(model.features)
    assert set(MIXED) | set(POOLS) < set(model.endpoint_info)
    with torch.no_grad():
        found = model.endpoints(torch.rand(1, 3, *size), model.endpoint_info)
    for name, (channels, stride) in model.endpoint_info.items():
        assert found[name].shape == (1, channels, *(-(-n // s) for n, s in zip(size, stride, strict=True)))


def test_head_averages_overlapping_windows():
    model = s3dg(3, width=0.25).eval()
    features = torch.randn(1, 256, 4, 1, 1)
    model.features["Mixed_5c"].forward = lambda x: features
    weight, bias = model.Conv2d_0c_1x1.weight[:, :, 0, 0, 0], model.Conv2d_0c_1x1.bias
    steps = features[0, :, :, 0, 0]
    windows = (steps[:, :-1] + steps[:, 1:]) / 2
    logits = model(torch.rand(1, 3, 32, 32, 32))[0]
    assert torch.allclose(logits, weight @ windows.mean(1) + bias, atol=1e-6)
    assert not torch.allclose(logits, weight @ steps.mean(1) + bias, atol=1e-3)


def test_a_seed_fixes_the_weights_and_leaves_the_random_state():
    before = torch.random.get_rng_state()
    a, b, c = s3dg(4, width=0.25, seed=1), s3dg(4, width=0.25, seed=1), s3dg(4, width=0.25, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [m.features["Mixed_3b"].Branch_0.conv.weight for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_folding_changes_no_logit_and_leaves_the_network():
    model = lively(s3dg(4, width=0.25)).double()
    clips = smooth_clips(2, 3, 9, 40, 40)
    folded = fold(model)
    assert model.training
    assert not folded.training
    assert not any(isinstance(m, nn.BatchNorm3d) for m in folded.modules())
    assert sum(isinstance(m, nn.BatchNorm3d) for m in model.modules()) == 57
    with torch.no_grad():
        assert apart(folded(clips), model.eval()(clips)) < 1e-10
        assert torch.equal(fold(folded)(clips), folded(clips))


def test_every_relu_and_endpoint_can_be_hooked():
    model = lively(s3dg(3, width=0.25)).eval()
    relus = [m for m in model.modules() if isinstance(m, nn.ReLU)]
    assert len(relus) == 57 + 19
    seen = []
    for module in [*relus, *model.features.values()]:
        module.register_forward_hook(lambda m, i, o: seen.append(m))
        module.register_full_backward_hook(lambda m, i, o: seen.append(m))
    model(torch.rand(1, 3, 4, 32, 32, requires_grad=True)).sum().backward()
    assert len(seen) == 2 * (len(relus) + len(model.features))


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_captum_reaches_through_it():
    model = lively(s3dg(3, width=0.25)).eval()
    clips, frozen = torch.rand(2, 2, 3, 4, 32, 32)
    values = DeepLift(model).attribute(clips.requires_grad_(), frozen, target=1)
    assert values.shape == clips.shape
    assert values.isfinite().all()
    assert values.abs().amax((1, 2, 3, 4)).gt(0).all()
    assert LayerGradCam(model, model.features["Mixed_4f"]).attribute(clips, target=1).shape == (2, 1, 1, 2, 2)


def test_autocast_computes_in_half_and_stays_close():
    model = lively(s3dg(3, width=0.25)).eval()
    clips = smooth_clips(4, 3, 8, 64, 64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(clips)
        loss = F.cross_entropy(model.train()(clips).float(), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert half.dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model = lively(s3dg(3, width=0.25)).eval()
    assert apart(half.float(), model(clips)) < 0.05


def test_autocast_leaves_float64_alone():
    model, clips = lively(s3dg(3, width=0.25)).double().eval(), smooth_clips(1, 3, 4, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(clips), model(clips.clone()))
        assert model(clips).dtype == torch.float64


def test_no_clips_give_no_logits():
    assert s3dg(3, width=0.25).eval()(torch.rand(0, 3, 4, 32, 32)).shape == (0, 3)


def test_one_small_clip_is_enough_without_batch_norms_in_training():
    model, clips = lively(s3dg(3, width=0.25)), torch.rand(1, 3, 8, 32, 32)
    assert fold(model).train()(clips).shape == (1, 3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    assert model(clips).shape == (1, 3)


@pytest.mark.parametrize("part", ["relu", "norm"])
def test_an_exchanged_part_is_used(part):
    """On a GPU the parts' work is done by one kernel, unless somebody put another in their place."""
    model = s3dg(3, width=0.25)
    block = model.features["Mixed_3b"].Branch_0
    assert block._as_built()
    setattr(block, part, nn.Identity())
    assert not block._as_built()


def test_global_hooks_see_every_module():
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    block = s3dg(3, width=0.25).features["Mixed_3b"].Branch_0
    try:
        assert not block._as_built()
    finally:
        handle.remove()
    assert block._as_built()


def test_activations_stay_channels_last():
    model = s3dg(3, width=0.25).eval()
    for block in model.modules():
        if isinstance(block, ConvBlock):
            block.register_forward_hook(
                lambda m, i, o: pytest.fail("copied") if not o.permute(0, 2, 3, 4, 1).is_contiguous() else None
            )
    with torch.no_grad():
        model(torch.rand(2, 3, 8, 32, 32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s3dg(4, width=0), "width must be positive, not 0"),
        (lambda: s3dg(0), "num_classes and in_channels must be at least 1, not 0 and 3"),
        (lambda: s3dg(4, width=0.25)(torch.rand(1, 2, 8, 32, 32)), r"clips must be floating point \(B, 3, T, H, W\)"),
        (lambda: s3dg(4, width=0.25)(torch.zeros(1, 3, 8, 32, 32).byte()), "these are torch.uint8"),
        (lambda: s3dg(4, width=0.25)(torch.rand(1, 3, 0, 32, 32)), "at least 1 x 1 x 1 pixels, these have"),
        (lambda: s3dg(4, width=0.25)(torch.rand(1, 3, 8, 32, 32)), "one clip of .8, 32, 32. pixels: give it two"),
        (lambda: s3dg(4, width=0.25).endpoints(torch.rand(1, 3, 8, 32, 32), ["Mixed_6a"]), "no endpoint 'Mixed_6a'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
