"""Synthetic clips with exact flow: a coloured target and a grey distractor moving over a textured background.

    config = ClipConfig(rho=0.5, frames=16, size=64)     # rho: probability that a motion class has its own appearance
    clips = render(config, "iid", range(64), device="cuda")
    clips.rgb, clips.flow, clips.mask, clips.table

A clip is a pure function of (config, split, index). Its parameters are drawn on the CPU by a counter-based generator,
its pixels are computed on the device, and its flow is the exact motion of the layer visible at each pixel. The frame is
a torus, so that a sprite's position and angle are uniform in every frame, whatever its motion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d3d.data.draws import CounterRng
from d3d.data.sprite_classes import CLASSES, FAMILIES, FAMILY_SHAPES, FAMILY_TEXTURES, PROGRAMS, SHAPES, TEXTURES
from d3d.study.parameters import ClipConfig

SPLITS = ("val", "iid", "decorrelated")
PLAYBACKS = ("forwards", "backwards", "shuffled", "frozen")
PERIOD = 8  # frames per oscillation; an orbit takes 1.5 times as long
MAX_HEADING = np.radians(30)  # largest deviation of a translation from its axis
RELATIVE_SPEEDS = {"drift": 0.6, "dash": 1.6}  # times the target's speed; drift and dash differ in nothing else
LOBE_DEPTH = 0.35
# Radius over the target's. Flow has no colour: there only the size distinguishes distractor and target.
DISTRACTOR_SCALE = 0.6
TEXTURE_AMPLITUDE, HUE_AMPLITUDE = 0.3, 0.2  # deviation from middle grey at full contrast


@dataclass(frozen=True)
class RenderedClips:
    """Rendered clips with exact ground truth.

    Attributes:
        rgb: float32 (B, 3, T, H, W) in [0, 1].
        flow: float32 (B, 2, T, H, W), x and y, pixels per frame, exact.
        layer: uint8 (B, T, H, W), what each pixel shows: 0 background, 1 distractor, 2 target.
        pose: float64 (B, T, 4), the target's x, y and radius in pixels and its angle in radians.
        table: one row per clip.
    """

    rgb: Tensor
    flow: Tensor
    layer: Tensor
    pose: np.ndarray
    table: pd.DataFrame

    @property
    def mask(self) -> Tensor:
        """The visible pixels of the target, bool (B, T, H, W)."""
        return self.layer == 2


def render(
    config: ClipConfig,
    split: str,
    indices: Sequence[int],
    *,
    playback: str = "forwards",
    device: torch.device | str = "cpu",
) -> RenderedClips:
    """Renders clips `indices` of a split.

    Field t of the flow carries frame t onto frame t + 1; the last field is repeated. The table has these columns:

        label, class, group: see `SpriteClass`.
        program, family, shape, texture: the target's motion and appearance.
        hue: in [0, 1).
        radius: without growth or pulse, pixels.
        x, y: position in the middle frame, pixels.
        velocity_x, velocity_y, angular_velocity, expansion: the target's, relative to the background and averaged over
            the clip; pixels, radians and log scale per frame.
        camera_x, camera_y: velocity of the background, pixels per frame.

    Args:
        config: how clips look and move.
        split: "train/<seed>", "val", "iid" or "decorrelated" (rho = 0).
        indices: which clips; the index modulo 16 is the label.
        playback: order of the frames in time; "shuffled": a random order per clip; "frozen": the middle of the clip in
            every frame. Every frame has its own noise, and the label is that of "forwards".
        device: device of the returned tensors.

    Raises:
        ValueError: the split or the playback is unknown.
    """
    if playback not in PLAYBACKS:
        raise ValueError(f"playback must be one of {', '.join(PLAYBACKS)}, not {playback!r}")
    if split not in SPLITS and not split.startswith("train/"):
        raise ValueError(f"no split {split!r}: the splits are train/<seed>, {', '.join(SPLITS)}")
    rng = CounterRng(split, indices)
    label = np.asarray(indices, dtype=np.int64) % len(CLASSES)
    class_family = np.array([FAMILIES.index(c.family) for c in CLASSES])[label]
    is_appearance = np.array([c.group == "appearance" for c in CLASSES])[label]
    keeps_family = is_appearance | (rng("keeps its own family") < (0.0 if split == "decorrelated" else config.rho))
    family = np.where(keeps_family, class_family, rng.integer("family", len(FAMILIES)))
    program = np.array([PROGRAMS.index(c.program) for c in CLASSES])[label]

    times = _frame_times(config, rng, playback)
    camera_offset = _camera_offset(config, rng, times)
    target = _Sprite(config, rng, "target", times, camera_offset, program, family)
    distractor_kind = (
        rng.integer("distractor program", len(PROGRAMS)),
        rng.integer("distractor family", len(FAMILIES)),
    )
    distractor = _Sprite(config, rng, "distractor", times, camera_offset, *distractor_kind)
    device = torch.device(device)
    with torch.autocast(device.type, enabled=False):
        rgb, flow, layer = _paint(config, rng, camera_offset, (distractor, target), device)
    return RenderedClips(rgb, flow, layer, target.pose(), _table(label, camera_offset, target))


def _camera_offset(config: ClipConfig, rng: CounterRng, times: np.ndarray) -> np.ndarray:
    """Returns the background's offset in each frame, complex (B, T), pixels."""
    velocity = config.camera * rng("camera speed") * np.exp(1j * rng("camera angle", 0, 2 * np.pi))
    return velocity[:, None] * times


