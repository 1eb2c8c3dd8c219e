"""Scenes with several actors: boxes, classes and colours agree with the pixels, and the flow carries every actor."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d3d.data.scenes import DISTRACTOR_LAYER, key_frame, render_scenes
from d3d.data.sprite_classes import CLASSES, FAMILIES, siblings
from d3d.data.sprites import render
from d3d.flow.fields import warp
from d3d.study.schema import changed
from tests import configs
from tests.data.test_sprites import erode

CLEAN = configs.clip(size=32, frames=8, noise=0.0)
TINY = configs.clip(size=16, frames=2, noise=0.0)
BOX = ["x1", "y1", "x2", "y2"]


@pytest.fixture(scope="module")
def many():
    """The boxes of 600 scenes."""
    return render_scenes(changed(TINY, rho=1.0), "iid", range(600)).boxes


def actors(scenes):
    """Yields the position in the batch of each actor's scene, and its row of the table."""
    position = {scene: i for i, scene in enumerate(scenes.boxes["scene"].unique())}
    for _, row in scenes.boxes.iterrows():
        yield position[row["scene"]], row


def core(scenes, i, row, t):
    """The pixels of an actor at least two from its edge, bool (H, W)."""
    return erode(scenes.layer[i : i + 1, t] == row["actor"] + 1, 2)[0]


@settings(max_examples=25)
@given(
    size=st.integers(16, 40),
    extent=st.floats(0.125, 0.28),
    frames=st.integers(2, 6),
    amplitude=st.floats(0, 4),
    camera=st.floats(0, 3),
    index=st.integers(0, 2**40),
)
def test_boxes_enclose_the_pixels_of_actors_and_do_not_overlap(size, extent, frames, amplitude, camera, index):
    config = configs.clip(size=size, extent=extent, frames=frames, amplitude=amplitude, camera=camera)
    scenes = render_scenes(config, "val", [index])
    layer, boxes = scenes.layer[0, key_frame(frames)], scenes.boxes
    assert layer.shape == (2 * size, 2 * size)
    assert boxes["actor"].tolist() == list(range(len(boxes)))
    assert 2 <= len(boxes) <= 4
    assert set(layer.unique().tolist()) - {DISTRACTOR_LAYER} == set(range(len(boxes) + 1))
    for _, row in boxes.iterrows():
        y, x = torch.nonzero(layer == row["actor"] + 1, as_tuple=True)
        corners = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).numpy()
        assert np.allclose(row[BOX].to_numpy(float) * 2 * size, corners)
    assert (boxes[BOX] >= 0).all(axis=None)
    assert (boxes[BOX] <= 1).all(axis=None)
    for a, b in combinations(boxes[BOX].to_numpy(), 2):
        assert (np.minimum(a[2:], b[2:]) <= np.maximum(a[:2], b[:2])).any()


@settings(max_examples=10)
@given(frames=st.sampled_from([2, 5]), index=st.integers(0, 2**40))
def test_the_largest_and_the_smallest_actors_have_boxes(frames, index):
    """Pulses and growth change the radius in the key frame, by up to a factor of √2."""
    largest = configs.clip(size=16, extent=0.28, frames=frames, amplitude=20.0)
    for config in (largest, changed(largest, extent=0.125)):
        boxes = render_scenes(config, "val", range(index, index + 4)).boxes
        for axis in "xy":
            sides = (boxes[f"{axis}2"] - boxes[f"{axis}1"]) * 32
            assert ((sides > 0.99) & (sides < 17.01)).all()
            same_half = np.floor(boxes[f"{axis}1"] * 2) == np.ceil(boxes[f"{axis}2"] * 2) - 1
            assert same_half.all()


@pytest.mark.parametrize("size", [20, 32])
def test_a_scene_has_the_same_bits_in_any_batch(size):
    config = configs.clip(size=size, frames=5)
    batch, again = (render_scenes(config, "iid", range(6)) for _ in range(2))
    other = render_scenes(config, "iid", [5, 2**30, 0])
    for name in ("rgb", "flow", "layer"):
        assert torch.equal(getattr(batch, name), getattr(again, name))
        assert torch.equal(getattr(batch, name)[[5, 0]], getattr(other, name)[[0, 2]])
    assert batch.boxes.equals(again.boxes)
    for index in (0, 5):
        rows, same = (s.boxes[s.boxes["scene"] == index].reset_index(drop=True) for s in (batch, other))
        assert rows.equals(same)


