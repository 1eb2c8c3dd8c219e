"""Controlled clips: a coloured target and a grey distractor moving over a textured background.

    config = ClipConfig(rho=0.5, frames=16, size=64)
    batch = render(config, "iid", range(64), device="cuda")
    batch.rgb, batch.flow, batch.mask, batch.table

A clip is a pure function of (config, split, index). Its parameters are drawn on the CPU by a counter-based generator,
its pixels are computed on the device, and its flow is the exact motion of the layer each pixel shows. The frame is a
torus, so that where a sprite is, and how it is turned, is uniform in every frame, whatever its motion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d3d.data.sprite_classes import CLASSES, FAMILIES, OUTLINE_OF, PROGRAMS, SHAPES, TEXTURE_OF, TEXTURES
from d3d.study.parameters import ClipConfig

SPLITS = ("val", "iid", "decorrelated")
PLAYED = ("forwards", "backwards", "shuffled", "frozen")
PERIOD = 8  # frames of an oscillation; an orbit takes half as many again
HEADING = np.radians(30)  # a translation's direction varies by as much to either side
SPEEDS = {"drift": 0.6, "dash": 1.6}  # of the other programs' speed; told apart by nothing else
LOBE_DEPTH = 0.35
DISTRACTOR = 0.6  # its radius, of a target's: flow cannot see colour, but the smaller mover is not the one asked for
LIGHT, TINT = 0.3, 0.2  # how far texture and hue leave middle grey at full contrast


@dataclass(frozen=True)
class Rendered:
    """rgb (B, 3, T, H, W) in [0, 1], exact flow (B, 2, T, H, W) in pixels, layer (B, T, H, W), a row a clip.

    layer: what a pixel shows, 0 background, 1 distractor, 2 target. pose (B, T, 4): the target's x, y and radius in
    pixels, and its angle in radians, in each frame.
    """

    rgb: Tensor
    flow: Tensor
    layer: Tensor
    pose: np.ndarray
    table: pd.DataFrame

    @property
    def mask(self) -> Tensor:
        """Where the target is seen (B, T, H, W)."""
        return self.layer == 2


def render(
    config: ClipConfig,
    split: str,
    indices: Sequence[int],
    *,
    played: str = "forwards",
    device: torch.device | str = "cpu",
) -> Rendered:
    """Clips `indices` of `split`: `val`, `iid`, `decorrelated` (rho = 0) or `train/<seed>`.

    played: the order in which the moments of the clip are filmed, each with noise of its own; shuffled: a random order
    a clip; frozen: its middle throughout. The label stays what it is forwards.

    Flow follows the convention of the study: field t carries frame t onto frame t + 1, the last field is repeated.
    The table has the label, its group and what is known exactly: program, family, shape, texture, hue, size, position
    (px, at the middle of the clip), velocity (px a frame), angular velocity (rad a frame) and expansion (log scale a
    frame) of the target relative to the background, averaged over the clip, and the camera's velocity.
    Raises ValueError for an unknown split or order.
    """
    if played not in PLAYED:
        raise ValueError(f"played must be one of {', '.join(PLAYED)}, not {played!r}")
    if split not in SPLITS and not split.startswith("train/"):
        raise ValueError(f"no split {split!r}: the splits are train/<seed>, {', '.join(SPLITS)}")
    draw = _Draws(split, np.asarray(indices, dtype=np.uint64))
    label = np.asarray(indices, dtype=np.int64) % len(CLASSES)
    own = np.array([FAMILIES.index(c.family) for c in CLASSES])[label]
    defined = np.array([c.group == "appearance" for c in CLASSES])[label]
    keeps = defined | (draw("keeps its own family") < (0.0 if split == "decorrelated" else config.rho))
    family = np.where(keeps, own, draw.integer("family", len(FAMILIES)))
    program = np.array([PROGRAMS.index(c.program) for c in CLASSES])[label]

    times = _times(config, draw, played)
    camera = _camera(config, draw, times)
    target = _Sprite(config, draw, "target", times, camera, program, family)
    others = draw.integer("distractor program", len(PROGRAMS)), draw.integer("distractor family", len(FAMILIES))
    distractor = _Sprite(config, draw, "distractor", times, camera, *others)
    device = torch.device(device)
    with torch.autocast(device.type, enabled=False):
        rgb, flow, layer = _paint(config, draw, camera, (distractor, target), device)
    return Rendered(rgb, flow, layer, target.pose(), _table(label, camera, target))


class _Draws:
    """Uniform numbers as a function of (split, clip index, name) alone: SplitMix64 (Steele et al. 2014)."""

    def __init__(self, split: str, index: np.ndarray) -> None:
        self.key = _mix(index + np.uint64(crc32(split.encode()) << 20))

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        bits = _mix(self.key ^ np.uint64(crc32(name.encode())))
        return low + (high - low) * ((bits >> np.uint64(11)).astype(np.float64) / 2.0**53)

    def integer(self, name: str, n: int) -> np.ndarray:
        return np.floor(self(name) * n).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _camera(config: ClipConfig, draw: _Draws, times: np.ndarray) -> np.ndarray:
    """Where the background stands at each frame, as a complex offset in pixels (B, T)."""
    velocity = config.camera * draw("camera speed") * np.exp(1j * draw("camera angle", 0, 2 * np.pi))
    return velocity[:, None] * times


def _times(config: ClipConfig, draw: _Draws, played: str) -> np.ndarray:
    """The moments that the frames show, counted in frames from the middle of the clip (1, T), or (B, T)."""
    t = np.arange(config.frames) - (config.frames - 1) / 2
    if played == "shuffled":
        return t[np.argsort(np.stack([draw(f"order {k}") for k in range(config.frames)], 1))]
    return {"forwards": t, "backwards": -t, "frozen": 0 * t}[played][None]


class _Sprite:
    """Drawn parameters of one sprite and its motion, one row a clip; positions are complex numbers x + iy."""

    def __init__(
        self,
        config: ClipConfig,
        draw: _Draws,
        name: str,
        times: np.ndarray,
        camera: np.ndarray,
        program: np.ndarray,
        family: np.ndarray,
    ) -> None:
        self.name, self.size, self.program, self.family = name, config.size, program, family
        share = config.extent * (1.0 if name == "target" else DISTRACTOR)
        self.radius = config.size * share * draw(f"{name} radius", 0.78, 1.22)
        self.hue = draw(f"{name} hue")
        self.phase = np.stack([draw(f"{name} phase {k}", 0, 2 * np.pi) for k in range(3)], 1)
        self.centre = config.size * (draw(f"{name} x") + 1j * draw(f"{name} y"))
        self.angle = draw(f"{name} angle", 0, 2 * np.pi)
        speed = config.amplitude * draw(f"{name} speed", 0.75, 1.25)
        self.offset, self.turn, self.log_scale = self._motion(times, draw, speed[:, None])
        # Sprite to frame, as z -> a z + b: rotation and scale, then position, which wraps around.
        self.a = self.radius[:, None] * np.exp(self.log_scale + 1j * (self.angle[:, None] + self.turn))
        self.b = self.centre[:, None] + self.offset + camera

    def _motion(self, t: np.ndarray, draw: _Draws, speed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offset (complex, px), turn (rad) and log scale (B, T), relative to the background."""
        name = self.name
        sign = np.where(draw(f"{name} sign") < 0.5, -1.0, 1.0)[:, None]
        heading = np.exp(1j * draw(f"{name} heading", -HEADING, HEADING))[:, None]
        beat = draw(f"{name} beat", 0, 2 * np.pi)[:, None]
        path = speed * t
        # Half the square of an oscillation is its mean: √2 gives it the mean square speed of a steady motion.
        swing = np.sqrt(2) * speed * PERIOD / (2 * np.pi) * np.sin(2 * np.pi * t / PERIOD + beat)
        lap = 1.5 * PERIOD / (2 * np.pi)
        orbit = speed * lap * np.exp(1j * (t / lap + beat))
        # A turning sprite's outline moves at the speed, a growing one's at half of it, within a factor of two in all.
        turn = path / self.radius[:, None]
        grow = t * np.minimum(speed / (2 * self.radius[:, None]), np.log(2) / (t.shape[1] - 1))

        def of(program: str) -> np.ndarray:
            return (self.program == PROGRAMS.index(program))[:, None]

        offset = path * heading * (of("right") * 1.0 - of("left"))
        offset = offset + 1j * sign * path * heading * (SPEEDS["drift"] * of("drift") + SPEEDS["dash"] * of("dash"))
        offset = offset + orbit * of("orbit") + orbit.conj() * of("counterorbit")
        offset = offset + swing * of("sway") + 1j * swing * of("bob")
        # y points down, so that a growing angle turns clockwise on the screen.
        swing = swing / self.radius[:, None]
        turn = turn * (of("clockwise") * 1.0 - of("counterclockwise")) + swing * of("rock")
        # The crest of a pulse is bounded too, its wave kept whole.
        crest = np.sqrt(2) * speed * PERIOD / (2 * np.pi) / (2 * self.radius[:, None])
        pulse = swing / 2 * np.minimum(1, np.log(2) / 2 / np.maximum(crest, 1e-9))
        return offset, turn, grow * (of("expand") * 1.0 - of("contract")) + pulse * of("pulse")

    def pose(self) -> np.ndarray:
        """x, y, radius (px) and angle (rad) in each frame (B, T, 4)."""
        x, y = self.b.real % self.size, self.b.imag % self.size
        return np.stack([x, y, np.abs(self.a), np.angle(self.a)], -1)


