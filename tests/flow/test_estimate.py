"""Tests of optical flow: OpenCV as the reference of TV-L1, and errors computed by hand."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from d3d.data import sprites
from d3d.flow import estimate as flow_module
from d3d.flow import opencv as tvl1_cpu
from d3d.flow.estimate import tvl1, tvl1_clip
from d3d.flow.fields import colours, endpoint_error, epe_metrics, occluded, warp
from tests import configs

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def first_frames(path: Path, n: int, kind: str) -> list[np.ndarray]:
    with av.open(path) as container:
        return [f.to_ndarray(format=kind) for f, _ in zip(container.decode(video=0), range(n), strict=False)]


def opencv(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """OpenCV's flow of grey or RGB images (B, C, H, W), with its defaults."""
    images = [[cv2.cvtColor(i, cv2.COLOR_RGB2GRAY) for i in x.permute(0, 2, 3, 1).numpy()] for x in (a, b)]
    solver = cv2.optflow.DualTVL1OpticalFlow_create()
    return torch.from_numpy(np.stack([solver.calc(*pair, None) for pair in zip(*images, strict=True)])).permute(
        0, 3, 1, 2
    )


def square(x: float, y: float, size: int = 48) -> torch.Tensor:
    """A textured square with its corner at x, y on a textured background, (1, 1, size, size)."""
    grid = torch.arange(size, dtype=torch.float32)
    background = 0.5 + 0.2 * torch.sin(grid / 2)[:, None] * torch.sin(grid / 3)
    patch = 0.5 + 0.4 * torch.sin((grid - y) / 1.5)[:, None] * torch.cos((grid - x) / 2)
    inside = ((grid - y >= 0) & (grid - y < 20))[:, None] & (grid - x >= 0) & (grid - x < 20)
    return torch.where(inside, patch, background)[None, None]


def test_a_cpu_gives_opencvs_flow_with_its_defaults():
    clip = sprites.render(configs.clip(size=32, frames=2), "iid", range(3)).rgb
    a, b = clip[:, :, 0], clip[:, :, 1]
    grey = [
        torch.from_numpy(np.stack([cv2.cvtColor(i, cv2.COLOR_RGB2GRAY) for i in x.permute(0, 2, 3, 1).numpy()]))
        for x in (a, b)
    ]
    assert torch.equal(tvl1(*(x[:, None] for x in grey)), opencv(a, b))
    # Different rounding of the grey levels in the last digit changes the flow slightly.
    assert endpoint_error(tvl1(a, b), opencv(a, b)).mean() < 0.05


def test_every_parameter_reaches_opencv():
    """Changing any single parameter changes the flow."""
    a, b = square(10, 10), square(12.5, 11)
    default = tvl1(a, b)
    changes = {
        "tau": 0.1,
        "lambda_": 0.03,
        "theta": 0.1,
        "scales": 1,
        "warps": 1,
        "scale_step": 0.5,
        "epsilon": 0.1,
        "inner": 3,
        "outer": 1,
        "median": 1,
    }
    assert set(changes) == set(tvl1_cpu.SETTERS)
    for name, value in changes.items():
        assert not torch.equal(tvl1(a, b, **{name: value}), default), name


def test_direction_and_scale_follow_the_convention():
    """Three pixels to the right and one and a half up: (+3, -1.5) inside the square, nothing far from it."""
    flow = tvl1(square(12, 16), square(15, 14.5))
    assert flow.shape == (1, 2, 48, 48)
    assert flow[0, :, 22:30, 18:26].mean((1, 2)).tolist() == pytest.approx([3, -1.5], abs=0.2)
    assert flow[0, :, 40:, :8].norm(dim=0).mean() < 0.2


def test_threads_do_not_change_the_flow(monkeypatch):
    monkeypatch.setattr(tvl1_cpu, "CHUNK_PIXELS", 2 * 32 * 32)
    clip = sprites.render(configs.clip(size=32, frames=2), "iid", range(5)).rgb
    a, b = clip[:, :, 0], clip[:, :, 1]
    assert torch.equal(tvl1(a, b, workers=2), tvl1(a, b, workers=1))


