"""The controlled data: what is promised about a clip holds in its pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from d3d.data.sprite_classes import CLASSES, FAMILIES, PROGRAMS, SHAPES, TEXTURES
from d3d.data.sprites import _noise, render
from d3d.flow.fields import occluded, warp
from d3d.study.schema import changed
from tests import configs

CLEAN = configs.clip(noise=0.0)
STILL = changed(CLEAN, camera=0.0)


def inside(mask: torch.Tensor, by: int) -> torch.Tensor:
    """A mask (B, H, W) shrunk by so many pixels, and kept as far from the frame's border."""
    outside = F.pad((~mask).float()[:, None], (by, by, by, by), value=1.0)
    return F.max_pool2d(outside, 2 * by + 1, 1)[:, 0] == 0


def of_class(name: str, n: int) -> list[int]:
    """Indices of the first n clips of a class."""
    return [[c.name for c in CLASSES].index(name) + len(CLASSES) * i for i in range(n)]


def pixels(mask: torch.Tensor) -> torch.Tensor:
    """Complex positions x + iy of a mask's pixels (H, W)."""
    y, x = torch.nonzero(mask, as_tuple=True)
    return x + 1j * y


def apart(a: np.ndarray, b: np.ndarray, size: float) -> np.ndarray:
    """Distance of complex positions on the torus."""
    d = a - b
    return np.hypot((d.real + size / 2) % size - size / 2, (d.imag + size / 2) % size - size / 2)


def misfit(clip, t: int) -> torch.Tensor:
    """How far each frame is from the next one carried back along the exact flow: (B, H, W), grey levels in [0, 1]."""
    return (warp(clip.rgb[:, :, t + 1], clip.flow[:, :, t]) - clip.rgb[:, :, t]).abs().mean(1)


def plain(clip, t: int) -> torch.Tensor:
    """Pixels two away from every edge, occlusion and the frame's border, in frame t and where they go (B, H, W)."""
    layer, hidden = clip.layer[:, t], occluded(clip.layer, clip.flow)[:, t]
    good = torch.zeros_like(hidden)
    for number in range(3):
        good |= inside((layer == number) & ~hidden, 2)
    following = torch.zeros_like(good)
    for number in range(3):
        following |= inside(clip.layer[:, t + 1] == number, 2)
    return good & (warp(following[:, None].float(), clip.flow[:, :, t], padding="zeros")[:, 0] > 0.99)


@pytest.mark.parametrize("played", ["backwards", "shuffled", "frozen"])
def test_the_order_of_the_moments_is_the_only_change(played):
    clip, other = render(CLEAN, "iid", range(16)), render(CLEAN, "iid", range(16), played=played)
    frames = clip.rgb.transpose(1, 2)
    shown = other.rgb.transpose(1, 2)
    if played == "backwards":
        assert torch.equal(shown, frames.flip(1))
    if played == "shuffled":
        for ours, theirs in zip(frames, shown, strict=True):
            assert {f.numpy().tobytes() for f in ours} == {f.numpy().tobytes() for f in theirs}
        orders = [[int((f == g).all((1, 2, 3)).nonzero()[0]) for g in s] for f, s in zip(frames, shown, strict=True)]
        assert all(sorted(order) == list(range(16)) for order in orders)
        assert len({tuple(order) for order in orders}) == 16
    if played == "frozen":
        assert (shown == shown[:, :1]).all()
        assert other.flow.abs().max() < 1e-6
    # Exact flow is exact in any order, short of a sprite that went around the torus.
    small = other.flow.norm(dim=1).amax((2, 3)) < 8
    for t in (0, 7, 14):
        good = plain(other, t) & small[:, t, None, None]
        if played != "shuffled":
            assert good.float().mean() > 0.4
        assert misfit(other, t)[good].mean() < 0.02
    assert clip.table[["label", "hue", "family"]].equals(other.table[["label", "hue", "family"]])


def test_noise_is_fresh_in_every_frame_of_a_frozen_clip():
    shown = render(changed(CLEAN, noise=0.1), "iid", range(4), played="frozen").rgb
    assert (shown[:, :, 1:] - shown[:, :, :-1]).std() > 0.1


def test_an_unknown_order_is_named():
    with pytest.raises(ValueError, match="played must be one of forwards, backwards, shuffled, frozen, not 'sideways'"):
        render(CLEAN, "iid", range(1), played="sideways")


