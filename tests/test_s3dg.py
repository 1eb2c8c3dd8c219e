"""The network against TF-slim's own activations, and the promises of its interface."""

import numpy as np
import pytest
import torch

from d3d.s3dg import MIXED, POOLS, s3dg, same_padding


def tf_name(name: str) -> str | None:
    """The TF-slim variable that a parameter or buffer of ours holds; None for what TF-slim does not have."""
    if name.endswith(("bn.weight", "num_batches_tracked")):
        return None
    if name.startswith("Conv2d_0c_1x1"):
        return f"InceptionV1/Logits/{name}".replace(".", "/").replace("/weight", "/weights").replace("/bias", "/biases")
    parts = name.removeprefix("features.").split(".")
    scope, rest = parts[0], parts[1:]
    if scope in MIXED:
        branch, position, *rest = rest
        first = "Conv2d_0b_1x1" if branch == "Branch_3" else "Conv2d_0a_1x1"
        last = {"Branch_0": first, "Branch_3": first}.get(branch, "Conv2d_0b_3x3")
        index = int(position) - (branch == "Branch_3")
        scope = f"{scope}/{branch}/{first if index == 0 else last}"
    elif scope == "Conv2d_2c_3x3":
        rest = rest[1:]
    leaf = ".".join(rest).removeprefix("spatial.")
    return (
        f"InceptionV1/{scope}/"
        + {
            "conv.weight": "weights",
            "bn.bias": "BatchNorm/beta",
            "bn.running_mean": "BatchNorm/moving_mean",
            "bn.running_var": "BatchNorm/moving_variance",
            "temporal.weight": "temporal/weights",
            "temporal.bias": "temporal/biases",
            "transformer_W.weight": "self_gating/transformer_W/weights",
        }[leaf]
    )


def from_tf(variables) -> torch.nn.Module:
    model = s3dg(10, width=0.25).eval()
    state = model.state_dict()
    for name in state:
        if tf := tf_name(name):
            array = torch.from_numpy(variables[tf])
            array = array.permute(4, 3, 0, 1, 2) if array.ndim == 5 else array
            state[name] = array.reshape(state[name].shape).contiguous()
    model.load_state_dict(state)
    return model


def ours(name: str) -> str | None:
    return name if name in MIXED or name in POOLS or name.startswith("Conv2d_") else None


@pytest.mark.parametrize("which", ["small", "small_odd"])
def test_equals_the_original(golden, which):
    reference = np.load(golden / f"{which}_golden.npz")
    small = np.load(golden / "small_golden.npz")
    clips = reference["input"] if "input" in reference else small["input"]
    model = from_tf(np.load(golden / "small_weights.npz"))
    x = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).contiguous()
    names = [n for n in reference["endpoint_order"].tolist() if ours(n) and n in model.endpoint_info]
    assert len(names) >= 13
    with torch.no_grad():
        logits, found = model(x), model.endpoints(x, names)
    assert np.abs(logits.numpy() - reference["logits"]).max() < 5e-5
    for name in names:
        activation = found[name].permute(0, 2, 3, 4, 1).numpy()
        assert activation.shape == tuple(reference[f"ep/{name}/shape"])
        assert activation.shape[-1] == model.endpoint_info[name].channels
        assert np.abs(activation.mean((0, 1, 2, 3)) - reference[f"ep/{name}/chan_mean"]).max() < 1e-4
        assert np.abs(activation.ravel()[:64] - reference[f"ep/{name}/first64"].ravel()).max() < 1e-4
        assert np.abs(activation.ravel()[-64:] - reference[f"ep/{name}/last64"].ravel()).max() < 1e-4
        if f"ep/{name}/full" in reference:
            assert np.abs(activation - reference[f"ep/{name}/full"]).max() < 1e-4


def test_same_padding_by_hand():
    # An even size under stride 2 and kernel 7: one less before than after. Order: W before, W after, H, T.
    assert same_padding((16, 64, 65), (3, 7, 7), (2, 2, 2)) == [3, 3, 2, 3, 0, 1]


def test_size_and_parameters_of_the_original():
    model = s3dg(400)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 9_518_848
    assert model.endpoint_info["Mixed_4f"] == (832, (4, 16, 16))
    assert model.endpoint_info["Mixed_5c"] == (1024, (8, 32, 32))


def test_endpoints_compute_no_further_than_asked():
    model = s3dg(5, width=0.25).eval()
    model.features["Mixed_4b"].forward = lambda x: pytest.fail("computed past the last endpoint")
    found = model.endpoints(torch.rand(1, 3, 8, 32, 32), ["Mixed_3c", "Conv2d_2b_1x1"])
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "Conv2d_2b_1x1": (1, 16, 4, 8, 8),
        "Mixed_3c": (1, 120, 4, 4, 4),
    }


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
    weights = [m.features["Mixed_3b"].Branch_0[0].conv.weight for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s3dg(4, width=0), "width must be positive, not 0"),
        (lambda: s3dg(4, width=0.25)(torch.rand(1, 2, 8, 32, 32)), r"clips must be \(B, 3, T, H, W\)"),
        (lambda: s3dg(4, width=0.25).endpoints(torch.rand(1, 3, 8, 32, 32), ["Mixed_6a"]), "no endpoint 'Mixed_6a'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
