"""The detector: its shapes and gradients, where it cuts boxes out, and that boxes and scenes do not see each other."""

import pytest
import torch

from d3d.detection.network import ActionDetector, _first_centre, crop_boxes
from d3d.s3dg.network import s3dg

BOXES = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.25, 1.0, 0.75], [0.1, 0.6, 0.4, 0.9]])


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def detector(in_channels=3, actions=5):
    """A small detector in inference mode whose activations do not vanish, and whose logits differ."""
    model = ActionDetector(s3dg(16, width=0.1, in_channels=in_channels), actions)
    torch.nn.init.normal_(model.classifier.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(2, in_channels, 4, 64, 64), BOXES, torch.tensor([0, 1, 1]))
    return model.eval()


@pytest.mark.parametrize("in_channels", [2, 3])
def test_every_box_has_a_logit_per_action_and_every_part_a_gradient(in_channels):
    model = detector(in_channels).train()
    logits = model(torch.rand(2, in_channels, 4, 64, 48), BOXES, torch.tensor([0, 1, 1]))
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient.abs().sum() > 0 for gradient in trained.values())
    assert {name.split(".")[1] for name in trained} >= {"Conv2d_1a_7x7", "Mixed_4f", "Mixed_5b", "Mixed_5c"}


def test_it_has_the_weights_of_the_network_and_leaves_it_as_it_is():
    network = s3dg(16, width=0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = ActionDetector(network, 5)
    for part in (model.trunk, model.head):
        for name, value in part.state_dict().items():
            assert torch.equal(value, before[f"features.{name}"])
    assert "MaxPool_5a_2x2" not in {*model.trunk, *model.head}
    model(torch.rand(1, 3, 4, 32, 32), BOXES[:1], torch.tensor([0])).sum().backward()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_actions_are_improbable_before_training_and_weights_depend_on_the_seed_alone():
    first, same, other = (ActionDetector(s3dg(16, width=0.1), 80, seed=seed).eval() for seed in (0, 0, 1))
    assert torch.equal(first.classifier.weight, same.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    probability = first(torch.rand(1, 3, 4, 32, 32), BOXES, torch.zeros(3, dtype=torch.int64)).sigmoid()
    assert torch.allclose(probability, torch.full((3, 80), 0.01), atol=0.002)


def test_a_box_is_cut_out_of_every_slice_of_its_own_scene():
    """Cells hold 1000 scene + 100 slice + 10 y + x at their centres; between these RoIAlign interpolates linearly."""
    scene, t, y, x = torch.meshgrid(torch.arange(2), torch.arange(3), torch.arange(9), torch.arange(12), indexing="ij")
    values = (1000 * scene + 100 * t + 10 * y + x)[:, None].float()
    # A box of 7 x 7 whole cells is the crop itself, whatever is outside; one of half the size has half the steps.
    crops = crop_boxes(values, torch.tensor([[3.0, 1.0, 10.0, 8.0], [3.0, 1.0, 6.5, 4.5]]), torch.tensor([1, 0]))
    assert crops.shape == (2, 1, 3, 7, 7)
    assert torch.allclose(crops[0], values[1, :, :, 1:8, 3:10])
    step = torch.arange(7) / 2 + 0.25 - 0.5
    expected = 100 * torch.arange(3)[:, None, None] + 10 * (1 + step)[:, None] + (3 + step)
    assert torch.allclose(crops[1, 0], expected)


def test_cells_look_where_the_boxes_are_converted_to():
    """The mean position of the pixels that a column of cells depends on, weighted; 7.5 pixels are at stake."""
    model = detector()
    for module in model.trunk.modules():
        if isinstance(module, torch.nn.Conv3d):
            torch.nn.init.constant_(module.weight, 0.02)
    for side in (256, 246):
        clips = torch.rand(4, 3, 2, side, side, requires_grad=True)
        x = clips
        for name, module in model.trunk.items():
            # What follows the last pool looks to all sides alike.
            x = x if name.startswith("Mixed_4") else module(x)
        column = x.shape[-1] // 2
        x[..., column].sum().backward()
        weight = clips.grad.abs().sum((0, 1, 2, 3))
        centre, stride = _first_centre(side)
        mean = ((torch.arange(side) + 0.5) * weight).sum() / weight.sum()
        assert mean.item() == pytest.approx(centre + column * stride, abs=2)


def test_a_scene_depends_neither_on_other_scenes_nor_on_other_boxes():
    model, clips = detector(), torch.rand(2, 3, 4, 32, 32)
    together = model(clips, BOXES, torch.tensor([0, 1, 0]))
    alone = [model(clips[i : i + 1], box[None], torch.tensor([0])) for box, i in zip(BOXES, (0, 1, 0), strict=True)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-3, atol=1e-4)
    swapped = model(clips, BOXES, torch.tensor([1, 0, 1]))
    assert not torch.allclose(together, swapped, rtol=0.1)


def test_half_precision_changes_little():
    model, clips, scenes = detector(), torch.rand(2, 3, 4, 32, 32), torch.tensor([0, 1, 1])
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(clips, BOXES, scenes)
    exact = model(clips, BOXES, scenes)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, exact)
    assert (logits - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(
    ("boxes", "scenes", "message"),
    [
        ([[0.5, 0.0, 0.5, 1.0]], [0], r"0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1, not \(0.5, 0, 0.5, 1\)"),
        ([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 32.0, 32.0]], [0, 0], r"not \(0, 0, 32, 32\)"),
        ([[0.0, float("nan"), 1.0, 1.0]], [0], r"not \(0, nan, 1, 1\)"),
        ([[0.0, 0.0, 1.0]], [0], r"boxes must be floating point \(N, 4\), not torch.float32 \(1, 3\)"),
        ([[0, 0, 1, 1]], [0], r"boxes must be floating point \(N, 4\), not torch.int64 \(1, 4\)"),
        ([[0.0, 0.0, 1.0, 1.0]], [2], "scene_of_box must be from 0 to 1, the clips given, not 2"),
        ([[0.0, 0.0, 1.0, 1.0]], [-1], "not -1"),
        ([[0.0, 0.0, 1.0, 1.0]], [0, 1], r"scene_of_box must be int64 \(1,\), one scene per box, not torch.int64 \(2,"),
        ([[0.0, 0.0, 1.0, 1.0]], [0.0], r"scene_of_box must be int64 \(1,\), one scene per box, not torch.float32"),
    ],
)
def test_wrong_boxes_are_refused(boxes, scenes, message):
    with pytest.raises(ValueError, match=message):
        detector()(torch.rand(2, 3, 4, 32, 32), torch.tensor(boxes), torch.tensor(scenes))


def test_wrong_clips_and_numbers_of_actions_are_refused():
    with pytest.raises(ValueError, match=r"clips must be floating point \(B, 3, T, H, W\), not torch.float32 \(1, 2,"):
        detector()(torch.rand(1, 2, 4, 32, 32), BOXES[:1], torch.tensor([0]))
    with pytest.raises(ValueError, match="num_actions must be at least 1, not 0"):
        ActionDetector(s3dg(16, width=0.1), 0)
