"""Painting of moving sprites, one above the other, on a textured background that moves with the camera."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from d3d.data.moving_sprites import Sprite, World
from d3d.data.sprite_classes import FAMILY_SHAPES, FAMILY_TEXTURES, SHAPES, TEXTURES

LOBE_DEPTH = 0.35
TEXTURE_AMPLITUDE, HUE_AMPLITUDE = 0.3, 0.2  # deviation from middle grey at full contrast


class Painting(NamedTuple):
    """Painted clips.

    Attributes:
        rgb: float32 (B, 3, T, H, W) in [0, 1].
        flow: float32 (B, 2, T, H, W), x and y, pixels per frame, exact.
        layer: uint8 (B, T, H, W), what each pixel shows: 0 background, else the number of a sprite.
        covered: for the number of each sprite the pixels that it covers, hidden or not, bool (B, T, H, W).
    """

    rgb: Tensor
    flow: Tensor
    layer: Tensor
    covered: dict[int, Tensor]


def paint(world: World, sprites: Mapping[int, Sprite], device: torch.device) -> Painting:
    """Paints sprites in the order of the mapping, the last one on top.

    Pixels are computed from sums and products of rows and columns, not one by one.

    Args:
        world: the clips.
        sprites: maps the number of a layer to the sprite that it shows; one sprite at least is coloured.
        device: device of the returned tensors.
    """
    grid = torch.arange(world.size, device=device, dtype=torch.float32)
    grey = _background(world, grid)
    camera_motion = _next_frame(world.camera_offset) - world.camera_offset
    camera_motion = (_as_column(v, device)[..., None] for v in (camera_motion.real, camera_motion.imag))
    flow = torch.stack([v.expand_as(grey) for v in camera_motion], 1)
    layer = torch.zeros_like(grey, dtype=torch.uint8)
    alphas, covered = {}, {}
    for number, sprite in sprites.items():
        x, y = _from_centre(sprite, grid)
        alphas[number] = _coverage(sprite, x, y)
        texture = _texture(sprite, x, y).mul_(TEXTURE_AMPLITUDE * world.config.contrast).add_(0.5)
        grey = torch.lerp(grey, texture, alphas[number])
        covered[number] = alphas[number] > 0.5
        layer.masked_fill_(covered[number], number)
        flow = torch.where(covered[number][:, None], _flow(sprite, x, y), flow)
    flow[:, :, -1] = flow[:, :, -2]
    rgb = _coloured(grey, sprites, alphas, HUE_AMPLITUDE * world.config.contrast)
    if world.config.noise:
        rgb.add_(_noise(rgb.shape, world.rng.key, device), alpha=world.config.noise)
    return Painting(rgb.clamp_(0, 1), flow, layer, covered)


def _as_column(values: np.ndarray, device: torch.device) -> Tensor:
    """Copies values (...) to the device as float32 (..., 1)."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)[..., None]


def _background(world: World, grid: Tensor) -> Tensor:
    """Returns grey levels (B, T, H, W): four waves of 6 to 16 pixels that move with the camera."""
    length, angle, phase = (
        np.stack([world.rng(f"background {name} {k}", *limits) for k in range(4)], 1)[:, None]
        for name, limits in {"length": (6, 16), "angle": (0, 2 * np.pi), "phase": (0, 2 * np.pi)}.items()
    )
    k = 2 * np.pi / length * np.exp(1j * angle)
    phase = phase - (k.conj() * world.camera_offset[..., None]).real
    kx, ky, phase = (_as_column(v, grid.device) for v in (k.real, k.imag, phase))
    return _waves(grid[None, None], grid[None, None], kx, ky, phase, 1 / 4).mul_(TEXTURE_AMPLITUDE).add_(0.5)


def _from_centre(sprite: Sprite, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x and y (B, T, W) from the sprite's centre, the short way around the torus, pixels."""
    size, half = sprite.size, sprite.size / 2
    x, y = (_as_column(v % size, grid.device) for v in (sprite.position.real, sprite.position.imag))
    return (grid - x + half).remainder(size) - half, (grid - y + half).remainder(size) - half


def _flow(sprite: Sprite, x: Tensor, y: Tensor) -> Tensor:
    """Returns the sprite's motion to the next frame, (B, 2, T, H, W), at offsets x, y from its centre."""
    # A point z from the centre moves by linear * z + shift.
    linear = _next_frame(sprite.rotation_scale) / sprite.rotation_scale - 1
    shift = _next_frame(sprite.position) - sprite.position
    real, imag = _as_column(linear.real, x.device), _as_column(linear.imag, x.device)
    shift_x, shift_y = _as_column(shift.real, x.device), _as_column(shift.imag, x.device)
    motion_x = (real * x + shift_x)[..., None, :] - (imag * y)[..., :, None]
    motion_y = (imag * x + shift_y)[..., None, :] + (real * y)[..., :, None]
    return torch.stack([motion_x, motion_y], 1)


def _coloured(grey: Tensor, sprites: Mapping[int, Sprite], alphas: Mapping[int, Tensor], amplitude: float) -> Tensor:
    """Adds the hue of each coloured sprite to grey levels (B, T, H, W), where no later sprite covers it."""
    rgb = grey[:, None]
    numbers = list(sprites)
    for k, number in enumerate(numbers):
        if (hue := sprites[number].hue) is None:
            continue
        weight = alphas[number]
        for above in numbers[k + 1 :]:
            weight = weight * (1 - alphas[above])
        wave = amplitude * np.cos(2 * np.pi * (hue[:, None] - np.arange(3) / 3))
        rgb = rgb + _as_column(wave, grey.device)[..., None, None] * weight[:, None]
    return rgb


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


def _texture(sprite: Sprite, x: Tensor, y: Tensor) -> Tensor:
    """Returns the sprite's texture, (B, T, H, W) in [−1, 1], at offsets x, y from its centre."""
    angles, waves = zip(*(TEXTURES[name] for name in FAMILY_TEXTURES), strict=True)
    used = np.array([[k < len(a) for k in range(3)] for a in angles], dtype=float)[sprite.family]
    angle = np.radians([[(*a, 0, 0)[k] for k in range(3)] for a in angles])[sprite.family]
    rate = np.pi * np.array(waves)[sprite.family]
    k = rate[:, None, None] * np.exp(-1j * angle[:, None]) / sprite.rotation_scale[..., None]
    weight = used / used.sum(1, keepdims=True)
    columns = (k.real, -k.imag, sprite.phase[:, None], weight[:, None])
    return _waves(x, y, *(_as_column(v, x.device) for v in columns))


def _coverage(sprite: Sprite, x: Tensor, y: Tensor) -> Tensor:
    """Returns how much of each pixel (B, T, H, W) the sprite covers.

    In polar coordinates its outline is radius · (1 − depth · (1 − cos nφ) / 2), with n lobes.
    """
    lobes = np.array([SHAPES[name] for name in FAMILY_SHAPES], dtype=float)[sprite.family][:, None]
    radius, start = np.abs(sprite.rotation_scale), lobes * np.angle(sprite.rotation_scale)
    columns = (lobes, start, radius * LOBE_DEPTH / 2, radius * (1 - LOBE_DEPTH / 2) + 0.5)
    lobes, start, depth, mean = (_as_column(v, x.device)[..., None] for v in columns)
    x, y = x[..., None, :], y[..., :, None]
    outline = torch.atan2(y, x).mul_(lobes).sub_(start).cos_().mul_(depth).add_(mean)
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