def _frame_times(config: ClipConfig, rng: CounterRng, playback: str) -> np.ndarray:
    """Returns the times that the frames show, in frames from the middle of the clip: (1, T), shuffled (B, T)."""
    t = np.arange(config.frames) - (config.frames - 1) / 2
    if playback == "shuffled":
        return t[np.argsort(np.stack([rng(f"order {k}") for k in range(config.frames)], 1))]
    return {"forwards": t, "backwards": -t, "frozen": 0 * t}[playback][None]


class _Sprite:
    """One random sprite per clip and its motion; positions are complex numbers x + iy."""

    def __init__(
        self,
        config: ClipConfig,
        rng: CounterRng,
        name: str,
        times: np.ndarray,
        camera_offset: np.ndarray,
        program: np.ndarray,
        family: np.ndarray,
    ) -> None:
        self.name, self.size, self.program, self.family = name, config.size, program, family
        extent = config.extent * (1.0 if name == "target" else DISTRACTOR_SCALE)
        self.radius = config.size * extent * rng(f"{name} radius", 0.78, 1.22)
        self.hue = rng(f"{name} hue")
        self.phase = np.stack([rng(f"{name} phase {k}", 0, 2 * np.pi) for k in range(3)], 1)
        self.centre = config.size * (rng(f"{name} x") + 1j * rng(f"{name} y"))
        self.angle = rng(f"{name} angle", 0, 2 * np.pi)
        speed = config.amplitude * rng(f"{name} speed", 0.75, 1.25)
        self.offset, self.turn, self.log_scale = self._motion(times, rng, speed[:, None])
        # Sprite to frame coordinates: z -> rotation_scale * z + position, which wraps around.
        self.rotation_scale = self.radius[:, None] * np.exp(self.log_scale + 1j * (self.angle[:, None] + self.turn))
        self.position = self.centre[:, None] + self.offset + camera_offset

    def _motion(self, t: np.ndarray, rng: CounterRng, speed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns offset (complex, px), turn (rad) and log scale, each (B, T), relative to the background."""
        name = self.name
        sign = np.where(rng(f"{name} sign") < 0.5, -1.0, 1.0)[:, None]
        heading = np.exp(1j * rng(f"{name} heading", -MAX_HEADING, MAX_HEADING))[:, None]
        start_phase = rng(f"{name} beat", 0, 2 * np.pi)[:, None]
        distance = speed * t
        # √2 gives an oscillation the mean square speed of a uniform motion.
        oscillation = np.sqrt(2) * speed * PERIOD / (2 * np.pi) * np.sin(2 * np.pi * t / PERIOD + start_phase)
        frames_per_radian = 1.5 * PERIOD / (2 * np.pi)
        orbit = speed * frames_per_radian * np.exp(1j * (t / frames_per_radian + start_phase))
        # The outline moves at `speed` when turning, at speed / 2 when growing, by at most a factor of 2 over a clip.
        turn = distance / self.radius[:, None]
        growth = t * np.minimum(speed / (2 * self.radius[:, None]), np.log(2) / (t.shape[1] - 1))

        def has(program: str) -> np.ndarray:
            return (self.program == PROGRAMS.index(program))[:, None]

        drift, dash = (RELATIVE_SPEEDS[program] * has(program) for program in ("drift", "dash"))
        offset = distance * heading * (has("right") * 1.0 - has("left"))
        offset = offset + 1j * sign * distance * heading * (drift + dash)
        offset = offset + orbit * has("orbit") + orbit.conj() * has("counterorbit")
        offset = offset + oscillation * has("sway") + 1j * oscillation * has("bob")
        # y points down, so that a growing angle turns clockwise on the screen.
        oscillation = oscillation / self.radius[:, None]
        turn = turn * (has("clockwise") * 1.0 - has("counterclockwise")) + oscillation * has("rock")
        # The amplitude is scaled, not clipped, to keep a pulse within a factor of √2 and sinusoidal.
        max_log_scale = np.sqrt(2) * speed * PERIOD / (2 * np.pi) / (2 * self.radius[:, None])
        pulse = oscillation / 2 * np.minimum(1, np.log(2) / 2 / np.maximum(max_log_scale, 1e-9))
        return offset, turn, growth * (has("expand") * 1.0 - has("contract")) + pulse * has("pulse")

    def pose(self) -> np.ndarray:
        """Returns x, y, radius (px) and angle (rad) in each frame, (B, T, 4)."""
        x, y = self.position.real % self.size, self.position.imag % self.size
        return np.stack([x, y, np.abs(self.rotation_scale), np.angle(self.rotation_scale)], -1)


def _paint(
    config: ClipConfig, rng: CounterRng, camera_offset: np.ndarray, sprites: Sequence[_Sprite], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns RGB, flow and layers, computed from sums and products of rows and columns, not pixel by pixel."""
    grid = torch.arange(config.size, device=device, dtype=torch.float32)

    def as_column(values: np.ndarray) -> Tensor:
        """Copies values (...) to the device as (..., 1)."""
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)[..., None]

    # Background: four waves of 6 to 16 pixels that move with the camera.
    length, angle, phase = (
        np.stack([rng(f"background {name} {k}", *limits) for k in range(4)], 1)[:, None]
        for name, limits in {"length": (6, 16), "angle": (0, 2 * np.pi), "phase": (0, 2 * np.pi)}.items()
    )
    k = 2 * np.pi / length * np.exp(1j * angle)
    phase = phase - (k.conj() * camera_offset[..., None]).real
    grey = _waves(grid[None, None], grid[None, None], as_column(k.real), as_column(k.imag), as_column(phase), 1 / 4)
    grey = grey.mul_(TEXTURE_AMPLITUDE).add_(0.5)
    camera_motion = _next_frame(camera_offset) - camera_offset
    flow = torch.stack([as_column(v)[..., None].expand_as(grey) for v in (camera_motion.real, camera_motion.imag)], 1)
    layer = torch.zeros_like(grey, dtype=torch.uint8)

    for number, sprite in enumerate(sprites, 1):
        # Coordinates from the sprite's centre, the short way around the torus.
        half = config.size / 2
        x = (grid - as_column(sprite.position.real % config.size) + half).remainder(config.size) - half
        y = (grid - as_column(sprite.position.imag % config.size) + half).remainder(config.size) - half
        alpha = _coverage(sprite, x, y, as_column)
        texture = _texture(sprite, x, y, as_column)
        grey = torch.lerp(grey, texture.mul_(TEXTURE_AMPLITUDE * config.contrast).add_(0.5), alpha)
        covered = alpha > 0.5
        layer.masked_fill_(covered, number)
        # A point z from the centre moves by linear * z + shift.
        linear = _next_frame(sprite.rotation_scale) / sprite.rotation_scale - 1
        shift = _next_frame(sprite.position) - sprite.position
        real, imag = as_column(linear.real), as_column(linear.imag)
        motion_x = (real * x + as_column(shift.real))[..., None, :] - (imag * y)[..., :, None]
        motion_y = (imag * x + as_column(shift.imag))[..., None, :] + (real * y)[..., :, None]
        flow = torch.where(covered[:, None], torch.stack([motion_x, motion_y], 1), flow)
    flow[:, :, -1] = flow[:, :, -2]
    # The target is painted last, so that `alpha` is its coverage.
    hue = np.cos(2 * np.pi * (sprites[-1].hue[:, None] - np.arange(3) / 3))
    rgb = grey[:, None] + as_column(HUE_AMPLITUDE * config.contrast * hue)[..., None, None] * alpha[:, None]
    if config.noise:
        rgb.add_(_noise(rgb.shape, rng.key, device), alpha=config.noise)
    return rgb.clamp_(0, 1), flow, layer