@pytest.mark.parametrize(
    ("value", "expected"), [("", None), (" ", None), ("0", None), (None, None), ("3", 3), ("3,2", 3)]
)
def test_cores_follow_omp_num_threads(monkeypatch, value, expected):
    monkeypatch.setattr(tvl1_cpu, "cpu_count", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert tvl1_cpu.cores() == (expected or 7)


def test_a_clip_has_as_many_fields_as_frames():
    clip = sprites.render(configs.clip(size=24, frames=3), "iid", range(2)).rgb
    flow = tvl1_clip(clip)
    assert flow.shape == (2, 2, 3, 24, 24)
    assert torch.equal(flow[:, :, 0], tvl1(clip[:, :, 0], clip[:, :, 1]))
    assert torch.equal(flow[:, :, 1], tvl1(clip[:, :, 1], clip[:, :, 2]))
    assert torch.equal(flow[:, :, 2], flow[:, :, 1])


KERNELS = """
import sys, torch
from d3d.flow import estimate as flow, kernels
kernels.TILE, kernels.HALO = int(sys.argv[2]), int(sys.argv[3])
inputs = torch.load(sys.argv[1], weights_only=True)
torch.save(flow._solve(inputs["a"], inputs["b"], **inputs["parameters"]), sys.argv[1] + ".out")
"""


def solve_interpreted(path: Path, tile: int, halo: int) -> torch.Tensor:
    """Solves the pair at `path` with the GPU's kernels in Triton's interpreter."""
    command = [sys.executable, "-c", KERNELS, str(path), str(tile), str(halo)]
    subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)
    return torch.load(f"{path}.out", weights_only=True)


@pytest.mark.parametrize(
    ("tile", "halo", "median"),
    [(64, 10, 5), (32, 5, 5), (64, 10, 3), (64, 10, 1)],
    ids=["one tile", "overlapping tiles", "median of 9", "no median"],
)
def test_the_kernels_match_opencv(tile, halo, median, tmp_path):
    """A few steps on a small pair, in one tile and in several.

    epsilon is too small for early stopping, which OpenCV tests every step and the kernels every ten.
    """
    pytest.importorskip("triton")
    parameters = {"tau": 0.25, "lambda_": 0.15, "theta": 0.3, "scales": 2, "warps": 2, "scale_step": 0.8}
    parameters |= {"epsilon": 1e-6, "inner": 12, "outer": 1, "median": median}
    clip = sprites.render(configs.clip(size=38, frames=2, noise=0.02), "iid", [0, 5]).rgb[:, :, :, :33]
    a, b = clip[:, :, 0], clip[:, :, 1]
    grey = [(x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1) for x in (a, b)]
    torch.save({"a": grey[0], "b": grey[1], "parameters": parameters}, tmp_path / "pair")
    expected = tvl1(a, b, **parameters)
    error = endpoint_error(solve_interpreted(tmp_path / "pair", tile, halo), expected)
    assert expected.norm(dim=1).max() > 1
    # OpenCV rounds positions to 1/32 pixel when it warps.
    assert error.mean() < 0.02
    assert error.median() < 0.005


def test_a_converged_pair_is_unchanged_by_others_in_its_batch(tmp_path):
    """A pair without motion converges at once and keeps zero flow while the other pair is solved."""
    pytest.importorskip("triton")
    parameters = {"tau": 0.25, "lambda_": 0.15, "theta": 0.3, "scales": 1, "warps": 2, "scale_step": 0.8}
    parameters |= {"epsilon": 0.01, "inner": 20, "outer": 2, "median": 5}
    a, b = square(8, 8, 32), square(9.5, 8, 32)
    torch.save(
        {"a": torch.cat([a, a])[:, 0], "b": torch.cat([a, b])[:, 0], "parameters": parameters}, tmp_path / "pair"
    )
    flow = solve_interpreted(tmp_path / "pair", 64, 10)
    expected = tvl1(torch.cat([a, a]), torch.cat([a, b]), **parameters)
    assert expected[0].abs().max() == 0
    assert flow[0].abs().max() < 1e-4
    assert expected[1].abs().max() > 1
    assert endpoint_error(flow, expected)[1].mean() < 0.1


def test_the_kernels_do_not_specialise_the_number_of_pairs():
    """Triton would turn a count of one into a constant, which cannot be converted to int64."""
    pytest.importorskip("triton")
    from d3d.flow import kernels

    for kernel in (kernels._iterate, kernels._median):
        (images,) = [p for p in kernel.params if p.name == "images"]
        assert images.do_not_specialize


@gpu
@pytest.mark.parametrize("count", [1, 3])
def test_a_gpu_solves_any_number_of_pairs(count, monkeypatch):
    monkeypatch.setattr(flow_module, "CHUNK_PIXELS", 2 * 40 * 44)
    clip = sprites.render(configs.clip(size=44, frames=2), "iid", range(count)).rgb[:, :, :, :40]
    a, b = clip[:, :, 0], clip[:, :, 1]
    assert endpoint_error(tvl1(a.cuda(), b.cuda()).cpu(), tvl1(a, b)).mean() < 0.15


