"""The sprite clips: their pixels agree with their documented flow, poses, parameters and distributions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from d3d.data.sprite_classes import CLASSES, FAMILIES, PROGRAMS, SHAPES, TEXTURES
from d3d.data.sprite_painting import _noise
from d3d.data.sprites import render
from d3d.flow.fields import occluded, warp
from d3d.study.schema import changed
from tests import configs

CLEAN = configs.clip(noise=0.0)
STILL = changed(CLEAN, camera=0.0)


def erode(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Shrinks a mask (B, H, W) by so many pixels, also at the frame's border."""
    outside = F.pad((~mask).float()[:, None], (pixels, pixels, pixels, pixels), value=1.0)
    return F.max_pool2d(outside, 2 * pixels + 1, 1)[:, 0] == 0


def indices_of_class(name: str, n: int) -> list[int]:
    """Returns the indices of the first n clips of a class."""
    return [[c.name for c in CLASSES].index(name) + len(CLASSES) * i for i in range(n)]


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Returns the positions x + iy of a mask's pixels (H, W)."""
    y, x = torch.nonzero(mask, as_tuple=True)
    return x + 1j * y


def torus_distance(a: np.ndarray, b: np.ndarray, size: float) -> np.ndarray:
    """Returns the distance of positions x + iy on the torus."""
    d = a - b
    return np.hypot((d.real + size / 2) % size - size / 2, (d.imag + size / 2) % size - size / 2)


def warp_error(clip, t: int) -> torch.Tensor:
    """Returns |frame t + 1 warped back by the exact flow − frame t|, (B, H, W), mean over the channels."""
    return (warp(clip.rgb[:, :, t + 1], clip.flow[:, :, t]) - clip.rgb[:, :, t]).abs().mean(1)


def interior(clip, t: int) -> torch.Tensor:
    """Selects pixels at least two from every edge, occlusion and border, in frame t and where they move (B, H, W)."""
    layer, hidden = clip.layer[:, t], occluded(clip.layer, clip.flow)[:, t]
    before = torch.zeros_like(hidden)
    for number in range(3):
        before |= erode((layer == number) & ~hidden, 2)
    after = torch.zeros_like(before)
    for number in range(3):
        after |= erode(clip.layer[:, t + 1] == number, 2)
    return before & (warp(after[:, None].float(), clip.flow[:, :, t], padding="zeros")[:, 0] > 0.99)


@pytest.mark.parametrize("playback", ["backwards", "shuffled", "frozen"])
def test_playback_changes_the_order_of_the_frames_alone(playback):
    clip, other = render(CLEAN, "iid", range(16)), render(CLEAN, "iid", range(16), playback=playback)
    frames = clip.rgb.transpose(1, 2)
    other_frames = other.rgb.transpose(1, 2)
    if playback == "backwards":
        assert torch.equal(other_frames, frames.flip(1))
    if playback == "shuffled":
        for a, b in zip(frames, other_frames, strict=True):
            assert {f.numpy().tobytes() for f in a} == {f.numpy().tobytes() for f in b}
        orders = [
            [int((f == g).all((1, 2, 3)).nonzero()[0]) for g in b] for f, b in zip(frames, other_frames, strict=True)
        ]
        assert all(sorted(order) == list(range(16)) for order in orders)
        assert len({tuple(order) for order in orders}) == 16
    if playback == "frozen":
        assert (other_frames == other_frames[:, :1]).all()
        assert other.flow.abs().max() < 1e-6
    # Exact flow is exact in any order, except for a sprite that moved around the torus.
    small = other.flow.norm(dim=1).amax((2, 3)) < 8
    for t in (0, 7, 14):
        selected = interior(other, t) & small[:, t, None, None]
        if playback != "shuffled":
            assert selected.float().mean() > 0.4
        assert warp_error(other, t)[selected].mean() < 0.02
    assert clip.table[["label", "hue", "family"]].equals(other.table[["label", "hue", "family"]])


def test_every_frame_of_a_frozen_clip_has_its_own_noise():
    rgb = render(changed(CLEAN, noise=0.1), "iid", range(4), playback="frozen").rgb
    assert (rgb[:, :, 1:] - rgb[:, :, :-1]).std() > 0.1