def _paint(
    config: ClipConfig, draw: _Draws, camera: np.ndarray, sprites: Sequence[_Sprite], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, flow and layers. Everything is a sum of a row and a column: no wave is computed a pixel at a time."""
    grid = torch.arange(config.size, device=device, dtype=torch.float32)

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)[..., None]

    # Background: four waves of 6 to 16 pixels, carried along by the camera.
    length, angle, phase = (
        np.stack([draw(f"background {name} {k}", *limits) for k in range(4)], 1)[:, None]
        for name, limits in {"length": (6, 16), "angle": (0, 2 * np.pi), "phase": (0, 2 * np.pi)}.items()
    )
    k = 2 * np.pi / length * np.exp(1j * angle)
    phase = phase - (k.conj() * camera[..., None]).real
    grey = _waves(grid[None, None], grid[None, None], column(k.real), column(k.imag), column(phase), 1 / 4)
    grey = grey.mul_(LIGHT).add_(0.5)
    step = _following(camera) - camera
    flow = torch.stack([column(part)[..., None].expand_as(grey) for part in (step.real, step.imag)], 1)
    layer = torch.zeros_like(grey, dtype=torch.uint8)

    for number, sprite in enumerate(sprites, 1):
        # Coordinates from the sprite's centre, the short way around the torus.
        half = config.size / 2
        x = (grid - column(sprite.b.real % config.size) + half).remainder(config.size) - half
        y = (grid - column(sprite.b.imag % config.size) + half).remainder(config.size) - half
        alpha = _coverage(sprite, x, y, column)
        texture = _texture(sprite, x, y, column)
        grey = torch.lerp(grey, texture.mul_(LIGHT * config.contrast).add_(0.5), alpha)
        shown = alpha > 0.5
        layer.masked_fill_(shown, number)
        turned, moved = _following(sprite.a) / sprite.a - 1, _following(sprite.b) - sprite.b
        real, imag = column(turned.real), column(turned.imag)
        motion_x = (real * x + column(moved.real))[..., None, :] - (imag * y)[..., :, None]
        motion_y = (imag * x + column(moved.imag))[..., None, :] + (real * y)[..., :, None]
        flow = torch.where(shown[:, None], torch.stack([motion_x, motion_y], 1), flow)
    flow[:, :, -1] = flow[:, :, -2]
    # The target is painted last: its coverage is still at hand for its colour.
    hue = np.cos(2 * np.pi * (sprites[-1].hue[:, None] - np.arange(3) / 3))
    rgb = grey[:, None] + column(TINT * config.contrast * hue)[..., None, None] * alpha[:, None]
    if config.noise:
        rgb.add_(_noise(rgb.shape, draw.key, device), alpha=config.noise)
    return rgb.clamp_(0, 1), flow, layer


def _following(pose: np.ndarray) -> np.ndarray:
    """The pose (B, T) of the next frame at each frame; the last one has none and keeps its own."""
    return np.concatenate([pose[:, 1:], pose[:, -1:]], 1)


def _waves(x: Tensor, y: Tensor, kx: Tensor, ky: Tensor, phase: Tensor, weight: Tensor | float) -> Tensor:
    """Σ weight · cos(kx · x + ky · y + phase) as (B, T, H, W).

    x (B, T, W), y (B, T, H); the rest (B, T, K, 1) or what broadcasts to it. As cos(a + b) = cos a cos b − sin a sin b,
    a wave is a product of rows and columns: one small matrix product for all K.
    """
    across, down = kx * x[..., None, :], ky * y[..., None, :] + phase
    down = torch.cat([weight * down.cos(), -weight * down.sin()], -2)
    across = torch.cat([across.cos(), across.sin()], -2).expand(*down.shape[:-1], -1)
    return down.transpose(-1, -2) @ across


def _texture(sprite: _Sprite, x: Tensor, y: Tensor, column: Callable[[np.ndarray], Tensor]) -> Tensor:
    """The sprite's own waves, in [−1, 1], at pixels x, y from its centre."""
    angles, waves = zip(*(TEXTURES[name] for name in TEXTURE_OF), strict=True)
    used = np.array([[k < len(a) for k in range(3)] for a in angles], dtype=float)[sprite.family]
    angle = np.radians([[(*a, 0, 0)[k] for k in range(3)] for a in angles])[sprite.family]
    rate = np.pi * np.array(waves)[sprite.family]
    k = rate[:, None, None] * np.exp(-1j * angle[:, None]) / sprite.a[..., None]
    weight = used / used.sum(1, keepdims=True)
    return _waves(x, y, column(k.real), column(-k.imag), column(sprite.phase[:, None]), column(weight[:, None]))


def _coverage(sprite: _Sprite, x: Tensor, y: Tensor, column: Callable[[np.ndarray], Tensor]) -> Tensor:
    """How much of each pixel (B, T, H, W) the sprite covers: its outline is radius · (1 − depth · (1 − cos nφ) / 2)."""
    lobes = np.array([SHAPES[name] for name in OUTLINE_OF], dtype=float)[sprite.family][:, None]
    radius, start = np.abs(sprite.a), lobes * np.angle(sprite.a)
    x, y = x[..., None, :], y[..., :, None]
    wave = torch.atan2(y, x).mul_(column(lobes)[..., None]).sub_(column(start)[..., None]).cos_()
    outline = wave.mul_(column(radius * LOBE_DEPTH / 2)[..., None]).add_(
        column(radius * (1 - LOBE_DEPTH / 2) + 0.5)[..., None]
    )
    return outline.sub_(torch.hypot(x, y)).clamp_(0, 1)


def _noise(shape: torch.Size, key: np.ndarray, device: torch.device) -> Tensor:
    """Unit noise, near normal, a function of (clip, channel, frame, pixel): the bytes of a 32-bit hash, added."""
    clip = torch.from_numpy((key & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)).to(device)
    place = torch.arange(shape[1:].numel(), device=device, dtype=torch.int32) * (0x9E3779B1 - 2**32)
    h = clip[:, None] ^ place
    for _ in range(2):
        h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF)).mul_(0x45D9F3B)
    h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF))
    pairs = (h & 0xFF00FF).add_((h >> 8).bitwise_and_(0xFF00FF))
    total = (pairs & 0xFFFF).add_(pairs >> 16)
    return total.to(torch.float32).sub_(510).mul_(1 / np.sqrt(4 * (256**2 - 1) / 12)).view(shape)


def _table(label: np.ndarray, camera: np.ndarray, target: _Sprite) -> pd.DataFrame:
    steps = camera.shape[1] - 1
    velocity, drift = ((path[:, -1] - path[:, 0]) / steps for path in (target.offset, camera))
    middle = target.pose()[:, camera.shape[1] // 2]
    return pd.DataFrame(
        {
            "label": label,
            "class": np.array([c.name for c in CLASSES])[label],
            "group": np.array([c.group for c in CLASSES])[label],
            "program": np.array(PROGRAMS)[target.program],
            "family": np.array(FAMILIES)[target.family],
            "shape": np.array(OUTLINE_OF)[target.family],
            "texture": np.array(TEXTURE_OF)[target.family],
            "hue": target.hue,
            "radius": target.radius,
            "x": middle[:, 0],
            "y": middle[:, 1],
            "velocity_x": velocity.real,
            "velocity_y": velocity.imag,
            "angular_velocity": (target.turn[:, -1] - target.turn[:, 0]) / steps,
            "expansion": (target.log_scale[:, -1] - target.log_scale[:, 0]) / steps,
            "camera_x": drift.real,
            "camera_y": drift.imag,
        }
    )
