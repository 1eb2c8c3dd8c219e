"""TV-L1 against exact flow: regions, arms and the sizes at which flow is computed."""

import pytest
import torch

from d3d.flow.estimate import tvl1
from d3d.flow.fields import endpoint_error
from d3d.probing import tvl1 as tvl1_study
from d3d.study import arms
from tests import configs

SMALL = configs.estimating(frames=4, size=24, pairs=2)


def test_frame_pairs_are_in_8_bits_and_complementary_regions_cover_them():
    pairs = tvl1_study.frame_pairs(SMALL)
    assert pairs.first.shape == pairs.second.shape == (2, 3, 24, 24)
    assert pairs.flow.shape == (2, 2, 24, 24)
    assert ((pairs.first * 255).round() - pairs.first * 255).abs().max() < 1e-3
    for region, complement in (("occluded", "visible"), ("textured", "flat")):
        assert torch.equal(pairs.regions[region], ~pairs.regions[complement])
    assert pairs.regions["textured"].float().mean() == pytest.approx(0.5, abs=0.01)


def test_the_default_variant_has_the_default_parameters():
    metrics = tvl1_study.evaluate_variants(SMALL)
    assert list(metrics) == list(arms.TVL1_VARIANTS)
    pairs = tvl1_study.frame_pairs(SMALL)
    expected = endpoint_error(tvl1(pairs.first, pairs.second), pairs.flow).mean().item()
    assert metrics["default"]["epe"] == pytest.approx(expected, rel=1e-6)
    assert metrics["warps_2"]["epe"] != pytest.approx(expected, rel=1e-6)
    assert all(m["ms"] > 0 for m in metrics.values())


def test_on_a_cpu_ours_is_opencv():
    assert tvl1_study.evaluate_opencv(SMALL)["difference"] == 0


def test_errors_are_in_pixels_at_the_networks_size(monkeypatch):
    """A solver that returns the true flow has no error at any size but what resizing loses."""
    video = tvl1_study.frame_pairs(configs.estimating(frames=4, size=48, pairs=2, amplitude=3.0, camera=1.0))

    def true_flow(first, second):
        factor = first.shape[-1] / 48
        return torch.nn.functional.interpolate(video.flow, size=first.shape[2:], mode="area") * factor

    monkeypatch.setattr(tvl1_study, "tvl1", true_flow)
    metrics = tvl1_study.evaluate_sizes(SMALL)
    assert list(metrics) == list(arms.TVL1_SIZES)
    assert metrics["size_2"]["epe"] == pytest.approx(0, abs=1e-5)
    assert metrics["size_1"]["epe"] == pytest.approx(0, abs=1e-5)
    assert 0 < metrics["size_0.5"]["epe"] < 0.5 * video.flow.norm(dim=1).mean()


def test_zero_pairs_are_refused():
    with pytest.raises(ValueError, match="pairs must be at least 1, not 0"):
        configs.estimating(pairs=0)
