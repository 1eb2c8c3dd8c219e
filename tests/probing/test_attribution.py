"""Attribution of models whose correct attribution can be computed by hand."""

import pytest
import torch
from torch import nn

from d3d.data.load import load
from d3d.probing import attribution
from d3d.s3dg.network import s3dg
from d3d.train.evaluate import calibrate
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


def test_integrated_gradients_of_a_linear_model():
    clips, weight = torch.rand(3, 3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    labels = torch.tensor([0, 0, 1])
    result = attribution.integrated_gradients(Linear(weight), clips, labels, steps=4)
    sign = torch.tensor([1.0, 1.0, -1.0]).view(-1, 1, 1, 1, 1)
    expected = sign * weight * (clips - clips.mean((2, 3, 4), keepdim=True))
    assert torch.allclose(result.values, expected, atol=1e-5)
    assert result.delta.abs().max() < 1e-3


def test_fraction_in_mask_by_hand():
    values = torch.zeros(1, 2, 1, 2, 2)
    values[0, 0, 0, 0, 0], values[0, 1, 0, 1, 1] = -3, 1
    mask = torch.tensor([[[[1, 0], [0, 0]]]])
    assert attribution.fraction_in_mask(values, mask).tolist() == [0.75]
    assert attribution.fraction_in_mask(values.abs().sum(1), mask).tolist() == [0.75]


def test_frames_are_repeated_or_shuffled():
    clips = torch.arange(6.0).view(1, 1, 6, 1, 1)
    assert attribution.repeat_middle_frame(clips).flatten().tolist() == [3] * 6
    shuffled = attribution.shuffle_frames(clips).flatten().tolist()
    assert sorted(shuffled) == [0, 1, 2, 3, 4, 5]
    assert shuffled != [0, 1, 2, 3, 4, 5]


def test_a_model_of_one_frame_loses_no_margin_when_frozen():
    clips, labels = torch.rand(20, 3, 5, 4, 4), torch.zeros(20, dtype=torch.long)
    assert attribution.margin_drops(MiddleFrame(), clips, labels, batch_size=7)["frozen"] == pytest.approx(0, abs=1e-6)


def test_a_model_of_frame_differences_loses_its_whole_margin_when_frozen():
    clips, labels = torch.rand(20, 3, 5, 4, 4), torch.zeros(20, dtype=torch.long)
    margins = attribution.logit_margin(FrameDifferences()(clips), labels)
    drops = attribution.margin_drops(FrameDifferences(), clips, labels)
    assert drops["frozen"] == pytest.approx((margins.mean() / margins.std()).item(), rel=1e-5)


def test_logit_margin_by_hand():
    assert attribution.logit_margin(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([0])).tolist() == [2.0]


def test_grad_cam_has_the_size_of_the_clips_and_refuses_an_unknown_endpoint():
    clips, labels = torch.rand(2, 3, 8, 32, 32), torch.tensor([0, 1])
    model = s3dg(4, width=0.1)
    cam = attribution.grad_cam(model, clips, labels, endpoint="Mixed_4f")
    assert cam.shape == (2, 8, 32, 32)
    assert cam.min() >= 0
    with pytest.raises(ValueError, match="no endpoint 'Mixed_9z'"):
        attribution.grad_cam(model, clips, labels, endpoint="Mixed_9z")


def test_attribute_clips_returns_metrics_and_scaled_maps():
    clips = load(configs.data(frames=4, size=16, train_clips=16, test_clips=16), seed=0).splits["iid"]
    metrics, maps = attribution.attribute_clips(
        calibrate(s3dg(16, width=0.1), clips, "rgb"), clips, num_clips=3, steps=4, endpoint="Mixed_3c"
    )
    assert metrics["target_area"] == pytest.approx(clips.mask[:3].float().mean().item())
    assert 0 <= metrics["target_share"] <= 1
    assert maps["integrated_gradients"].shape == maps["grad_cam"].shape == (3, 4, 16, 16)
    assert maps["integrated_gradients"].max() == 1


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