def test_the_error_names_an_unknown_playback():
    message = "playback must be one of forwards, backwards, shuffled, frozen, not 'sideways'"
    with pytest.raises(ValueError, match=message):
        render(CLEAN, "iid", range(1), playback="sideways")


@pytest.mark.parametrize("t", [0, 7, 14])
def test_flow_carries_each_frame_onto_the_next(t):
    clip = render(CLEAN, "iid", range(32))
    error, error_without_flow = warp_error(clip, t), (clip.rgb[:, :, t + 1] - clip.rgb[:, :, t]).abs().mean(1)
    selected = interior(clip, t)
    target = selected & clip.mask[:, t]
    assert selected.float().mean() > 0.5
    assert target.sum() > 1000
    assert error[selected].mean() < 0.01
    assert error[target].mean() < 0.01
    assert error_without_flow[target].mean() > 3 * error[target].mean()


@settings(max_examples=15)
@given(
    rho=st.floats(0, 1),
    frames=st.integers(2, 12),
    size=st.integers(48, 96),
    amplitude=st.floats(0, 3),
    contrast=st.floats(0.3, 1),
    camera=st.floats(0, 2),
    index=st.integers(0, 2**40),
)
def test_flow_is_exact_for_any_configuration(rho, frames, size, amplitude, contrast, camera, index):
    config = configs.clip(
        rho=rho, frames=frames, size=size, amplitude=amplitude, contrast=contrast, camera=camera, noise=0.0
    )
    clip = render(config, "val", range(index, index + 4))
    t = (frames - 1) // 2
    selected, error = interior(clip, t), warp_error(clip, t)
    assert error[selected].mean() < 0.01
    for number in (1, 2):
        sprite = selected & (clip.layer[:, t] == number)
        if sprite.sum() >= 50:
            assert error[sprite].mean() < 0.01


def test_flow_agrees_with_the_poses():
    """For every program, with camera motion: a pixel of the target moves to where the next frame's pose puts it."""
    clip = render(changed(CLEAN, camera=1.0), "iid", range(32))
    for i in range(32):
        for t in (0, 6, 14):
            (x, y, radius, angle), (x2, y2, radius2, angle2) = clip.pose[i, t : t + 2]
            start = positions(clip.mask[i, t]).numpy()
            z = start - (x + 1j * y)
            z = ((z.real + 32) % 64 - 32) + 1j * ((z.imag + 32) % 64 - 32)
            end = z * radius2 / radius * np.exp(1j * (angle2 - angle)) + x2 + 1j * y2
            flow = clip.flow[i, :, t][:, clip.mask[i, t]].numpy()
            assert torus_distance(start + flow[0] + 1j * flow[1], end, 64).max() < 1e-3


def test_autocast_does_not_affect_rendering():
    with torch.autocast("cpu", torch.bfloat16):
        clip = render(configs.clip(size=16, frames=2), "iid", range(2))
    assert torch.equal(clip.rgb, render(configs.clip(size=16, frames=2), "iid", range(2)).rgb)


def test_the_last_field_is_repeated():
    flow = render(CLEAN, "iid", range(8)).flow
    assert torch.equal(flow[:, :, -1], flow[:, :, -2])


@pytest.mark.parametrize("size", [20, 64])
def test_a_clip_depends_on_its_index_alone(size):
    config = configs.clip(size=size)
    single = render(config, "iid", [5])
    batch = render(config, "iid", range(40))
    assert (single.rgb[0] - batch.rgb[5]).abs().max() < 1e-6
    assert torch.equal(single.layer[0], batch.layer[5])
    assert torch.equal(single.flow[0], batch.flow[5])
    assert single.table.iloc[0].equals(batch.table.iloc[5].rename(0))


def test_splits_and_training_seeds_share_no_clip():
    clips = [render(configs.clip(), s, [3]).rgb for s in ("train/0", "train/1", "val", "iid", "decorrelated")]
    for i, a in enumerate(clips):
        for b in clips[i + 1 :]:
            assert not torch.equal(a, b)


def test_only_the_target_is_coloured():
    clip = render(CLEAN, "iid", range(16))
    saturation = clip.rgb.amax(1) - clip.rgb.amin(1)
    eroded = erode(clip.mask.flatten(0, 1), 1).view_as(clip.mask)
    dilated = ~erode(~clip.mask.flatten(0, 1), 1).view_as(clip.mask)
    assert saturation[~dilated].max() < 1e-5
    assert saturation[eroded].mean() > 0.2