def test_splits_share_no_scene_and_scenes_share_no_background_with_clips():
    splits = ("train/0", "train/1", "val", "iid", "decorrelated")
    for a, b in combinations([render_scenes(TINY, split, [3]).rgb for split in splits], 2):
        assert not torch.equal(a, b)
    scene, clip = render_scenes(CLEAN, "iid", [3]), render(changed(CLEAN, size=64), "iid", [3])
    background = ((scene.layer == 0) & (clip.layer == 0))[:, None].expand_as(clip.rgb)
    assert (scene.rgb - clip.rgb)[background].abs().mean() > 0.05


def test_numbers_of_actors_and_classes_are_uniform(many):
    per_scene = many.groupby("scene").size()
    for count in (2, 3, 4):
        assert (per_scene == count).mean() == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 600))
    frequency = np.bincount(many["label"], minlength=16) / len(many)
    assert np.abs(frequency - 1 / 16).max() < 4 * np.sqrt(15 / 256 / len(many))
    first, second = (many.loc[many["actor"] == k, "label"].to_numpy() for k in (0, 1))
    assert np.mean(first == second) == pytest.approx(1 / 16, abs=4 * np.sqrt(15 / 256 / 600))


def test_actors_are_in_any_quarter_and_anywhere_within_it(many):
    x, y = ((many[f"{axis}1"] + many[f"{axis}2"]).to_numpy() for axis in "xy")
    quarter = np.floor(x) + 2 * np.floor(y)
    for k in range(4):
        counts = [(quarter[many["actor"] == k] == q).mean() for q in range(4)]
        assert counts == pytest.approx([1 / 4] * 4, abs=4 * np.sqrt(3 / 16 / (many["actor"] == k).sum()))
    # On average, centres lie in the middle 10.2 of the 16 pixels of a quarter.
    for position in (x, y):
        assert (position % 1 * 16).mean() == pytest.approx(8, abs=0.3)
        assert (position % 1 * 16).std() == pytest.approx(10.2 / np.sqrt(12), abs=0.3)


def test_appearance_predicts_the_class_with_probability_rho(many):
    halves = [
        render_scenes(changed(TINY, rho=rho), s, range(300)).boxes for rho, s in ((0.5, "val"), (1, "decorrelated"))
    ]
    class_family = np.array([c.family for c in CLASSES])
    for boxes, expected in ((many, 1.0), (halves[0], 0.5), (halves[1], 0.0)):
        assert (boxes["program"] == np.array([c.program for c in CLASSES])[boxes["label"]]).all()
        keeps = (boxes["family"] == class_family[boxes["label"]]).to_numpy()
        is_appearance = (boxes["group"] == "appearance").to_numpy()
        assert keeps[is_appearance].all()
        # A random family may be that of the class by chance.
        with_chance = expected + (1 - expected) / len(FAMILIES)
        assert keeps[~is_appearance].mean() == pytest.approx(
            with_chance, abs=4 * np.sqrt(0.25 / (~is_appearance).sum())
        )
    # Actors of a scene draw their families independently.
    random = halves[1][halves[1]["group"] != "appearance"]
    pairs = random[random["actor"] == 0].merge(random[random["actor"] == 1], on="scene")
    assert (pairs["family_x"] == pairs["family_y"]).mean() < 1 / 12 + 4 * np.sqrt(11 / 144 / len(pairs))


def test_sibling_classes_share_the_appearance_or_the_motion(many):
    families, programs = ({k: set(rows) for k, rows in many.groupby("label")[c]} for c in ("family", "program"))
    for label, sibling in enumerate(siblings()):
        if sibling >= 0:
            assert (families[label] == families[sibling]) == (CLASSES[label].group == "motion")
            assert (programs[label] == programs[sibling]) == (CLASSES[label].group == "appearance")


def test_actors_are_as_large_and_as_fast_as_the_targets_of_clips():
    still = changed(CLEAN, camera=0.0, extent=0.25)
    scenes = render_scenes(still, "iid", range(30))
    ratio = scenes.boxes["radius"] / (32 * 0.25)
    assert ratio.between(0.78, 1.22).all()
    assert ratio.max() - ratio.min() > 0.4
    t, factors = key_frame(8), {"right": 1.0, "left": 1.0, "drift": 0.6, "dash": 1.6}
    speeds = []
    for i, row in actors(scenes):
        if row["shape"] == "disc" and row["program"] in factors:
            area = (scenes.layer[i, t] == row["actor"] + 1).sum().item()
            assert area == pytest.approx(np.pi * row["radius"] ** 2, rel=0.06)
        if row["program"] in factors:
            flow = scenes.flow[i, :, t][:, core(scenes, i, row, t)].mean(1)
            speeds.append(flow.norm().item() / factors[row["program"]] / still.amplitude)
    assert len(speeds) > 10
    assert 0.75 - 1e-4 <= min(speeds) < 0.9
    assert 1.1 < max(speeds) <= 1.25 + 1e-4