def _next_frame(values: np.ndarray) -> np.ndarray:
    """Shifts values (B, T) by one frame; the last one is repeated."""
    return np.concatenate([values[:, 1:], values[:, -1:]], 1)


def _waves(x: Tensor, y: Tensor, kx: Tensor, ky: Tensor, phase: Tensor, weight: Tensor | float) -> Tensor:
    """Returns Σ weight · cos(kx · x + ky · y + phase), (B, T, H, W).

    As cos(a + b) = cos a cos b − sin a sin b, the sum over K waves is one matrix product of rows and columns.

    Args:
        x: (B, T, W), pixels.
        y: (B, T, H), pixels.
        kx, ky, phase, weight: broadcastable to (B, T, K, 1).
    """
    across, down = kx * x[..., None, :], ky * y[..., None, :] + phase
    down = torch.cat([weight * down.cos(), -weight * down.sin()], -2)
    across = torch.cat([across.cos(), across.sin()], -2).expand(*down.shape[:-1], -1)
    return down.transpose(-1, -2) @ across


def _texture(sprite: _Sprite, x: Tensor, y: Tensor, as_column: Callable[[np.ndarray], Tensor]) -> Tensor:
    """Returns the sprite's texture, (B, T, H, W) in [−1, 1], at offsets x, y from its centre."""
    angles, waves = zip(*(TEXTURES[name] for name in FAMILY_TEXTURES), strict=True)
    used = np.array([[k < len(a) for k in range(3)] for a in angles], dtype=float)[sprite.family]
    angle = np.radians([[(*a, 0, 0)[k] for k in range(3)] for a in angles])[sprite.family]
    rate = np.pi * np.array(waves)[sprite.family]
    k = rate[:, None, None] * np.exp(-1j * angle[:, None]) / sprite.rotation_scale[..., None]
    weight = used / used.sum(1, keepdims=True)
    phase, weight = as_column(sprite.phase[:, None]), as_column(weight[:, None])
    return _waves(x, y, as_column(k.real), as_column(-k.imag), phase, weight)


