"""TV-L1 held against exact flow: the parts add up, and the ways to a size are what they say."""

import pytest
import torch

from d3d.flow.estimate import tvl1
from d3d.flow.fields import endpoint_error
from d3d.probing import tvl1 as tvl1_study
from d3d.study import arms
from tests import configs

SMALL = configs.estimating(frames=4, size=24, pairs=2)


def test_frames_follow_each_other_and_parts_cover_them():
    given = tvl1_study.frames(SMALL)
    assert given.a.shape == given.b.shape == (2, 3, 24, 24)
    assert given.truth.shape == (2, 2, 24, 24)
    assert ((given.a * 255).round() - given.a * 255).abs().max() < 1e-3
    for one, other in (("occluded", "visible"), ("textured", "flat")):
        assert torch.equal(given.parts[one], ~given.parts[other])
    assert given.parts["textured"].float().mean() == pytest.approx(0.5, abs=0.01)


def test_the_default_arm_is_the_default():
    found = tvl1_study.variants(SMALL)
    assert list(found) == list(arms.TVL1_VARIANTS)
    given = tvl1_study.frames(SMALL)
    want = endpoint_error(tvl1(given.a, given.b), given.truth).mean().item()
    assert found["default"]["epe"] == pytest.approx(want, rel=1e-6)
    assert found["warps_2"]["epe"] != pytest.approx(want, rel=1e-6)
    assert all(metrics["ms"] > 0 for metrics in found.values())


def test_on_a_cpu_ours_is_opencvs():
    assert tvl1_study.opencv(SMALL)["difference"] == 0


def test_flow_comes_out_in_pixels_of_the_networks_size(monkeypatch):
    """With a solver that knows the truth, every size gives it back but for what resizing loses."""
    video = tvl1_study.frames(configs.estimating(frames=4, size=48, pairs=2, amplitude=3.0, camera=1.0))

    def solver(a, b):
        factor = a.shape[-1] / 48
        return torch.nn.functional.interpolate(video.truth, size=a.shape[2:], mode="area") * factor

    monkeypatch.setattr(tvl1_study, "tvl1", solver)
    found = tvl1_study.sizes(SMALL)
    assert list(found) == list(arms.TVL1_SIZES)
    assert found["size_2"]["epe"] == pytest.approx(0, abs=1e-5)
    assert found["size_1"]["epe"] == pytest.approx(0, abs=1e-5)
    assert 0 < found["size_0.5"]["epe"] < 0.5 * video.truth.norm(dim=1).mean()


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="pairs must be at least 1, not 0"):
        configs.estimating(pairs=0)
