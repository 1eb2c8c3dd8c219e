"""Attribution of models whose correct attribution can be computed by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from d3d.data.clips import Clips
from d3d.data.load import load
from d3d.data.sprites import render
from d3d.probing import attribution, map_checks, maps, margins
from d3d.s3dg.network import s3dg
from d3d.train.evaluate import calibrate, predict
from tests import configs


class Linear(nn.Module):
    """Logits (B, 2): a weighted sum of the clip, and its negative."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        z = (x * self.weight).sum((1, 2, 3, 4))
        return torch.stack([z, -z], 1)


class MiddleFrame(nn.Module):
    """Depends on the middle frame only."""

    def forward(self, x):
        z = x[:, 0, x.shape[2] // 2].mean((1, 2))
        return torch.stack([z, -z], 1)


class FrameDifferences(nn.Module):
    """Depends on the differences between consecutive frames only."""

    def forward(self, x):
        z = (x[:, 0, 1:] - x[:, 0, :-1]).abs().mean((1, 2, 3))
        return torch.stack([z, -z], 1)


def clip_set(rgb, groups):
    """Clips (N, 3, T, H, W) in [0, 255] with label 0."""
    table = pd.DataFrame({"label": 0, "group": groups})
    return Clips(rgb.byte(), None, None, None, torch.zeros(len(rgb), dtype=torch.long), table, 1.0)


def test_integrated_gradients_of_a_linear_model():
    clips, weight = torch.rand(3, 3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    labels = torch.tensor([0, 0, 1])
    result = maps.integrated_gradients(Linear(weight), clips, labels, steps=4)
    sign = torch.tensor([1.0, 1.0, -1.0]).view(-1, 1, 1, 1, 1)
    expected = sign * weight * (clips - clips.mean((2, 3, 4), keepdim=True))
    assert torch.allclose(result.values, expected, atol=1e-5)
    assert result.delta.abs().max() < 1e-3


def test_integrated_gradients_from_the_still_clip_add_up_to_what_motion_adds():
    clips, weight = torch.rand(3, 3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    model, labels, still = Linear(weight), torch.tensor([0, 0, 1]), margins.still(clips, "rgb")
    values = maps.integrated_gradients(model, clips, labels, baseline=still, steps=4).values
    added = margins.logit_margin(model(clips), labels) - margins.logit_margin(model(still), labels)
    assert torch.allclose(values.sum((1, 2, 3, 4)), added, atol=1e-4)
    assert values[:, :, 2].abs().max() < 1e-6  # the middle frame, which both have
    assert margins.still(clips, "flow").abs().max() == 0


def test_fraction_in_mask_by_hand():
    values = torch.zeros(1, 2, 1, 2, 2)
    values[0, 0, 0, 0, 0], values[0, 1, 0, 1, 1] = -3, 1
    mask = torch.tensor([[[[1, 0], [0, 0]]]])
    assert maps.fraction_in_mask(values, mask).tolist() == [0.75]
    assert maps.fraction_in_mask(values.abs().sum(1), mask).tolist() == [0.75]


def test_frames_are_repeated_or_shuffled():
    clips = torch.arange(6.0).view(1, 1, 6, 1, 1)
    assert margins.repeat_middle_frame(clips).flatten().tolist() == [3] * 6
    shuffled = margins.shuffle_frames(clips).flatten().tolist()
    assert sorted(shuffled) == [0, 1, 2, 3, 4, 5]
    assert shuffled != [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("model", "share"), [(MiddleFrame(), 0.0), (FrameDifferences(), 1.0)])
def test_the_motion_part_is_nothing_of_one_frame_and_all_of_frame_differences(model, share):
    """The unit is the spread of the logits: of z and −z over clips, the root of the mean of z²."""
    clips = clip_set(torch.randint(0, 256, (20, 3, 5, 8, 8)), ["still"] * 10 + ["moving"] * 10)
    logits = predict(model, clips, "rgb")
    falls = margins.motion_part(model, clips, "rgb", logits=logits)
    z = logits[:, 0]
    assert falls["frozen"] == pytest.approx(share * z.mean() / np.sqrt((z**2).mean()), abs=1e-6)
    assert falls["frozen/moving"] == pytest.approx(share * z[10:].mean() / np.sqrt((z**2).mean()), abs=1e-6)
    assert falls["frozen"] == pytest.approx((falls["frozen/still"] + falls["frozen/moving"]) / 2, abs=1e-6)


def test_of_one_group_there_are_no_parts_by_group():
    clips = clip_set(torch.randint(0, 256, (4, 3, 5, 8, 8)), ["all"] * 4)
    model = FrameDifferences()
    falls = margins.motion_part(model, clips, "rgb", logits=predict(model, clips, "rgb"))
    assert set(falls) == {"frozen", "shuffled"}


def test_logit_margin_by_hand():
    assert margins.logit_margin(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([0])).tolist() == [2.0]


def test_grad_cam_has_the_size_of_the_clips_and_refuses_an_unknown_endpoint():
    clips, labels = torch.rand(2, 3, 8, 32, 32), torch.tensor([0, 1])
    model = s3dg(4, width=0.1)
    cam = maps.grad_cam(model, clips, labels, endpoint="Mixed_4f")
    assert cam.shape == (2, 8, 32, 32)
    assert cam.min() >= 0
    with pytest.raises(ValueError, match="no endpoint 'Mixed_9z'"):
        maps.grad_cam(model, clips, labels, endpoint="Mixed_9z")


def test_hiding_a_frame_costs_what_the_network_takes_from_it():
    """Of 16 frames two are hidden at a time; only frames 4 and 5 count, by their difference from the mean colour."""
    clips, weight = torch.rand(2, 3, 16, 4, 4), torch.zeros(3, 16, 4, 4)
    weight[:, 4:6] = 1
    falls = maps.occlusion_in_time(Linear(weight), clips, torch.tensor([0, 1]))
    mean = clips.mean((2, 3, 4), keepdim=True)
    expected = (clips - mean)[:, :, 4:6].sum((1, 2, 3, 4)) * torch.tensor([1, -1])
    assert torch.allclose(falls[:, 4], expected, atol=1e-4)
    assert torch.allclose(falls[:, 5], expected, atol=1e-4)
    assert falls[:, [0, 1, 2, 3, *range(6, 16)]].abs().max() < 1e-4


def test_rank_correlation_is_spearmans_and_0_of_a_constant_map():
    a, b = torch.rand(2, 3, 3, 4, 4)
    b[2] = 1
    correlations = maps.rank_correlation(a, b)
    expected = [spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a[:2], b[:2], strict=True)]
    assert correlations.tolist() == pytest.approx([*expected, 0])
    assert maps.rank_correlation(a, a**3).tolist() == pytest.approx([1] * 3)


def test_maps_are_averaged_over_the_blocks_of_a_coarser_one():
    assert maps.averaged(torch.arange(8.0).view(1, 2, 2, 2), (2, 2, 2)).flatten().tolist() == [3.5]
    assert maps.averaged(torch.rand(1, 4, 16, 16), (8, 16, 16)).shape == (1, 1, 1, 1)


def test_deletion_removes_the_highest_attributions_first():
    """A network that counts four bright pixels of 64: 5 % are 4 pixels, hidden, the margin is that of grey clips."""
    clips = torch.zeros(1, 1, 4, 4, 4)
    clips[0, 0, 1] = 0.5
    clips[0, 0, 1, 0] = 1.0
    weight = torch.zeros(1, 4, 4, 4)
    weight[0, 1, 0] = 1
    model, labels, grey = Linear(weight), torch.tensor([0]), clips.mean().item()
    right = map_checks.deletion_curve(model, clips, labels, weight)
    wrong = map_checks.deletion_curve(model, clips, labels, 1 - weight)
    assert right[[0, 1, 2]].tolist() == pytest.approx([4, 2 + 2 * grey, 4 * grey])
    assert wrong[:-1].tolist() == pytest.approx([4] * 7)
    assert right[-1] == wrong[-1] == pytest.approx(4 * grey)
    random_curve = map_checks.deletion_curve(model, clips, labels, map_checks.random_map(clips))
    assert map_checks.found_by(right, random_curve) > 0 > map_checks.found_by(wrong, random_curve)
    assert map_checks.found_by(random_curve, random_curve) == 0


@pytest.mark.parametrize(("stage", "first"), [("Conv2d_0c_1x1", None), ("Mixed_4b", "Mixed_4b"), ("Conv2d_1a_7x7", "")])
def test_weights_are_randomised_from_a_stage_on(stage, first):
    model, clips = s3dg(4, width=0.1, seed=1), torch.rand(2, 3, 8, 32, 32)
    copy = map_checks.randomised(model, stage, clips)
    assert not copy.training
    stages = list(model.features)
    kept = stages if first is None else stages[: stages.index(first)] if first else []
    own, changed = dict(model.named_parameters()), dict(copy.named_parameters())
    for name in stages:
        weights = [k for k, v in own.items() if k.startswith(f"features.{name}.") and v.ndim > 1]
        for key in weights:
            assert torch.equal(own[key], changed[key]) == (name in kept or "temporal" in key), key
    assert not torch.equal(model.Conv2d_0c_1x1.weight, copy.Conv2d_0c_1x1.weight)


def test_maps_that_ignore_the_network_survive_random_weights():
    model, clips = s3dg(4, width=0.1, seed=1), torch.rand(3, 3, 8, 32, 32)

    def make_maps(network):
        return {"clip": clips.mean(1), "weights": torch.full((3, 8, 32, 32), network.Conv2d_0c_1x1.weight.sum().item())}

    def share_equal(a, b):
        return (a == b).flatten(1).float().mean(1)

    kept = map_checks.kept_after_randomising(model, clips, make_maps(model), make_maps, share_equal)
    assert {name.split("/")[0] for name in kept} == set(map_checks.RANDOMISED_FROM)
    assert {name.split("/")[1]: value for name, value in kept.items()} == {"clip": 1, "weights": 0}


def test_films_show_every_outcome_in_turn():
    right = {
        "rgb_longer": np.array([1, 1, 1, 0, 0, 1, 0], bool),
        "d3d": np.array([1, 1, 0, 0, 1, 0, 0], bool),
    }
    assert attribution.choose_shown(right, count=6).tolist() == [0, 4, 2, 3, 1, 5]
    assert attribution.choose_shown(right, count=99).tolist() == [0, 4, 2, 3, 1, 5, 6]
    assert attribution.choose_shown({"d3d": right["d3d"]}, count=3).tolist() == [0, 2, 1]
    assert attribution.choose_shown({"rgb": right["d3d"]}, count=3).tolist() == []


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_maps_of_a_network_are_examined_on_the_layers_of_the_clips(stream):
    small = {"frames": 4, "size": 16, "train_clips": 16, "test_clips": 16}
    data = configs.data(**small, flow="exact")
    clips = load(data, seed=0, streams=("rgb", "flow")).splits["iid"]
    layers = render(data.clip, "iid", range(3)).layer
    model = calibrate(s3dg(16, in_channels=3 if stream == "rgb" else 2, width=0.1), clips, stream)
    config = configs.attributing(
        frames=4, size=16, train_clips=16, test_clips=16, clips=3, steps=4, endpoint="Mixed_3c"
    )
    metrics, arrays = attribution.examine_maps(model, clips, stream, layers, spread=2.0, config=config)
    assert metrics["target_area"] == pytest.approx(clips.mask[:3].float().mean().item())
    for method in ("", "motion_", "cam_"):
        shares = [metrics[f"{method}{sprite}_share"] for sprite in ("target", "distractor")]
        assert min(shares) >= 0
        assert sum(shares) <= 1
    assert arrays["occlusion"].shape == (4,)
    assert arrays["deletion/grad_cam"][[0, -1]] == pytest.approx(arrays["deletion/random"][[0, -1]], abs=1e-5)
    assert sum(name.startswith("randomised/") for name in metrics) == 3 * len(map_checks.RANDOMISED_FROM)
    published = attribution.published_maps(model, clips, stream, np.array([2, 0]), config=config)
    assert published["shown/motion_gradients"].shape == published["shown/grad_cam"].shape == (2, 4, 16, 16)
    assert published["shown/motion_gradients"].max((1, 2, 3)).tolist() == [255, 255]
    assert published["shown/rows"].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clips": 999}, r"clips must lie between 1 and test_clips \(256\), not 999"),
        ({"steps": 1}, "steps must be at least 2, not 1"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        configs.attributing(**values)