def test_the_pose_agrees_with_the_mask():
    clip = render(CLEAN, "iid", range(48))
    for i in range(48):
        for t in (0, 8, 15):
            x, y, radius, _ = clip.pose[i, t]
            target = positions(clip.mask[i, t]).numpy()
            distance = torus_distance(target, np.array(x + 1j * y), 64)
            # The outline lies between 65 % and 100 % of the radius, and the centre belongs to the sprite.
            assert distance.max() < radius + 1
            assert 0.6 * np.pi * (0.65 * radius) ** 2 < len(target) < 1.1 * np.pi * radius**2
            # On the torus the mean position is a circular mean.
            mean_phase = np.exp(2j * np.pi * np.stack([target.real, target.imag]) / 64).mean(1)
            centre = np.angle(mean_phase) * 64 / (2 * np.pi)
            assert torus_distance(centre[0] + 1j * centre[1], np.array(x + 1j * y), 64) < 1.5


@pytest.mark.parametrize("program", ["right", "left", "drift", "dash"])
def test_velocity_agrees_with_pose_and_flow(program):
    clip = render(STILL, "iid", indices_of_class(program, 6))
    displacement = np.diff(clip.pose[..., 0] + 1j * clip.pose[..., 1], axis=1)
    velocity = (clip.table["velocity_x"] + 1j * clip.table["velocity_y"]).to_numpy()
    assert torus_distance(displacement, velocity[:, None], 64).max() < 1e-9
    core = erode(clip.mask[:, 7], 2)
    flow = torch.stack([clip.flow[i, :, 7][:, core[i]].mean(1) for i in range(6)]).numpy()
    assert np.allclose(flow[:, 0] + 1j * flow[:, 1], velocity, atol=1e-4)
    heading, speed = np.degrees(np.angle(velocity)), np.abs(velocity) / STILL.amplitude
    axis = {"right": [0], "left": [-180, 180], "drift": [-90, 90], "dash": [-90, 90]}[program]
    assert (np.abs(heading[:, None] - axis).min(1) <= 30).all()
    factor = {"drift": 0.6, "dash": 1.6}.get(program, 1.0)
    assert ((0.75 * factor <= speed) & (speed <= 1.25 * factor)).all()


def test_the_camera_moves_everything():
    clip = render(changed(CLEAN, amplitude=0.0, camera=1.5), "iid", range(16))
    camera = torch.tensor(clip.table[["camera_x", "camera_y"]].to_numpy(np.float32, copy=True))[..., None, None, None]
    assert (clip.flow - camera).abs().max() < 1e-4
    assert camera.norm(dim=1).max() > 0.5


def test_expansion_and_angular_velocity_agree_with_the_flow():
    clip = render(STILL, "iid", range(64))
    t = 7
    flow = clip.flow[:, :, t]
    dx = (flow[:, 0, :, 2:] - flow[:, 0, :, :-2])[:, 1:-1] / 2
    dy = (flow[:, 1, 2:] - flow[:, 1, :-2])[:, :, 1:-1] / 2
    du = (flow[:, 0, 2:] - flow[:, 0, :-2])[:, :, 1:-1] / 2
    dv = (flow[:, 1, :, 2:] - flow[:, 1, :, :-2])[:, 1:-1] / 2
    core = erode(clip.mask[:, t], 2)[:, 1:-1, 1:-1]
    steady = ~clip.table["program"].isin(["rock", "pulse"])
    assert (clip.table.loc[steady, ["angular_velocity", "expansion"]].abs().max() > 0.03).all()
    for i, row in clip.table[steady].iterrows():
        if core[i].any():
            divergence, curl = (dx + dy)[i][core[i]].mean() / 2, (dv - du)[i][core[i]].mean() / 2
            scale = np.exp(row["expansion"])
            assert divergence == pytest.approx(scale * np.cos(row["angular_velocity"]) - 1, abs=2e-3)
            assert curl == pytest.approx(scale * np.sin(row["angular_velocity"]), abs=2e-3)