def _coverage(sprite: _Sprite, x: Tensor, y: Tensor, as_column: Callable[[np.ndarray], Tensor]) -> Tensor:
    """Returns how much of each pixel (B, T, H, W) the sprite covers.

    In polar coordinates its outline is radius · (1 − depth · (1 − cos nφ) / 2), with n lobes.
    """
    lobes = np.array([SHAPES[name] for name in FAMILY_SHAPES], dtype=float)[sprite.family][:, None]
    radius, start = np.abs(sprite.rotation_scale), lobes * np.angle(sprite.rotation_scale)
    x, y = x[..., None, :], y[..., :, None]
    wave = torch.atan2(y, x).mul_(as_column(lobes)[..., None]).sub_(as_column(start)[..., None]).cos_()
    outline = wave.mul_(as_column(radius * LOBE_DEPTH / 2)[..., None]).add_(
        as_column(radius * (1 - LOBE_DEPTH / 2) + 0.5)[..., None]
    )
    return outline.sub_(torch.hypot(x, y)).clamp_(0, 1)


def _noise(shape: torch.Size, key: np.ndarray, device: torch.device) -> Tensor:
    """Returns nearly normal noise of unit variance: summed bytes of a 32-bit hash of clip, channel, frame and pixel."""
    clip = torch.from_numpy((key & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)).to(device)
    pixel = torch.arange(shape[1:].numel(), device=device, dtype=torch.int32) * (0x9E3779B1 - 2**32)
    h = clip[:, None] ^ pixel
    for _ in range(2):
        h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF)).mul_(0x45D9F3B)
    h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF))
    pairs = (h & 0xFF00FF).add_((h >> 8).bitwise_and_(0xFF00FF))
    total = (pairs & 0xFFFF).add_(pairs >> 16)
    return total.to(torch.float32).sub_(510).mul_(1 / np.sqrt(4 * (256**2 - 1) / 12)).view(shape)


def _table(label: np.ndarray, camera_offset: np.ndarray, target: _Sprite) -> pd.DataFrame:
    intervals = camera_offset.shape[1] - 1
    velocity, camera_velocity = ((path[:, -1] - path[:, 0]) / intervals for path in (target.offset, camera_offset))
    middle = target.pose()[:, camera_offset.shape[1] // 2]
    return pd.DataFrame(
        {
            "label": label,
            "class": np.array([c.name for c in CLASSES])[label],
            "group": np.array([c.group for c in CLASSES])[label],
            "program": np.array(PROGRAMS)[target.program],
            "family": np.array(FAMILIES)[target.family],
            "shape": np.array(FAMILY_SHAPES)[target.family],
            "texture": np.array(FAMILY_TEXTURES)[target.family],
            "hue": target.hue,
            "radius": target.radius,
            "x": middle[:, 0],
            "y": middle[:, 1],
            "velocity_x": velocity.real,
            "velocity_y": velocity.imag,
            "angular_velocity": (target.turn[:, -1] - target.turn[:, 0]) / intervals,
            "expansion": (target.log_scale[:, -1] - target.log_scale[:, 0]) / intervals,
            "camera_x": camera_velocity.real,
            "camera_y": camera_velocity.imag,
        }
    )
