"""Boxes of actors: how they are scored, and what Faster R-CNN returns after a few steps."""

import numpy as np
import pandas as pd
import pytest
import torch

from d3d.detection import people
from d3d.detection.people import build_person_detector, person_boxes, score_people, train_person_detector
from d3d.detection.scene_sets import scene_set
from tests import configs

CORNERS = ["x1", "y1", "x2", "y2"]
EASY = {"extent": 0.28, "noise": 0.0, "camera": 0.0, "flow": "exact"}


@pytest.fixture(scope="module")
def scenes():
    return scene_set(configs.data(size=16, frames=2, **EASY), "train/0", 4)


def test_true_boxes_have_full_scores(scenes):
    assert score_people(scenes, scenes.table.assign(score=1.0)) == {"ap": 1.0, "recall": 1.0}


def test_scores_of_people_by_hand(scenes):
    """Half of the boxes, then as many false ones with lower scores, then the other half with the lowest."""
    true = scenes.table[["scene", *CORNERS]]
    first, second = true[: len(true) // 2], true[len(true) // 2 :]
    false = first.assign(x1=0.0, y1=0.0, x2=1.0, y2=1.0)
    partial = pd.concat([first.assign(score=0.9), false.assign(score=0.5)])
    half = len(first) / len(true)
    assert score_people(scenes, partial) == pytest.approx({"ap": half, "recall": half})
    last_precision = np.array([len(first) + i + 1 for i in range(len(second))]) / (
        2 * len(first) + 1 + np.arange(len(second))
    )
    ap = (len(first) + np.maximum.accumulate(last_precision[::-1]).sum()) / len(true)
    everything = pd.concat([partial, second.assign(score=0.1)])
    assert score_people(scenes, everything) == pytest.approx({"ap": ap, "recall": 1.0})
    assert score_people(scenes, true[:0].assign(score=0.0)) == {"ap": 0.0, "recall": 0.0}


class SameBoxes(torch.nn.Module):
    """Returns the same boxes, in pixels, for every frame."""

    def forward(self, frames):
        height, width = frames[0].shape[1:]
        boxes = [[0.0, 0.0, width / 2, height / 4], [-1.0, 0.0, width + 1.0, height], [3.0, 2.0, 3.0, 5.0]]
        return [{"boxes": torch.tensor(boxes), "scores": torch.tensor([0.9, 0.8, 0.7])} for _ in frames]


def test_boxes_become_fractions_within_the_frame_and_have_area(scenes):
    table = person_boxes(SameBoxes(), scenes)
    assert table[CORNERS].to_numpy().tolist() == [[0, 0, 0.5, 0.25], [0, 0, 1, 1]] * len(scenes)
    assert table["scene"].tolist() == [i for i in range(len(scenes)) for _ in range(2)]
    assert np.allclose(table["score"], [0.9, 0.8] * len(scenes))


def test_the_loss_counts_every_actor_of_the_key_frames(scenes, monkeypatch):
    received = {}

    def detector(frames, targets):
        received["frames"], received["targets"] = frames, targets
        return {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}

    assert people._loss(detector, scenes, torch.tensor([2, 0])) == 3
    assert torch.equal(received["frames"][0], scenes.rgb[2, :, 1].float() / 255)
    for row, target in zip((2, 0), received["targets"], strict=True):
        assert torch.equal(target["boxes"], scenes.boxes[scenes.scene_of_box == row] * 32)
        assert target["labels"].eq(1).all()


def test_the_weights_depend_on_the_seed_alone():
    first, same, other = (build_person_detector(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["backbone.body.conv1.weight"], other["backbone.body.conv1.weight"])


@pytest.mark.slow
def test_a_person_detector_that_diverges_is_no_result(scenes):
    with pytest.raises(FloatingPointError, match=r"the person detector's loss was \w+ in epoch \d: give a learn"):
        train_person_detector(scenes, epochs=3, batch_size=4, learning_rate=1e20)


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_give_boxes_in_the_frame(scenes):
    before = build_person_detector().train()
    after = train_person_detector(scenes, epochs=4, batch_size=4, learning_rate=0.01).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = [people._loss(model, scenes, torch.arange(4)).item() for model in (before, after)]
    assert losses[1] < losses[0] - 0.02
    table = person_boxes(after.eval(), scenes)
    corners = table[CORNERS].to_numpy()
    assert len(table)
    assert ((corners >= 0) & (corners <= 1)).all()
    assert (corners[:, :2] < corners[:, 2:]).all()
    assert table.groupby("scene").size().max() <= people.MAX_BOXES
    assert table["score"].between(people.MIN_SCORE, 1).all()