@pytest.mark.parametrize("t", [0, 4, 6])
def test_flow_carries_every_actor_onto_the_next_frame(t):
    scenes = render_scenes(changed(CLEAN, extent=0.25, camera=1.0), "iid", range(24))
    warped = (warp(scenes.rgb[:, :, t + 1], scenes.flow[:, :, t]) - scenes.rgb[:, :, t]).abs().mean(1)
    unwarped = (scenes.rgb[:, :, t + 1] - scenes.rgb[:, :, t]).abs().mean(1)
    errors = []
    for i, row in actors(scenes):
        selected = core(scenes, i, row, t)
        mask = (scenes.layer[i, t + 1] == row["actor"] + 1).float()[None, None]
        moved = warp(mask, scenes.flow[i : i + 1, :, t], padding="zeros")[0, 0]
        # Wrapping around the border and being covered are left out: there the next frame shows something else.
        y, x = torch.nonzero(scenes.layer[i, t] == row["actor"] + 1, as_tuple=True)
        inside = min(x.min(), y.min()) > 4 and max(x.max(), y.max()) < 59
        if not inside or row["visible"] < 1 or not selected.any():
            continue
        assert moved[selected].min() > 0.9
        errors.append((warped[i][selected].mean().item(), unwarped[i][selected].mean().item()))
    assert len(errors) > 25
    error, error_without_flow = np.mean(errors, 0)
    assert error < 0.01
    assert error_without_flow > 3 * error


def test_actors_have_their_hue_and_the_distractor_has_none():
    scenes = render_scenes(changed(CLEAN, extent=0.25), "iid", range(12))
    saturation = scenes.rgb.amax(1) - scenes.rgb.amin(1)
    is_actor = (scenes.layer > 0) & (scenes.layer < DISTRACTOR_LAYER)
    far_from_actors = erode(~is_actor.flatten(0, 1), 1).view_as(is_actor)
    assert saturation[far_from_actors].max() < 1e-5
    assert ((scenes.layer == DISTRACTOR_LAYER) & far_from_actors).sum() > 100
    thirds = torch.exp(2j * torch.pi * torch.arange(3) / 3)
    for i, row in actors(scenes):
        for t in (0, key_frame(8), 7):
            pixels = scenes.rgb[i, :, t][:, core(scenes, i, row, t)]
            if pixels.numel():
                hue = (thirds @ pixels.to(torch.complex64)).angle() / (2 * torch.pi)
                assert ((hue - row["hue"] + 0.5) % 1 - 0.5).abs().median() < 0.01


def test_visible_is_the_fraction_of_the_actor_that_its_layer_shows():
    """A sprite that does not turn or grow covers the same area in every frame; in the key frame all of it is seen."""
    scenes = render_scenes(changed(CLEAN, extent=0.28, amplitude=6.0, frames=9), "iid", range(40))
    rigid = ("right", "left", "drift", "dash", "orbit", "counterorbit", "sway", "bob")
    t = key_frame(9)
    errors, visible = [], []
    for i, row in actors(scenes):
        if row["program"] in rigid:
            shown = (scenes.layer[i] == row["actor"] + 1).sum((1, 2)).float()
            errors.append((shown.mean() / shown[t]).item() - row["visible"])
            visible.append(row["visible"])
    assert np.abs(errors).mean() < 0.01
    assert np.abs(errors).max() < 0.05
    assert min(visible) < 0.85
    assert max(visible) == 1


def test_autocast_does_not_affect_scenes():
    with torch.autocast("cpu", torch.bfloat16):
        scenes = render_scenes(TINY, "iid", range(2))
    assert torch.equal(scenes.rgb, render_scenes(TINY, "iid", range(2)).rgb)


def test_errors_name_an_unknown_split_and_actors_that_are_too_small():
    with pytest.raises(ValueError, match="no split 'test'"):
        render_scenes(TINY, "test", [0])
    message = r"actors of scenes need a mean radius, size \* extent, of at least 2 pixels, not 1.6"
    with pytest.raises(ValueError, match=message):
        render_scenes(changed(TINY, extent=0.1), "iid", [0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_renders_the_same_scene():
    cpu, gpu = (render_scenes(configs.clip(), "iid", range(8), device=device) for device in ("cpu", "cuda"))
    assert (gpu.rgb.cpu() - cpu.rgb).abs().max() < 1e-4
    assert (gpu.layer.cpu() != cpu.layer).float().mean() < 1e-5
    assert np.allclose(gpu.boxes[BOX], cpu.boxes[BOX], atol=1 / 128 + 1e-9)