def sprite_coordinates(clip, i: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns each pixel's position in the target's coordinates, complex (H, W), and its grey level (H, W)."""
    x, y, radius, angle = clip.pose[i, t]
    size = clip.layer.shape[-1]
    rows, cols = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    dx, dy = ((a - b + size / 2) % size - size / 2 for a, b in ((cols, x), (rows, y)))
    return (dx + 1j * dy) * np.exp(-1j * angle) / radius, clip.rgb[i, :, t].mean(0)


def test_texture_shape_and_hue_agree_with_the_pixels():
    clip = render(changed(STILL, size=128, extent=0.25, frames=2), "iid", range(48))
    for i, row in clip.table.iterrows():
        z, grey = sprite_coordinates(clip, i, 0)
        mask = clip.mask[i, 0]
        # Texture: the waves of the listed texture, and of no other, explain the grey levels.
        unexplained = {}
        for name, (angles, waves) in TEXTURES.items():
            phases = [np.pi * waves * (z[mask] * np.exp(-1j * np.radians(a))).real for a in angles]
            design = torch.stack([f(p) for p in phases for f in (torch.cos, torch.sin)] + [torch.ones(mask.sum())], 1)
            fit = torch.linalg.lstsq(design.double(), grey[mask].double()[:, None]).solution
            unexplained[name] = (design.double() @ fit - grey[mask][:, None]).var() / grey[mask].double().var()
        assert min(unexplained, key=unexplained.get) == row["texture"]
        assert unexplained[row["texture"]] < 0.02
        # Shape: the distance of the outline from the centre has as many lobes as the listed shape.
        polar_angle = np.angle(z.numpy())
        edge = [abs(z[mask & torch.from_numpy(abs(polar_angle - a) < 0.1)]).max() for a in np.linspace(-3, 3, 61)]
        lobes = np.abs([np.mean(np.array(edge) * np.exp(1j * n * np.linspace(-3, 3, 61))) for n in range(1, 9)])
        assert (lobes.argmax() + 1 if lobes.max() > 0.04 else 0) == SHAPES[row["shape"]]
        # Hue: the angle of the mean colour on a wheel with red, green and blue at its thirds.
        colour = clip.rgb[i, :, 0][:, mask].double().mean(1).numpy()
        hue = np.angle(colour @ np.exp(2j * np.pi * np.arange(3) / 3)) / (2 * np.pi)
        assert abs((hue - row["hue"] + 0.5) % 1 - 0.5) < 0.01


def test_orbits_are_circles_in_opposite_directions():
    for name, sign in {"orbit": 1, "counterorbit": -1}.items():
        pose = render(STILL, "iid", indices_of_class(name, 4)).pose
        step = np.diff(pose[..., 0] + 1j * pose[..., 1], axis=1)
        step = (step.real + 32) % 64 - 32 + 1j * ((step.imag + 32) % 64 - 32)
        assert np.allclose(np.abs(step), np.abs(step[:, :1]))
        # Twelve frames per orbit; y points down, so that a growing angle turns clockwise on the screen.
        assert np.allclose(np.angle(step[:, 1:] / step[:, :-1]), sign * 2 * np.pi / 12)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_moves_the_target(program):
    index = next(i for i, c in enumerate(CLASSES) if c.program == program)
    clip = render(STILL, "iid", [index + len(CLASSES) * k for k in range(4)])
    moving = clip.flow.norm(dim=1) > 0.05
    assert (moving & clip.mask).sum() > 0.5 * clip.mask.sum()


@settings(max_examples=10)
@given(amplitude=st.floats(0, 10), frames=st.integers(2, 40), index=st.integers(0, 2**30))
def test_a_sprite_grows_by_a_factor_of_two_at_most(amplitude, frames, index):
    config = changed(STILL, amplitude=amplitude, frames=frames, size=16, extent=0.28)
    clip = render(config, "val", range(index, index + 16))
    scaled = clip.table["program"].isin(["expand", "contract", "pulse"]).to_numpy()
    radius = clip.pose[scaled, :, 2]
    assert (radius.max(1) <= 2.001 * radius.min(1)).all()
    assert radius.max() < 8


def test_the_pose_in_one_frame_does_not_depend_on_the_motion():
    """In any frame, position, size and angle have the same distribution in all motion classes."""
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


def test_rho_is_the_probability_of_the_family_of_the_class():
    small = configs.clip(size=16, frames=2)
    class_family = np.array([c.family for c in CLASSES])
    for rho, split, expected in [(0.0, "iid", 0.0), (0.5, "iid", 0.5), (1.0, "iid", 1.0), (1.0, "decorrelated", 0.0)]:
        table = render(changed(small, rho=rho), split, range(2000)).table
        is_class_family = table["family"].to_numpy() == class_family[table["label"]]
        is_appearance = (table["group"] == "appearance").to_numpy()
        assert is_class_family[is_appearance].all()
        # A random family may be that of the class by chance; the tolerance is 4 standard errors of 1,500 clips.
        with_chance = expected + (1 - expected) / len(FAMILIES)
        assert is_class_family[~is_appearance].mean() == pytest.approx(with_chance, abs=4 * np.sqrt(0.25 / 1500))


def test_classes_of_each_group_share_what_the_group_defines():
    by_group = {g: [c for c in CLASSES if c.group == g] for g in ("motion", "appearance", "both")}
    programs = {}
    for c in by_group["motion"]:
        programs.setdefault(c.family, set()).add(c.program)
    assert all(len(pair) == 2 for pair in programs.values())
    families = {}
    for c in by_group["appearance"]:
        families.setdefault(c.program, set()).add(c.family)
    assert all(len(pair) == 2 for pair in families.values())
    # A pair shares the shape, which flow can see.
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


@settings(max_examples=20)
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


def test_noise_is_nearly_normal():
    quiet = render(changed(CLEAN, contrast=0.2), "iid", range(16)).rgb
    noisy = render(changed(CLEAN, contrast=0.2, noise=0.02), "iid", range(16)).rgb
    difference = (noisy - quiet)[(quiet > 0.1) & (quiet < 0.9)] / 0.02
    assert difference.mean().abs() < 0.01
    assert difference.std() == pytest.approx(1, abs=0.01)
    pairs = torch.stack([difference[:-1], difference[1:]])
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.01


def test_noise_is_the_documented_hash():
    key = np.array([0x123456789ABCDEF0, 3], dtype=np.uint64)
    h = (key & np.uint64(0xFFFFFFFF)).astype(np.uint32)[:, None] ^ np.arange(60, dtype=np.uint32) * np.uint32(
        0x9E3779B1
    )
    for _ in range(2):
        h = ((h >> 16) ^ h) * np.uint32(0x45D9F3B)
    h = (h >> 16) ^ h
    total = sum((h >> shift) & 255 for shift in (0, 8, 16, 24)).astype(float)
    expected = (total - 510) / np.sqrt(4 * (256**2 - 1) / 12)
    noise = _noise(torch.Size([2, 3, 1, 4, 5]), key, torch.device("cpu"))
    assert np.allclose(noise.flatten(1), expected, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_renders_the_same_clip():
    cpu, gpu = render(configs.clip(), "iid", range(32)), render(configs.clip(), "iid", range(32), device="cuda")
    assert (gpu.rgb.cpu() - cpu.rgb).abs().max() < 1e-4
    assert (gpu.layer.cpu() != cpu.layer).float().mean() < 1e-5
    same_layer = (gpu.layer.cpu() == cpu.layer)[:, None]
    assert ((gpu.flow.cpu() - cpu.flow).abs() * same_layer).max() < 1e-4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rho": 1.2}, r"rho must lie in \[0, 1\], not 1.2"),
        ({"rho": -0.1}, r"rho must lie in \[0, 1\], not -0.1"),
        ({"contrast": 0.0}, r"contrast must lie in \(0, 1\], not 0.0"),
        ({"size": 8}, "size must be at least 16, not 8"),
        ({"frames": 1}, "frames must be at least 2, not 1"),
        ({"noise": -1.0}, "noise must not be negative, it is -1.0"),
    ],
)
def test_the_error_names_the_parameter_out_of_range(overrides, message):
    with pytest.raises(ValueError, match=message):
        configs.clip(**overrides)


def test_the_error_names_an_unknown_split():
    with pytest.raises(ValueError, match="no split 'test'"):
        render(CLEAN, "test", [0])
