"""Synthetic clips with exact flow: a coloured target and a grey distractor moving over a textured background.

    config = ClipConfig(rho=0.5, frames=16, size=64)     # rho: probability that a motion class has its own appearance
    clips = render(config, "iid", range(64), device="cuda")
    clips.rgb, clips.flow, clips.mask, clips.table

A clip is a pure function of (config, split, index). Its parameters are drawn on the CPU by a counter-based generator,
its pixels are computed on the device, and its flow is the exact motion of the layer visible at each pixel. The frame is
a torus, so that a sprite's position and angle are uniform in every frame, whatever its motion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d3d.data.draws import CounterRng
from d3d.data.moving_sprites import Sprite, World, describe, draw_distractor, draw_target
from d3d.data.sprite_classes import CLASSES
from d3d.data.sprite_painting import paint
from d3d.study.parameters import ClipConfig

SPLITS = ("val", "iid", "decorrelated")
PLAYBACKS = ("forwards", "backwards", "shuffled", "frozen")


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

    - label, class, group: see `SpriteClass`.
    - program, family, shape, texture: the target's motion and appearance.
    - hue: in [0, 1).
    - radius: without growth or pulse, pixels.
    - x, y: position in the middle frame, pixels.
    - velocity_x, velocity_y, angular_velocity, expansion: the target's, relative to the background and averaged over
      the clip; pixels, radians and log scale per frame.
    - camera_x, camera_y: velocity of the background, pixels per frame.

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
    check_split(split)
    label = np.asarray(indices, dtype=np.int64) % len(CLASSES)
    rng = CounterRng(split, indices)
    world = World(config, rng, frame_times(config, rng, playback), config.size)
    target = draw_target(world, label, rho_of(config, split))
    device = torch.device(device)
    with torch.autocast(device.type, enabled=False):
        painting = paint(world, {1: draw_distractor(world), 2: target}, device)
    table = _table(label, world.camera_offset, target)
    return RenderedClips(painting.rgb, painting.flow, painting.layer, target.pose(), table)


def check_split(split: str) -> None:
    """Raises ValueError if sprites have no split of this name."""
    if split not in SPLITS and not split.startswith("train/"):
        raise ValueError(f"no split {split!r}: the splits are train/<seed>, {', '.join(SPLITS)}")


def rho_of(config: ClipConfig, split: str) -> float:
    """Returns the probability that a sprite of a motion class in a split has the appearance of its class."""
    return 0.0 if split == "decorrelated" else config.rho


def frame_times(config: ClipConfig, rng: CounterRng, playback: str) -> np.ndarray:
    """Returns the times that the frames show, in frames from the middle of the clip: (1, T), shuffled (B, T)."""
    t = np.arange(config.frames) - (config.frames - 1) / 2
    if playback == "shuffled":
        return t[np.argsort(np.stack([rng(f"order {k}") for k in range(config.frames)], 1))]
    return {"forwards": t, "backwards": -t, "frozen": 0 * t}[playback][None]


def _table(label: np.ndarray, camera_offset: np.ndarray, target: Sprite) -> pd.DataFrame:
    intervals = camera_offset.shape[1] - 1
    velocity, camera_velocity = ((path[:, -1] - path[:, 0]) / intervals for path in (target.offset, camera_offset))
    middle = target.pose()[:, camera_offset.shape[1] // 2]
    return pd.DataFrame(
        {
            **describe(label, target),
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