@gpu
@pytest.mark.parametrize("size", [64, 256])
def test_a_gpu_matches_opencv_on_sprites(size):
    clip = sprites.render(configs.clip(size=size, frames=2), "iid", range(16))
    a, b = clip.rgb[:, :, 0], clip.rgb[:, :, 1]
    flow, opencv_flow = tvl1(a.cuda(), b.cuda()).cpu(), tvl1(a, b)
    assert endpoint_error(flow, opencv_flow).mean() < 0.15
    truth, target = clip.flow[:, :, 0], clip.mask[:, 0]
    metrics, opencv_metrics = (epe_metrics(x, truth, target=target) for x in (flow, opencv_flow))
    # Testing convergence every ten steps instead of every one costs a little accuracy, most on the target.
    assert metrics["epe"] < 1.05 * opencv_metrics["epe"]
    assert metrics["epe/target"] < 1.05 * opencv_metrics["epe/target"]


@gpu
def test_a_gpu_matches_opencv_on_real_clips(real_clips):
    for path in sorted(real_clips.glob("*.[am][vp][i4]")):
        frames = first_frames(path, 6, "rgb24")
        a, b = (torch.from_numpy(frames[i]).permute(2, 0, 1)[None] / 255 for i in (3, 4))
        assert endpoint_error(tvl1(a.cuda(), b.cuda()).cpu(), tvl1(a, b)).mean() < 0.15, path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"b": torch.zeros(1, 1, 20, 21)},
            r"must have the same shape and device, not \(1, 1, 20, 20\) on cpu and \(1, 1, 20, 21\) on cpu",
        ),
        ({"a": torch.zeros(1, 2, 20, 20), "b": torch.zeros(1, 2, 20, 20)}, r"images must be float \(B, 1, H, W\)"),
        ({"a": torch.zeros(20, 20), "b": torch.zeros(20, 20)}, r"images must be float .* not torch.float32 \(20, 20\)"),
        ({"median": 4}, "median must be 1"),
        ({"scale_step": 1.0}, "scale_step must lie between 0 and 1, not 1.0"),
        ({"warps": 0}, "warps must be a whole number from 1 up, not 0"),
        ({"scales": 2.5}, "scales must be a whole number from 1 up, not 2.5"),
        ({"workers": -3}, "workers must be a whole number from 1 up, not -3"),
        ({"epsilon": -1.0}, "epsilon must not be negative, it is -1.0"),
        ({"tau": -1.0}, "tau must be positive"),
    ],
)
def test_invalid_arguments_are_named(change, message):
    images = {"a": torch.zeros(1, 1, 20, 20), "b": torch.zeros(1, 1, 20, 20)}
    with pytest.raises(ValueError, match=message):
        tvl1(**images | change)


def test_a_clip_of_one_frame_raises_an_error():
    with pytest.raises(ValueError, match=r"at least 2 frames, not \(1, 3, 1, 20, 20\)"):
        tvl1_clip(torch.zeros(1, 3, 1, 20, 20))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_dtype_and_strides_of_the_images_do_not_matter(dtype):
    a, b = square(8, 8, 32), square(9, 8, 32)
    expected = tvl1(a, b)
    transposed = [x.to(dtype).transpose(2, 3).contiguous().transpose(2, 3) for x in (a, b)]
    with torch.autocast("cpu", torch.bfloat16):
        flow = tvl1(*(x.expand(-1, 3, -1, -1) for x in transposed))
    assert flow.dtype == torch.float32
    assert endpoint_error(flow, expected).mean() < 0.05
    assert not tvl1(a.requires_grad_(), b).requires_grad


def test_flow_is_scaled_between_levels_of_equal_size(monkeypatch):
    """With a scale_step of 0.98, 20 pixels stay 20, but the flow of the coarser level is still scaled."""
    assert round(20 * 0.98) == 20
    initial = []

    def solve_level(a, b, u, **kwargs):
        initial.append(u.clone())
        return u + 1

    monkeypatch.setattr(flow_module, "_solve_level", solve_level)
    image = torch.rand(1, 20, 20)
    flow = flow_module._solve(image, image, scales=2, warps=1, scale_step=0.98, epsilon=0.01, median=5)
    assert torch.allclose(initial[1], torch.tensor(1 / 0.98))
    assert torch.allclose(flow, torch.tensor(1 + 1 / 0.98))


def test_no_pairs_give_no_flow():
    assert tvl1(torch.zeros(0, 1, 20, 24), torch.zeros(0, 1, 20, 24)).shape == (0, 2, 20, 24)


