"""The controlled data: what is promised about a clip holds in its pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from d3d.sprites import CLASSES, FAMILIES, PROGRAMS, SpriteConfig, render

CLEAN = SpriteConfig(noise=0.0)


def warped_back(following: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """The next frame (B, C, H, W), sampled where flow (B, 2, H, W) says that each pixel goes."""
    size = flow.shape[-1]
    grid = torch.arange(size, dtype=torch.float32)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    at = torch.stack([x + flow[:, 0], y + flow[:, 1]], -1) / (size - 1) * 2 - 1
    return F.grid_sample(following, at, mode="bicubic", align_corners=True, padding_mode="border")


def inside(mask: torch.Tensor, by: int) -> torch.Tensor:
    """A mask (B, H, W) shrunk by so many pixels."""
    return F.max_pool2d((~mask).float()[:, None], 2 * by + 1, 1, by)[:, 0] == 0


@pytest.mark.parametrize("t", [0, 7, 13])
def test_flow_carries_each_frame_onto_the_next(t):
    clip = render(CLEAN, "iid", range(32))
    error = (warped_back(clip.rgb[:, :, t + 1], clip.flow[:, :, t]) - clip.rgb[:, :, t]).abs().mean(1)
    still = (clip.rgb[:, :, t + 1] - clip.rgb[:, :, t]).abs().mean(1)
    target = inside(clip.mask[:, t], 2)
    assert target.sum() > 1000
    assert error[target].mean() < 0.01
    assert still[target].mean() > 5 * error[target].mean()
    # Away from sprites' edges the background fits too: most pixels of the frame.
    assert error.flatten(1).median(1).values.max() < 0.01


def test_the_last_field_is_repeated():
    flow = render(CLEAN, "iid", range(8)).flow
    assert torch.equal(flow[:, :, -1], flow[:, :, -2])


def test_a_clip_depends_on_its_index_alone():
    alone = render(SpriteConfig(), "iid", [5])
    among = render(SpriteConfig(), "iid", range(8))
    assert torch.equal(alone.rgb[0], among.rgb[5])
    assert torch.equal(alone.flow[0], among.flow[5])
    assert alone.table.iloc[0].equals(among.table.iloc[5].rename(0))


def test_splits_and_training_seeds_share_no_clip():
    clips = [render(SpriteConfig(), s, [3]).rgb for s in ("train/0", "train/1", "val", "iid", "decorrelated")]
    for i, a in enumerate(clips):
        for b in clips[i + 1 :]:
            assert not torch.equal(a, b)


def test_only_the_target_is_coloured():
    clip = render(CLEAN, "iid", range(16))
    saturation = clip.rgb.amax(1) - clip.rgb.amin(1)
    shrunk = inside(clip.mask.flatten(0, 1), 1).view_as(clip.mask)
    grown = ~inside(~clip.mask.flatten(0, 1), 1).view_as(clip.mask)
    assert saturation[~grown].max() < 1e-5
    assert saturation[shrunk].mean() > 0.2


@pytest.mark.parametrize(("program", "sign"), [("right", 1), ("left", -1)])
def test_velocity_moves_the_mask(program, sign):
    index = [c.name for c in CLASSES].index(program)
    clip = render(replace(CLEAN, camera=0.0), "iid", [index + 8 * i for i in range(6)])
    x = torch.arange(64.0)
    centre = (clip.mask * x).sum((2, 3)) / clip.mask.sum((2, 3))
    speed = (centre[:, 9] - centre[:, 6]) / 3
    assert np.allclose(speed, clip.table["velocity_x"], atol=0.1)
    assert (np.sign(clip.table["velocity_x"]) == sign).all()


def test_expansion_and_rotation_show_in_the_flow():
    clip = render(replace(CLEAN, camera=0.0), "iid", range(64))
    t = 7
    flow = clip.flow[:, :, t]
    dx = (flow[:, 0, :, 2:] - flow[:, 0, :, :-2])[:, 1:-1] / 2
    dy = (flow[:, 1, 2:] - flow[:, 1, :-2])[:, :, 1:-1] / 2
    du = (flow[:, 0, 2:] - flow[:, 0, :-2])[:, :, 1:-1] / 2
    dv = (flow[:, 1, :, 2:] - flow[:, 1, :, :-2])[:, 1:-1] / 2
    core = inside(clip.mask[:, t], 2)[:, 1:-1, 1:-1]
    for i, row in clip.table.iterrows():
        divergence, curl = (dx + dy)[i][core[i]].mean() / 2, (dv - du)[i][core[i]].mean() / 2
        scale = np.exp(row["expansion"])
        assert divergence == pytest.approx(scale * np.cos(row["angular_velocity"]) - 1, abs=2e-3)
        assert curl == pytest.approx(scale * np.sin(row["angular_velocity"]), abs=2e-3)


def test_rho_decides_how_often_a_clip_shows_its_own_family():
    small = SpriteConfig(size=16, frames=2)
    own = np.array([c.family for c in CLASSES])
    for rho, split, expected in [(0.0, "iid", 0.0), (0.5, "iid", 0.5), (1.0, "iid", 1.0), (1.0, "decorrelated", 0.0)]:
        table = render(replace(small, rho=rho), split, range(2000)).table
        shows = table["family"].to_numpy() == own[table["label"]]
        defined = (table["group"] == "appearance").to_numpy()
        assert shows[defined].all()
        # A random family is the own one by chance, too; 4 standard errors of 1,500 clips.
        chance = expected + (1 - expected) / len(FAMILIES)
        assert shows[~defined].mean() == pytest.approx(chance, abs=4 * np.sqrt(0.25 / 1500))


def test_groups_mean_what_they_say():
    by_group = {g: [c for c in CLASSES if c.group == g] for g in ("motion", "appearance", "both")}
    motion = {}
    for c in by_group["motion"]:
        motion.setdefault(c.family, set()).add(c.program)
    assert all(len(programs) == 2 for programs in motion.values())
    shared = {c.program for c in by_group["appearance"]}
    assert len(shared) < len(by_group["appearance"])
    assert not shared & {c.program for c in CLASSES if c.group != "appearance"}
    assert (
        len({c.program for c in by_group["both"]}) == len({c.family for c in by_group["both"]}) == len(by_group["both"])
    )
    assert {c.program for c in CLASSES} <= set(PROGRAMS)


@settings(max_examples=20, deadline=None)
@given(
    rho=st.floats(0, 1),
    frames=st.integers(2, 6),
    size=st.integers(16, 40),
    amplitude=st.floats(0, 4),
    contrast=st.floats(0.01, 1),
    noise=st.floats(0, 0.3),
    index=st.integers(0, 2**40),
)
def test_any_configuration_renders(rho, frames, size, amplitude, contrast, noise, index):
    config = SpriteConfig(rho=rho, frames=frames, size=size, amplitude=amplitude, contrast=contrast, noise=noise)
    clip = render(config, "val", [index])
    assert clip.rgb.shape == (1, 3, frames, size, size)
    assert clip.flow.shape == (1, 2, frames, size, size)
    assert 0 <= clip.rgb.min() <= clip.rgb.max() <= 1
    assert clip.flow.isfinite().all()
    assert clip.mask.any()


def test_noise_is_near_normal():
    quiet = render(replace(CLEAN, contrast=0.2), "iid", range(16)).rgb
    noisy = render(replace(CLEAN, contrast=0.2, noise=0.02), "iid", range(16)).rgb
    difference = (noisy - quiet)[(quiet > 0.1) & (quiet < 0.9)] / 0.02
    assert difference.mean().abs() < 0.01
    assert difference.std() == pytest.approx(1, abs=0.01)
    pairs = torch.stack([difference[:-1], difference[1:]])
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho": 1.2}, r"rho is a probability and must lie in \[0, 1\], not 1.2"),
        ({"rho": -0.1}, "rho is a probability"),
        ({"contrast": 0.0}, r"contrast must lie in \(0, 1\], not 0.0"),
        ({"size": 8}, "at least 2 frames of 16 pixels, not 16 of 8"),
        ({"noise": -1.0}, "noise must not be negative"),
    ],
)
def test_a_knob_out_of_range_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        SpriteConfig(**change)


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="no split 'test'"):
        render(CLEAN, "test", [0])
