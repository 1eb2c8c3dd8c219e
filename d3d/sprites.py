"""Controlled clips: a coloured target and a grey distractor moving over a textured background.

    config = SpriteConfig(rho=0.5)
    batch = render(config, "iid", range(64), device="cuda")
    batch.rgb, batch.flow, batch.mask, batch.table

A clip is a pure function of (config, split, index). Its parameters are drawn on the CPU by a counter-based generator,
its pixels are computed on the device, and its flow is the exact motion of the layer each pixel shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from torch import Tensor

PROGRAMS = ("right", "left", "clockwise", "counterclockwise", "expand", "contract", "sway", "bob")
# Lobes of the outline, directions (degrees) of the waves of the texture, waves across the sprite.
FAMILIES = {
    "disc-stripes": (0, (0,), 2.0),
    "peanut-checks": (2, (0, 90), 1.5),
    "trefoil-cells": (3, (0, 60, 120), 2.0),
    "quatrefoil-stripes": (4, (0,), 1.2),
    "star-checks": (5, (0, 90), 2.5),
    "gear-cells": (7, (0, 60, 120), 1.2),
}
GROUPS = ("motion", "appearance", "both")
SPLITS = ("val", "iid", "decorrelated")
LOBE_DEPTH = 0.35


class SpriteClass(NamedTuple):
    """What a label means: the program of the target, its own family, and what tells the class from others."""

    name: str
    group: str
    program: str
    family: str


# Motion pairs share a family, appearance pairs share a program that no other class has.
CLASSES = (
    SpriteClass("right", "motion", "right", "disc-stripes"),
    SpriteClass("left", "motion", "left", "disc-stripes"),
    SpriteClass("clockwise", "motion", "clockwise", "peanut-checks"),
    SpriteClass("counterclockwise", "motion", "counterclockwise", "peanut-checks"),
    SpriteClass("expand-trefoil", "appearance", "expand", "trefoil-cells"),
    SpriteClass("expand-quatrefoil", "appearance", "expand", "quatrefoil-stripes"),
    SpriteClass("contract", "both", "contract", "star-checks"),
    SpriteClass("sway", "both", "sway", "gear-cells"),
)


@dataclass(frozen=True, kw_only=True)
class SpriteConfig:
    """Knobs of the controlled data.

    rho: probability that a clip shows its class's own family where appearance does not define the class.
    frames, size: T, and H = W in pixels. amplitude: speed of the target in pixels a frame. contrast: of its texture.
    camera: drift of the background in pixels a frame. noise: standard deviation of the sensor noise, in [0, 1] units.
    """

    rho: float = 0.5
    frames: int = 16
    size: int = 64
    amplitude: float = 1.5
    contrast: float = 1.0
    camera: float = 0.5
    noise: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho is a probability and must lie in [0, 1], not {self.rho}")
        if not 0 < self.contrast <= 1:
            raise ValueError(f"contrast must lie in (0, 1], not {self.contrast}")
        if self.frames < 2 or self.size < 16:
            raise ValueError(f"a clip needs at least 2 frames of 16 pixels, not {self.frames} of {self.size}")
        for name in ("amplitude", "camera", "noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, it is {getattr(self, name)}")


@dataclass(frozen=True)
class Rendered:
    """rgb (B, 3, T, H, W) in [0, 1], flow (B, 2, T, H, W) in pixels, mask (B, T, H, W) of the target, a row a clip."""

    rgb: Tensor
    flow: Tensor
    mask: Tensor
    table: pd.DataFrame


def render(config: SpriteConfig, split: str, indices: Sequence[int], *, device: torch.device | str = "cpu") -> Rendered:
    """Clips `indices` of `split`: `val`, `iid`, `decorrelated` (rho = 0) or `train/<seed>`.

    Flow follows the convention of the study: field t carries frame t onto frame t + 1, the last field is repeated.
    The table has the label, its group and what is known exactly: program, family, hue, size, position (px, at the
    middle frame), velocity (px a frame), angular velocity (rad a frame) and expansion (log scale a frame) of the
    target relative to the background, averaged over the clip.
    Raises ValueError for an unknown split.
    """
    if split not in SPLITS and not split.startswith("train/"):
        raise ValueError(f"no split {split!r}: the splits are train/<seed>, {', '.join(SPLITS)}")
    draw = _Draws(split, np.asarray(indices, dtype=np.uint64))
    label = np.asarray(indices, dtype=np.int64) % len(CLASSES)
    own = np.array([list(FAMILIES).index(c.family) for c in CLASSES])[label]
    defined = np.array([c.group == "appearance" for c in CLASSES])[label]
    keeps = defined | (draw("keeps its own family") < (0.0 if split == "decorrelated" else config.rho))
    family = np.where(keeps, own, draw.integer("family", len(FAMILIES)))
    program = np.array([PROGRAMS.index(c.program) for c in CLASSES])[label]

    camera = _camera(config, draw)
    target = _Sprite(config, draw, "target", program, family)
    distractor = _Sprite(
        config,
        draw,
        "distractor",
        draw.integer("distractor program", len(PROGRAMS)),
        draw.integer("distractor family", len(FAMILIES)),
    )
    rgb, flow, mask = _paint(config, draw, camera, target, distractor, torch.device(device))
    return Rendered(rgb, flow, mask, _table(label, target))


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


class _Sprite:
    """Drawn parameters of one sprite, and its motion relative to the background, one row a clip."""

    def __init__(self, config: SpriteConfig, draw: _Draws, name: str, program: np.ndarray, family: np.ndarray) -> None:
        size = config.size
        self.name, self.program, self.family = name, program, family
        self.radius = size * draw(f"{name} radius", 0.14, 0.22)
        self.hue = draw(f"{name} hue")
        self.phase = np.stack([draw(f"{name} phase {k}", 0, 2 * np.pi) for k in range(3)], 1)
        self.x = size * draw(f"{name} x", 0.35, 0.65)
        self.y = size * draw(f"{name} y", 0.35, 0.65)
        self.angle = draw(f"{name} angle", 0, 2 * np.pi)
        self.speed = config.amplitude * draw(f"{name} speed", 0.75, 1.25)
        self.offset, self.turn, self.log_scale = self._motion(config.frames, draw(f"{name} beat", 0, 2 * np.pi))
        # Sprite to background, as z -> a z + b on the complex plane (x + iy): rotation and scale, then position.
        self.a = self.radius[:, None] * np.exp(self.log_scale + 1j * (self.angle[:, None] + self.turn))
        self.b = (self.x + 1j * self.y)[:, None] + self.offset

    def _motion(self, frames: int, beat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offset (complex, px), turn (rad) and log scale at T frames, each zero at the middle of the clip."""
        t = np.arange(frames) - (frames - 1) / 2
        path = self.speed[:, None] * t
        # A rotation moves the outline as fast as a translation the whole; an expansion half as fast, to stay in frame.
        turn = path / self.radius[:, None]
        swing = 3 * self.speed[:, None] * np.sin(2 * np.pi * t / 8 + beat[:, None])

        def of(*programs: str) -> np.ndarray:
            return np.isin(self.program, [PROGRAMS.index(p) for p in programs])[:, None].astype(float)

        # y points down, so that a growing angle turns clockwise on the screen.
        offset = path * (of("right") - of("left")) + swing * (of("sway") + 1j * of("bob"))
        return offset, turn * (of("clockwise") - of("counterclockwise")), turn / 2 * (of("expand") - of("contract"))