@pytest.mark.parametrize("t", [0, 7, 14])
def test_flow_carries_each_frame_onto_the_next(t):
    clip = render(CLEAN, "iid", range(32))
    error, still = misfit(clip, t), (clip.rgb[:, :, t + 1] - clip.rgb[:, :, t]).abs().mean(1)
    good = plain(clip, t)
    target = good & clip.mask[:, t]
    assert good.float().mean() > 0.5
    assert target.sum() > 1000
    assert error[good].mean() < 0.01
    assert error[target].mean() < 0.01
    assert still[target].mean() > 3 * error[target].mean()


@settings(max_examples=15, deadline=None)
@given(
    rho=st.floats(0, 1),
    frames=st.integers(2, 12),
    size=st.integers(48, 96),
    amplitude=st.floats(0, 3),
    contrast=st.floats(0.3, 1),
    camera=st.floats(0, 2),
    index=st.integers(0, 2**40),
)
def test_flow_is_exact_whatever_the_configuration(rho, frames, size, amplitude, contrast, camera, index):
    config = configs.clip(
        rho=rho, frames=frames, size=size, amplitude=amplitude, contrast=contrast, camera=camera, noise=0.0
    )
    clip = render(config, "val", range(index, index + 4))
    good = plain(clip, (frames - 1) // 2)
    error = misfit(clip, (frames - 1) // 2)
    assert error[good].mean() < 0.01
    for number in (1, 2):
        shown = good & (clip.layer[:, (frames - 1) // 2] == number)
        if shown.sum() >= 50:
            assert error[shown].mean() < 0.01


def test_flow_is_what_poses_say():
    """Every program, camera included: a pixel of the target goes where the pose of the next frame puts it."""
    clip = render(changed(CLEAN, camera=1.0), "iid", range(32))
    for i in range(32):
        for t in (0, 6, 14):
            (x, y, radius, angle), (x2, y2, radius2, angle2) = clip.pose[i, t : t + 2]
            at = pixels(clip.mask[i, t]).numpy()
            z = at - (x + 1j * y)
            z = ((z.real + 32) % 64 - 32) + 1j * ((z.imag + 32) % 64 - 32)
            to = z * radius2 / radius * np.exp(1j * (angle2 - angle)) + x2 + 1j * y2
            flow = clip.flow[i, :, t][:, clip.mask[i, t]].numpy()
            assert apart(at + flow[0] + 1j * flow[1], to, 64).max() < 1e-3


def test_autocast_does_not_reach_the_renderer():
    with torch.autocast("cpu", torch.bfloat16):
        inside = render(configs.clip(size=16, frames=2), "iid", range(2))
    assert torch.equal(inside.rgb, render(configs.clip(size=16, frames=2), "iid", range(2)).rgb)


def test_the_last_field_is_repeated():
    flow = render(CLEAN, "iid", range(8)).flow
    assert torch.equal(flow[:, :, -1], flow[:, :, -2])


@pytest.mark.parametrize("size", [20, 64])
def test_a_clip_depends_on_its_index_alone(size):
    config = configs.clip(size=size)
    alone = render(config, "iid", [5])
    among = render(config, "iid", range(40))
    assert (alone.rgb[0] - among.rgb[5]).abs().max() < 1e-6
    assert torch.equal(alone.layer[0], among.layer[5])
    assert torch.equal(alone.flow[0], among.flow[5])
    assert alone.table.iloc[0].equals(among.table.iloc[5].rename(0))


def test_splits_and_training_seeds_share_no_clip():
    clips = [render(configs.clip(), s, [3]).rgb for s in ("train/0", "train/1", "val", "iid", "decorrelated")]
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


def test_pose_is_where_the_target_is_seen():
    clip = render(CLEAN, "iid", range(48))
    for i in range(48):
        for t in (0, 8, 15):
            x, y, radius, _ = clip.pose[i, t]
            at = pixels(clip.mask[i, t]).numpy()
            distance = apart(at, np.array(x + 1j * y), 64)
            # The outline lies between 65 % and all of the radius, and the centre belongs to the sprite.
            assert distance.max() < radius + 1
            assert 0.6 * np.pi * (0.65 * radius) ** 2 < len(at) < 1.1 * np.pi * radius**2
            # On the torus the mean position is that of an angle.
            turns = np.exp(2j * np.pi * np.stack([at.real, at.imag]) / 64).mean(1)
            centre = np.angle(turns) * 64 / (2 * np.pi)
            assert apart(centre[0] + 1j * centre[1], np.array(x + 1j * y), 64) < 1.5


@pytest.mark.parametrize("program", ["right", "left", "drift", "dash"])
def test_velocity_is_how_the_target_moves(program):
    clip = render(STILL, "iid", of_class(program, 6))
    moved = np.diff(clip.pose[..., 0] + 1j * clip.pose[..., 1], axis=1)
    velocity = (clip.table["velocity_x"] + 1j * clip.table["velocity_y"]).to_numpy()
    assert apart(moved, velocity[:, None], 64).max() < 1e-9
    core = inside(clip.mask[:, 7], 2)
    seen = torch.stack([clip.flow[i, :, 7][:, core[i]].mean(1) for i in range(6)]).numpy()
    assert np.allclose(seen[:, 0] + 1j * seen[:, 1], velocity, atol=1e-4)
    heading, speed = np.degrees(np.angle(velocity)), np.abs(velocity) / STILL.amplitude
    straight = {"right": [0], "left": [-180, 180], "drift": [-90, 90], "dash": [-90, 90]}[program]
    assert (np.abs(heading[:, None] - straight).min(1) <= 30).all()
    factor = {"drift": 0.6, "dash": 1.6}.get(program, 1.0)
    assert ((0.75 * factor <= speed) & (speed <= 1.25 * factor)).all()


def test_the_camera_carries_everything():
    clip = render(changed(CLEAN, amplitude=0.0, camera=1.5), "iid", range(16))
    drift = torch.tensor(clip.table[["camera_x", "camera_y"]].to_numpy(np.float32, copy=True))[..., None, None, None]
    assert (clip.flow - drift).abs().max() < 1e-4
    assert drift.norm(dim=1).max() > 0.5


def test_expansion_and_rotation_show_in_the_flow():
    clip = render(STILL, "iid", range(64))
    t = 7
    flow = clip.flow[:, :, t]
    dx = (flow[:, 0, :, 2:] - flow[:, 0, :, :-2])[:, 1:-1] / 2
    dy = (flow[:, 1, 2:] - flow[:, 1, :-2])[:, :, 1:-1] / 2
    du = (flow[:, 0, 2:] - flow[:, 0, :-2])[:, :, 1:-1] / 2
    dv = (flow[:, 1, :, 2:] - flow[:, 1, :, :-2])[:, 1:-1] / 2
    core = inside(clip.mask[:, t], 2)[:, 1:-1, 1:-1]
    steady = ~clip.table["program"].isin(["rock", "pulse"])
    assert (clip.table.loc[steady, ["angular_velocity", "expansion"]].abs().max() > 0.03).all()
    for i, row in clip.table[steady].iterrows():
        if core[i].any():
            divergence, curl = (dx + dy)[i][core[i]].mean() / 2, (dv - du)[i][core[i]].mean() / 2
            scale = np.exp(row["expansion"])
            assert divergence == pytest.approx(scale * np.cos(row["angular_velocity"]) - 1, abs=2e-3)
            assert curl == pytest.approx(scale * np.sin(row["angular_velocity"]), abs=2e-3)


def sprite_coordinates(clip, i: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each pixel lies in the target's own frame, complex (H, W), and its grey level."""
    x, y, radius, angle = clip.pose[i, t]
    size = clip.layer.shape[-1]
    rows, cols = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    dx, dy = ((a - b + size / 2) % size - size / 2 for a, b in ((cols, x), (rows, y)))
    return (dx + 1j * dy) * np.exp(-1j * angle) / radius, clip.rgb[i, :, t].mean(0)


def test_texture_shape_and_hue_are_what_the_pixels_show():
    clip = render(changed(STILL, size=128, extent=0.25, frames=2), "iid", range(48))
    for i, row in clip.table.iterrows():
        z, grey = sprite_coordinates(clip, i, 0)
        mask = clip.mask[i, 0]
        # Texture: of all kinds of waves, those that are listed explain the grey levels, and explain all of them.
        left = {}
        for name, (angles, waves) in TEXTURES.items():
            phases = [np.pi * waves * (z[mask] * np.exp(-1j * np.radians(a))).real for a in angles]
            design = torch.stack([f(p) for p in phases for f in (torch.cos, torch.sin)] + [torch.ones(mask.sum())], 1)
            fit = torch.linalg.lstsq(design.double(), grey[mask].double()[:, None]).solution
            left[name] = (design.double() @ fit - grey[mask][:, None]).var() / grey[mask].double().var()
        assert min(left, key=left.get) == row["texture"]
        assert left[row["texture"]] < 0.02
        # Shape: the outline's distance from the centre has as many lobes as listed.
        turns = np.angle(z.numpy())
        edge = [abs(z[mask & torch.from_numpy(abs(turns - a) < 0.1)]).max() for a in np.linspace(-3, 3, 61)]
        lobes = np.abs([np.mean(np.array(edge) * np.exp(1j * n * np.linspace(-3, 3, 61))) for n in range(1, 9)])
        assert (lobes.argmax() + 1 if lobes.max() > 0.04 else 0) == SHAPES[row["shape"]]
        # Hue: the angle of the colour on the wheel whose thirds are red, green and blue.
        colour = clip.rgb[i, :, 0][:, mask].double().mean(1).numpy()
        wheel = np.angle(colour @ np.exp(2j * np.pi * np.arange(3) / 3)) / (2 * np.pi)
        assert abs((wheel - row["hue"] + 0.5) % 1 - 0.5) < 0.01


def test_orbits_are_round_and_opposite():
    for name, sign in {"orbit": 1, "counterorbit": -1}.items():
        pose = render(STILL, "iid", of_class(name, 4)).pose
        step = np.diff(pose[..., 0] + 1j * pose[..., 1], axis=1)
        step = (step.real + 32) % 64 - 32 + 1j * ((step.imag + 32) % 64 - 32)
        assert np.allclose(np.abs(step), np.abs(step[:, :1]))
        # Twelve frames a lap; y points down, so that a growing angle is clockwise on the screen.
        assert np.allclose(np.angle(step[:, 1:] / step[:, :-1]), sign * 2 * np.pi / 12)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_moves_the_target(program):
    index = next(i for i, c in enumerate(CLASSES) if c.program == program)
    clip = render(STILL, "iid", [index + len(CLASSES) * k for k in range(4)])
    moving = clip.flow.norm(dim=1) > 0.05
    assert (moving & clip.mask).sum() > 0.5 * clip.mask.sum()


@settings(max_examples=10, deadline=None)
@given(amplitude=st.floats(0, 10), frames=st.integers(2, 40), index=st.integers(0, 2**30))
def test_a_growing_sprite_stays_within_a_factor_of_two(amplitude, frames, index):
    config = changed(STILL, amplitude=amplitude, frames=frames, size=16, extent=0.28)
    clip = render(config, "val", range(index, index + 16))
    grows = clip.table["program"].isin(["expand", "contract", "pulse"]).to_numpy()
    radius = clip.pose[grows, :, 2]
    assert (radius.max(1) <= 2.001 * radius.min(1)).all()
    assert radius.max() < 8


def test_where_a_target_is_and_how_it_is_turned_tells_nothing_of_its_motion():
    """In any frame: position, size and angle of the motion classes have the same distribution in each of them."""
    small = configs.clip(size=16, frames=8, amplitude=2.0, noise=0.0)
    clip = render(small, "decorrelated", range(16 * 400))
    motion = (clip.table["group"] == "motion").to_numpy()
    label = clip.table["label"].to_numpy()[motion]
    for t in (0, 4, 7):
        x, y, radius, angle = clip.pose[motion, t].T
        for value in (np.exp(2j * np.pi * x / 16), np.exp(2j * np.pi * y / 16), np.exp(1j * angle)):
            means = np.array([value[label == k].mean() for k in np.unique(label)])
            assert np.abs(means).max() < 4 / np.sqrt(400)
        means = np.array([radius[label == k].mean() for k in np.unique(label)])
        assert np.ptp(means) < 6 * radius.std() / np.sqrt(400)


def test_rho_decides_how_often_a_clip_shows_its_own_family():
    small = configs.clip(size=16, frames=2)
    own = np.array([c.family for c in CLASSES])
    for rho, split, expected in [(0.0, "iid", 0.0), (0.5, "iid", 0.5), (1.0, "iid", 1.0), (1.0, "decorrelated", 0.0)]:
        table = render(changed(small, rho=rho), split, range(2000)).table
        shows = table["family"].to_numpy() == own[table["label"]]
        defined = (table["group"] == "appearance").to_numpy()
        assert shows[defined].all()
        # A random family is the own one by chance, too; 4 standard errors of 1,500 clips.
        chance = expected + (1 - expected) / len(FAMILIES)
        assert shows[~defined].mean() == pytest.approx(chance, abs=4 * np.sqrt(0.25 / 1500))


def test_groups_mean_what_they_say():
    by_group = {g: [c for c in CLASSES if c.group == g] for g in ("motion", "appearance", "both")}
    programs = {}
    for c in by_group["motion"]:
        programs.setdefault(c.family, set()).add(c.program)
    assert all(len(pair) == 2 for pair in programs.values())
    families = {}
    for c in by_group["appearance"]:
        families.setdefault(c.program, set()).add(c.family)
    assert all(len(pair) == 2 for pair in families.values())
    # The outline, which flow can see, is the same in a pair.
    assert all(len({family.split("-")[0] for family in pair}) == 1 for pair in families.values())
    assert not set(families) & {c.program for c in CLASSES if c.group != "appearance"}
    both = by_group["both"]
    assert len({c.program for c in both}) == len({c.family for c in both}) == len(both)
    assert {c.program for c in CLASSES} == set(PROGRAMS)
    assert {c.family for c in CLASSES} == set(FAMILIES)
    assert len(PROGRAMS) >= 12
    assert len(FAMILIES) >= 12
    assert {family.split("-")[0] for family in FAMILIES} == set(SHAPES)
    assert {family.split("-")[1] for family in FAMILIES} == set(TEXTURES)


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
    config = configs.clip(rho=rho, frames=frames, size=size, amplitude=amplitude, contrast=contrast, noise=noise)
    clip = render(config, "val", [index])
    assert clip.rgb.shape == (1, 3, frames, size, size)
    assert clip.flow.shape == (1, 2, frames, size, size)
    assert 0 <= clip.rgb.min() <= clip.rgb.max() <= 1
    assert clip.flow.isfinite().all()
    assert clip.mask.any()


def test_noise_is_near_normal():
    quiet = render(changed(CLEAN, contrast=0.2), "iid", range(16)).rgb
    noisy = render(changed(CLEAN, contrast=0.2, noise=0.02), "iid", range(16)).rgb
    difference = (noisy - quiet)[(quiet > 0.1) & (quiet < 0.9)] / 0.02
    assert difference.mean().abs() < 0.01
    assert difference.std() == pytest.approx(1, abs=0.01)
    pairs = torch.stack([difference[:-1], difference[1:]])
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.01


def test_noise_is_the_hash_it_says():
    key = np.array([0x123456789ABCDEF0, 3], dtype=np.uint64)
    h = (key & np.uint64(0xFFFFFFFF)).astype(np.uint32)[:, None] ^ np.arange(60, dtype=np.uint32) * np.uint32(
        0x9E3779B1
    )
    for _ in range(2):
        h = ((h >> 16) ^ h) * np.uint32(0x45D9F3B)
    h = (h >> 16) ^ h
    total = sum((h >> shift) & 255 for shift in (0, 8, 16, 24)).astype(float)
    want = (total - 510) / np.sqrt(4 * (256**2 - 1) / 12)
    found = _noise(torch.Size([2, 3, 1, 4, 5]), key, torch.device("cpu"))
    assert np.allclose(found.flatten(1), want, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_renders_the_same_clip():
    here, there = render(configs.clip(), "iid", range(32)), render(configs.clip(), "iid", range(32), device="cuda")
    assert (there.rgb.cpu() - here.rgb).abs().max() < 1e-4
    assert (there.layer.cpu() != here.layer).float().mean() < 1e-5
    same = (there.layer.cpu() == here.layer)[:, None]
    assert ((there.flow.cpu() - here.flow).abs() * same).max() < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho": 1.2}, r"rho must lie in \[0, 1\], not 1.2"),
        ({"rho": -0.1}, r"rho must lie in \[0, 1\], not -0.1"),
        ({"contrast": 0.0}, r"contrast must lie in \(0, 1\], not 0.0"),
        ({"size": 8}, "size must be at least 16, not 8"),
        ({"frames": 1}, "frames must be at least 2, not 1"),
        ({"noise": -1.0}, "noise must not be negative, it is -1.0"),
    ],
)
def test_a_knob_out_of_range_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        configs.clip(**change)


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="no split 'test'"):
        render(CLEAN, "test", [0])
