"""Attribution on models whose right answer is computed by hand."""

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
    def forward(self, x):
        z = x[:, 0, x.shape[2] // 2].mean((1, 2))
        return torch.stack([z, -z], 1)


class Change(nn.Module):
    """Sees only differences between neighbouring frames."""

    def forward(self, x):
        z = (x[:, 0, 1:] - x[:, 0, :-1]).abs().mean((1, 2, 3))
        return torch.stack([z, -z], 1)


def test_integrated_gradients_of_a_linear_model():
    clips, weight = torch.rand(3, 3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    labels = torch.tensor([0, 0, 1])
    found = attribution.integrated_gradients(Linear(weight), clips, labels, steps=4)
    sign = torch.tensor([1.0, 1.0, -1.0]).view(-1, 1, 1, 1, 1)
    by_hand = sign * weight * (clips - clips.mean((2, 3, 4), keepdim=True))
    assert torch.allclose(found.values, by_hand, atol=1e-5)
    assert found.delta.abs().max() < 1e-3


def test_a_share_by_hand():
    values = torch.zeros(1, 2, 1, 2, 2)
    values[0, 0, 0, 0, 0], values[0, 1, 0, 1, 1] = -3, 1
    mask = torch.tensor([[[[1, 0], [0, 0]]]])
    assert attribution.share_on(mask, values).tolist() == [0.75]
    assert attribution.share_on(mask, values.abs().sum(1)).tolist() == [0.75]


def test_freezing_keeps_the_middle_frame_and_shuffling_keeps_all():
    clips = torch.arange(6.0).view(1, 1, 6, 1, 1)
    assert attribution.frozen(clips).flatten().tolist() == [3] * 6
    shuffled = attribution.shuffled(clips).flatten().tolist()
    assert sorted(shuffled) == [0, 1, 2, 3, 4, 5]
    assert shuffled != [0, 1, 2, 3, 4, 5]


def test_the_motion_part_of_a_model_that_sees_one_frame_is_zero():
    clips, labels = torch.rand(20, 3, 5, 4, 4), torch.zeros(20, dtype=torch.long)
    assert attribution.motion_part(MiddleFrame(), clips, labels, batch_size=7)["frozen"] == pytest.approx(0, abs=1e-6)


def test_the_motion_part_of_a_model_that_sees_only_change_is_all():
    clips, labels = torch.rand(20, 3, 5, 4, 4), torch.zeros(20, dtype=torch.long)
    margins = attribution.margin(Change()(clips), labels)
    found = attribution.motion_part(Change(), clips, labels)
    assert found["frozen"] == pytest.approx((margins.mean() / margins.std()).item(), rel=1e-5)


def test_margins_by_hand():
    assert attribution.margin(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([0])).tolist() == [2.0]


def test_grad_cam_has_the_clips_size_and_names_a_wrong_endpoint():
    clips, labels = torch.rand(2, 3, 8, 32, 32), torch.tensor([0, 1])
    model = s3dg(4, width=0.1)
    cam = attribution.grad_cam(model, clips, labels, endpoint="Mixed_4f")
    assert cam.shape == (2, 8, 32, 32)
    assert cam.min() >= 0
    with pytest.raises(ValueError, match="no endpoint 'Mixed_9z'"):
        attribution.grad_cam(model, clips, labels, endpoint="Mixed_9z")


def test_explaining_a_split():
    split = load(configs.data(frames=4, size=16, train_clips=16, test_clips=16), seed=0).splits["iid"]
    metrics, arrays = attribution.explain(
        calibrate(s3dg(16, width=0.1), split, "rgb"), split, clips=3, steps=4, endpoint="Mixed_3c"
    )
    assert metrics["target_area"] == pytest.approx(split.mask[:3].float().mean().item())
    assert 0 <= metrics["target_share"] <= 1
    assert arrays["integrated_gradients"].shape == arrays["grad_cam"].shape == (3, 4, 16, 16)
    assert arrays["integrated_gradients"].max() == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clips": 999}, r"clips must lie between 1 and test_clips \(256\), not 999"),
        ({"steps": 1}, "steps must be at least 2, not 1"),
    ],
)
def test_a_value_out_of_range_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        configs.attributing(**values)
