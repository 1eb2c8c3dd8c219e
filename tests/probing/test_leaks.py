"""Leak controls: they find a leak that is planted, and none in the generator."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from d3d.data import sprites
from d3d.data.sprite_classes import CLASSES, siblings
from d3d.probing import leaks
from d3d.probing.leaks import pair_accuracy
from d3d.study.schema import changed
from tests import configs

TINY = configs.leaking(frames=3, size=16, train_clips=320, leak_clips=320, epochs=1)


def test_siblings_differ_in_appearance_or_in_motion_but_not_in_both():
    names = [c.name for c in CLASSES]
    sibling_of = {names[i]: names[j] for i, j in enumerate(siblings()) if j >= 0}
    assert sibling_of["right"] == "left"
    assert sibling_of["orbit"] == "counterorbit"
    assert sibling_of["expand-cells"] == "expand-checks"
    assert all(sibling_of[b] == a for a, b in sibling_of.items())
    assert set(names) - set(sibling_of) == {c.name for c in CLASSES if c.group == "both"}


def test_pair_accuracy_by_hand():
    """Classes 0 and 1 are a motion pair, 8 and 9 an appearance pair, 12 has no sibling."""
    logits = np.zeros((5, 16))
    logits[0, [0, 1]] = 2, 1  # correct
    logits[1, [0, 1, 5]] = 2, 3, 9  # wrong, whatever the score of a class outside of the pair
    logits[2, [8, 9]] = 0, 5  # correct
    logits[3, [8, 9]] = 4, 4  # a tie
    accuracy = pair_accuracy(logits, np.array([0, 0, 9, 8, 12]))
    assert accuracy == {"motion_pairs": 0.5, "appearance_pairs": 0.75}
    assert pair_accuracy(logits[4:], np.array([12])) == {}


def test_the_pose_control_finds_a_planted_leak(monkeypatch):
    """The target is larger in the first class of each pair, so that any frame reveals the class."""
    render = sprites.render

    def leaky_render(config, split, indices, **kwargs):
        clip = render(config, split, indices, **kwargs)
        is_first = siblings()[clip.table["label"]] > clip.table["label"]
        pose = clip.pose.copy()
        pose[is_first, :, 2] *= 1.5
        return replace(clip, pose=pose)

    without_leak = leaks.pose_control(TINY)
    monkeypatch.setattr(sprites, "render", leaky_render)
    with_leak = leaks.pose_control(TINY)
    for frame in ("first", "middle", "last"):
        assert with_leak[f"{frame}/motion_pairs"] > 0.75
        # 160 clips of motion pairs: four standard errors.
        assert without_leak[f"{frame}/motion_pairs"] == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 160))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"frames": 2}, "frames must be at least 3, not 2"),
        ({"leak_clips": 3}, "leak_clips must be at least 16, not 3"),
        ({"train_clips": 3}, "train_clips must be at least 16, not 3"),
    ],
)
def test_values_out_of_range_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        changed(TINY, **overrides)


def test_the_poses_of_three_frames_reveal_the_motion():
    accuracy = leaks.pose_control(changed(TINY, train_clips=1600, leak_clips=800, amplitude=1.0))
    assert accuracy["three/motion_pairs"] > 0.7
    assert accuracy["first/motion_pairs"] == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 400))


def test_the_network_of_a_frame_sees_that_frame_only(monkeypatch):
    """If only the last frame is painted in a colour of its class, only the last frame reveals the class."""
    frames_seen = []

    def fit(model, config, data, **kwargs):
        frames_seen.append({name: clips.rgb.shape[2] for name, clips in data.splits.items()})

    sprite_clips = leaks.sprite_clips

    def painted_clips(*args, **kwargs):
        clips = sprite_clips(*args, **kwargs)
        clips.rgb[:, :, 2] = (clips.labels * 15).to(torch.uint8).view(-1, 1, 1, 1)
        return clips

    def predict(model, clips, stream):
        brightness = clips.rgb.float().mean((1, 2, 3, 4)) / 15
        return -(brightness[:, None] - torch.arange(16)).abs().numpy()

    monkeypatch.setattr(leaks, "fit", fit)
    monkeypatch.setattr(leaks, "sprite_clips", painted_clips)
    monkeypatch.setattr(leaks, "predict", predict)
    accuracy = leaks.single_frame_control(TINY)
    assert frames_seen == [{"train": 1, "decorrelated": 1}] * 3
    assert accuracy["last/motion_pairs"] == accuracy["last/appearance_pairs"] == 1
    assert accuracy["first/motion_pairs"] == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 160))


def test_a_network_trains_on_single_frames():
    accuracy = leaks.single_frame_control(changed(TINY, train_clips=32, leak_clips=32, width=0.1))
    assert set(accuracy) == {f"{f}/{p}_pairs" for f in ("first", "middle", "last") for p in ("motion", "appearance")}
    assert all(0 <= value <= 1 for value in accuracy.values())