def test_warping_by_whole_pixels_copies_pixels():
    image = torch.rand(1, 2, 6, 7)
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 6, 7)
    warped = warp(image, flow)
    assert torch.allclose(warped[:, :, 1:, :5], image[:, :, :5, 2:], atol=1e-5)
    assert torch.allclose(warped[:, :, 0, :5], image[:, :, 0, 2:], atol=1e-5)
    assert warp(image, flow, padding="zeros")[:, :, 0].abs().max() < 1e-5


@settings(max_examples=20)
@given(x=st.floats(-2, 2), y=st.floats(-2, 2))
def test_warping_is_cubic_convolution(x, y):
    """Equal to OpenCV's cubic remap, up to its rounding of positions to 1/32 pixel."""
    image = cv2.GaussianBlur(np.random.default_rng(0).random((20, 24), np.float32), (5, 5), 2)
    flow = torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, 20, 24)
    rows, cols = np.mgrid[:20, :24].astype(np.float32)
    expected = cv2.remap(image, cols + np.float32(x), rows + np.float32(y), cv2.INTER_CUBIC)
    warped = warp(torch.from_numpy(image)[None, None], flow, padding="zeros")[0, 0].numpy()
    assert np.abs(warped - expected)[4:-4, 4:-4].max() < 0.01


def test_pixels_that_are_covered_or_leave_are_occluded():
    """A bar of two columns moves right by one column per frame and leaves at the end; the background does not move."""
    layer = torch.zeros(1, 3, 1, 5, dtype=torch.uint8)
    flow = torch.zeros(1, 2, 3, 1, 5)
    for t in range(3):
        layer[0, t, 0, 2 + t : 4 + t] = 1
        flow[0, 0, t, 0, 2 + t : 4 + t] = 1
    assert occluded(layer, flow)[0, :, 0].int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]


def test_end_point_errors_by_hand():
    truth = torch.zeros(1, 2, 1, 4)
    truth[0, 0, 0] = torch.tensor([0.0, 1.0, 1.0, 3.0])
    flow = truth.clone()
    flow[0, :, 0, 1] += torch.tensor([3.0, 4.0])
    flow[0, 1, 0, 3] -= 1
    target = torch.tensor([[[False, True, True, False]]])
    assert endpoint_error(flow, truth).flatten().tolist() == [0, 5, 0, 1]
    assert epe_metrics(flow, truth, target=target, empty=~target & target) == pytest.approx(
        {"epe": 1.5, "epe/slow": 0, "epe/medium": 2.5, "epe/fast": 1, "epe/target": 2.5}
    )


def test_colours_have_the_same_scale_in_all_batches():
    flow = torch.zeros(2, 2, 1, 3)
    flow[0, 0, 0] = torch.tensor([0.0, 2.0, 4.0])
    flow[1, 0, 0] = torch.tensor([4.0, 40.0, -4.0])
    rgb = colours(flow, bound=4.0)
    assert rgb.shape == (2, 3, 1, 3)
    assert rgb.dtype == torch.uint8
    assert rgb[0, :, 0, 0].tolist() == [255, 255, 255]
    saturation = (rgb.amax(1) - rgb.amin(1)).int()
    assert 0 < saturation[0, 0, 1] < saturation[0, 0, 2]
    # Full speed looks the same in both clips, and faster motion looks like full speed.
    assert torch.equal(rgb[0, :, 0, 2], rgb[1, :, 0, 0])
    assert torch.equal(rgb[1, :, 0, 0], rgb[1, :, 0, 1])
    assert not torch.equal(rgb[1, :, 0, 0], rgb[1, :, 0, 2])
    assert torch.equal(colours(flow[:1], bound=4.0), rgb[:1])
    with pytest.raises(ValueError, match="bound must be positive, not 0"):
        colours(flow, bound=0)


def test_the_median_network_finds_the_median():
    pytest.importorskip("triton")
    from d3d.flow.kernels import _median_network

    rng = np.random.default_rng(0)
    for n in (9, 25):
        pairs, middle = _median_network(n)
        for values in rng.integers(0, 6, (200, n)):
            v = values.tolist()
            for i, j in pairs:
                v[i], v[j] = sorted((v[i], v[j]))
            assert v[middle] == np.median(values)


def test_warping_brings_consecutive_frames_of_a_real_clip_closer(real_clips):
    path = min(real_clips.glob("*.[am][vp][i4]"))
    frames = [torch.from_numpy(f)[None, None] / 255 for f in first_frames(path, 4, "gray")]
    for a, b in pairwise(F.interpolate(f, size=(96, 128), mode="area") for f in frames):
        assert (warp(b, tvl1(a, b)) - a).abs().mean() < 0.7 * (b - a).abs().mean()
