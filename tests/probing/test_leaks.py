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


def test_siblings_are_what_appearance_or_motion_alone_tells_apart():
    names = [c.name for c in CLASSES]
    found = {names[i]: names[j] for i, j in enumerate(siblings()) if j >= 0}
    assert found["right"] == "left"
    assert found["orbit"] == "counterorbit"
    assert found["expand-cells"] == "expand-checks"
    assert all(found[b] == a for a, b in found.items())
    assert set(names) - set(found) == {c.name for c in CLASSES if c.group == "both"}


def test_pair_accuracy_by_hand():
    """Classes 0 and 1 are a motion pair, 8 and 9 an appearance pair, 12 has no sibling."""
    scores = np.zeros((5, 16))
    scores[0, [0, 1]] = 2, 1  # right
    scores[1, [0, 1, 5]] = 2, 3, 9  # wrong, whatever a class outside of the pair scores
    scores[2, [8, 9]] = 0, 5  # right
    scores[3, [8, 9]] = 4, 4  # a tie
    found = pair_accuracy(scores, np.array([0, 0, 9, 8, 12]))
    assert found == {"motion_pairs": 0.5, "appearance_pairs": 0.75}
    assert pair_accuracy(scores[4:], np.array([12])) == {}


def test_a_planted_leak_is_found(monkeypatch):
    """Targets that are larger in the first class of each pair: in any frame the size tells the class."""
    honest = sprites.render

    def leaky(config, split, indices, **kwargs):
        clip = honest(config, split, indices, **kwargs)
        first = siblings()[clip.table["label"]] > clip.table["label"]
        pose = clip.pose.copy()
        pose[first, :, 2] *= 1.5
        return replace(clip, pose=pose)

    fair = leaks.pose(TINY)
    monkeypatch.setattr(sprites, "render", leaky)
    found = leaks.pose(TINY)
    for moment in ("first", "middle", "last"):
        assert found[f"{moment}/motion_pairs"] > 0.75
        # 160 clips of motion pairs: four standard errors.
        assert fair[f"{moment}/motion_pairs"] == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 160))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": 2}, "frames must be at least 3, not 2"),
        ({"leak_clips": 3}, "leak_clips must be at least 16, not 3"),
        ({"train_clips": 3}, "train_clips must be at least 16, not 3"),
    ],
)
def test_what_the_controls_need_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        changed(TINY, **wrong)


def test_three_poses_tell_the_motion():
    found = leaks.pose(changed(TINY, train_clips=1600, leak_clips=800, amplitude=1.0))
    assert found["three/motion_pairs"] > 0.7
    assert found["first/motion_pairs"] == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 400))


def test_the_network_sees_one_frame(monkeypatch):
    """A frame painted by class in the last frame alone is found there and nowhere else."""
    seen = []

    def fit(model, config, data, **kwargs):
        seen.append({name: clips.rgb.shape[2] for name, clips in data.splits.items()})

    honest = leaks.sprite_clips

    def painted(*args, **kwargs):
        clips = honest(*args, **kwargs)
        clips.rgb[:, :, 2] = (clips.labels * 15).to(torch.uint8).view(-1, 1, 1, 1)
        return clips

    def predict(model, clips, stream):
        brightness = clips.rgb.float().mean((1, 2, 3, 4)) / 15
        return -(brightness[:, None] - torch.arange(16)).abs().numpy()

    monkeypatch.setattr(leaks, "fit", fit)
    monkeypatch.setattr(leaks, "sprite_clips", painted)
    monkeypatch.setattr(leaks, "predict", predict)
    found = leaks.one_frame(TINY)
    assert seen == [{"train": 1, "decorrelated": 1}] * 3
    assert found["last/motion_pairs"] == found["last/appearance_pairs"] == 1
    assert found["first/motion_pairs"] == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 160))


def test_a_network_trains_on_single_frames():
    found = leaks.one_frame(changed(TINY, train_clips=32, leak_clips=32, width=0.1))
    assert set(found) == {f"{m}/{p}_pairs" for m in ("first", "middle", "last") for p in ("motion", "appearance")}
    assert all(0 <= value <= 1 for value in found.values())