def _camera(config: SpriteConfig, draw: _Draws) -> np.ndarray:
    """Where the background stands at each frame, as a complex offset in pixels (B, T)."""
    t = np.arange(config.frames) - (config.frames - 1) / 2
    speed, angle = config.camera * draw("camera speed"), draw("camera angle", 0, 2 * np.pi)
    return (speed * np.exp(1j * angle))[:, None] * t


def _paint(
    config: SpriteConfig, draw: _Draws, camera: np.ndarray, target: _Sprite, distractor: _Sprite, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    size = config.size
    grid = torch.arange(size, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(grid, grid, indexing="ij")

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)[..., None, None]

    # Background: four waves of 6 to 16 pixels, carried along by the camera.
    bx, by = x - column(camera.real), y - column(camera.imag)
    grey = torch.zeros_like(bx)
    for k in range(4):
        rate, angle = 2 * np.pi / draw(f"background wave {k}", 6, 16), draw(f"background angle {k}", 0, 2 * np.pi)
        phase = draw(f"background phase {k}", 0, 2 * np.pi)
        kx, ky, p = (column(v[:, None]) for v in (rate * np.cos(angle), rate * np.sin(angle), phase))
        grey += torch.cos(kx * bx + ky * by + p) / 4
    image = (0.5 + 0.3 * grey)[:, None].expand(-1, 3, -1, -1, -1).clone()
    step = _following(camera) - camera
    flow = torch.stack([column(step.real).expand_as(bx), column(step.imag).expand_as(by)], 1)
    mask = torch.zeros_like(bx, dtype=torch.bool)

    for sprite in (distractor, target):
        a, b = sprite.a, sprite.b + camera
        inverse = 1 / a
        ir, ii, br, bi = (column(v) for v in (inverse.real, inverse.imag, b.real, b.imag))
        u, v = ir * (x - br) - ii * (y - bi), ii * (x - br) + ir * (y - bi)
        paint, alpha = _appearance(config, sprite, u, v, column)
        image = torch.lerp(image, paint, alpha[:, None])
        mask = alpha > 0.5
        a, b = _following(a), _following(b)
        ar, ai, br, bi = (column(v) for v in (a.real, a.imag, b.real, b.imag))
        motion = torch.stack([ar * u - ai * v + br - x, ai * u + ar * v + bi - y], 1)
        flow = torch.where(mask[:, None], motion, flow)
    flow[:, :, -1] = flow[:, :, -2]
    rgb = image + config.noise * _noise(image.shape, draw.key, device)
    return rgb.clamp_(0, 1), flow, mask


def _following(pose: np.ndarray) -> np.ndarray:
    """The pose (B, T) of the next frame at each frame; the last one has none and keeps its own."""
    return np.concatenate([pose[:, 1:], pose[:, -1:]], 1)


def _appearance(config: SpriteConfig, sprite: _Sprite, u: Tensor, v: Tensor, column) -> tuple[Tensor, Tensor]:
    """Colour (B, 3, T, H, W) and coverage (B, T, H, W) of a sprite at its own coordinates, where its radius is 1."""
    lobes, angles, waves = zip(*FAMILIES.values(), strict=True)
    lobes, waves = np.array(lobes)[sprite.family], np.array(waves)[sprite.family]
    weight = np.array([[k < len(a) for k in range(3)] for a in angles], dtype=float)[sprite.family]
    angle = np.radians([[(*a, 0, 0)[k] for k in range(3)] for a in angles])[sprite.family]
    weight /= weight.sum(1, keepdims=True)

    light = torch.zeros_like(u)
    for k in range(3):
        rate = np.pi * waves
        kx, ky, p, w = (
            column(c[:, None])
            for c in (rate * np.cos(angle[:, k]), rate * np.sin(angle[:, k]), sprite.phase[:, k], weight[:, k])
        )
        light += w * torch.cos(kx * u + ky * v + p)
    light = 0.5 + 0.5 * config.contrast * light
    colour = _hue(sprite.hue) if sprite.name == "target" else np.ones((len(sprite.hue), 3))
    paint = column(colour[:, :, None]) * light[:, None]

    outline = 1 - LOBE_DEPTH * (0.5 - 0.5 * torch.cos(column(lobes[:, None].astype(float)) * torch.atan2(v, u)))
    pixels = column(np.abs(sprite.a))
    alpha = ((outline - torch.hypot(u, v)) * pixels + 0.5).clamp(0, 1)
    return paint, alpha


def _hue(hue: np.ndarray) -> np.ndarray:
    """Saturated colours (B, 3) of hues in [0, 1)."""
    return 0.15 + 0.85 * np.clip(np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)


def _noise(shape: torch.Size, key: np.ndarray, device: torch.device) -> Tensor:
    """Unit noise, near normal, a function of (clip, channel, frame, pixel): the bytes of a 32-bit hash, added."""
    clip = torch.from_numpy((key & np.uint64(0xFFFFFFFF)).astype(np.int64)).to(device)
    h = torch.arange(shape[1:].numel(), device=device) * 0x9E3779B1 & 0xFFFFFFFF
    h = clip[:, None] ^ h
    for _ in range(2):
        h = ((h >> 16) ^ h) * 0x45D9F3B & 0xFFFFFFFF
    h = (h >> 16) ^ h
    total = (h & 255) + (h >> 8 & 255) + (h >> 16 & 255) + (h >> 24)
    return ((total - 510) / np.sqrt(4 * (256**2 - 1) / 12)).to(torch.float32).view(shape)


def _table(label: np.ndarray, target: _Sprite) -> pd.DataFrame:
    steps = target.offset.shape[1] - 1
    velocity = (target.offset[:, -1] - target.offset[:, 0]) / steps
    return pd.DataFrame(
        {
            "label": label,
            "class": np.array([c.name for c in CLASSES])[label],
            "group": np.array([c.group for c in CLASSES])[label],
            "program": np.array(PROGRAMS)[target.program],
            "family": np.array(list(FAMILIES))[target.family],
            "hue": target.hue,
            "radius": target.radius,
            "x": target.x,
            "y": target.y,
            "velocity_x": velocity.real,
            "velocity_y": velocity.imag,
            "angular_velocity": (target.turn[:, -1] - target.turn[:, 0]) / steps,
            "expansion": (target.log_scale[:, -1] - target.log_scale[:, 0]) / steps,
        }
    )
