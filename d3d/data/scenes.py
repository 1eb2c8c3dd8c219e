"""Synthetic scenes for the detection of actions, a stand-in for AVA: two to four actors, each with a box and a class.

    scenes = render_scenes(config, "iid", range(8), device="cuda")     # config: that of the clips
    scenes.rgb, scenes.flow, scenes.layer, scenes.boxes

Actors are coloured sprites with the classes, sizes in pixels, motion and appearance of the targets of sprite clips, so
that a network trained on clips sees them as it knows them; a scene is twice as high and as wide as a clip. As in clips,
one small grey sprite is a distractor: it is no actor, has no box and lies below all actors.

In the key frame, the middle one, every actor lies within its own quarter of the frame. Hence no actor covers another
there, no box overlaps another, and the visible and the whole extent of an actor are the same. In other frames actors
may cross, cover one another and wrap around the frame's border, as on a torus.

A scene is a pure function of (config, split, index), and shares no random draw with any clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d3d.data.draws import CounterRng
from d3d.data.moving_sprites import Sprite, World, describe, draw_distractor, draw_target
from d3d.data.sprite_classes import CLASSES
from d3d.data.sprite_painting import Painting, paint
from d3d.data.sprites import check_split, frame_times, rho_of
from d3d.study.parameters import ClipConfig

MIN_ACTORS, MAX_ACTORS = 2, 4
SIDE = 2  # side of a scene in sides of a clip; a clip has room for one sprite of any size
DISTRACTOR_LAYER = MAX_ACTORS + 1
MIN_MEAN_RADIUS = 2.0  # pixels; the smallest actor then covers a pixel in any frame


@dataclass(frozen=True)
class RenderedScenes:
    """Rendered scenes with exact ground truth.

    Attributes:
        rgb: float32 (B, 3, T, H, W) in [0, 1].
        flow: float32 (B, 2, T, H, W), x and y, pixels per frame, exact.
        layer: uint8 (B, T, H, W), what each pixel shows: 0 background, k + 1 actor k, 5 the distractor.
        boxes: one row per actor, at the key frame.
    """

    rgb: Tensor
    flow: Tensor
    layer: Tensor
    boxes: pd.DataFrame


def key_frame(frames: int) -> int:
    """Returns the index of the frame whose actors have boxes."""
    return frames // 2


def render_scenes(
    config: ClipConfig, split: str, indices: Sequence[int], *, device: torch.device | str = "cpu"
) -> RenderedScenes:
    """Renders scenes `indices` of a split, each with the same bits whatever the others are.

    Field t of the flow carries frame t onto frame t + 1; the last field is repeated. The table has these columns:

        scene, split: the index and the split of the scene.
        actor: 0 to at most 3; a later actor is painted over an earlier one.
        label, class, group: see `SpriteClass`; classes are uniform and independent, also within a scene.
        program, family, shape, texture: the actor's motion and appearance.
        hue: in [0, 1).
        radius: without growth or pulse, pixels.
        x1, y1, x2, y2: the box that encloses the actor's pixels in the key frame, fractions of the frame.
        visible: fraction of the actor's pixels, over all frames, that no other actor covers; 1 in the key frame.

    Args:
        config: how clips look and move; `size` is the side of a clip, and that of a scene is twice as long.
        split: "train/<seed>", "val", "iid" or "decorrelated" (rho = 0).
        indices: which scenes.
        device: device of the returned tensors.

    Raises:
        ValueError: the split is unknown, or actors may be too small to cover a pixel.
    """
    check_split(split)
    if config.size * config.extent < MIN_MEAN_RADIUS:
        raise ValueError(
            f"actors of scenes need a mean radius, size * extent, of at least {MIN_MEAN_RADIUS:g} pixels, "
            f"not {config.size * config.extent:g}"
        )
    device = torch.device(device)
    # One by one, since the last bit of a batched matrix product may depend on the size of the batch.
    with torch.autocast(device.type, enabled=False):
        scenes = [_render_scene(config, split, index, device) for index in indices]
    rgb, flow, layer = (torch.cat([getattr(p, name) for p, _ in scenes]) for name in ("rgb", "flow", "layer"))
    return RenderedScenes(rgb, flow, layer, pd.DataFrame([row for _, rows in scenes for row in rows]))


def _render_scene(
    config: ClipConfig, split: str, index: int, device: torch.device
) -> tuple[Painting, list[dict[str, Any]]]:
    """Returns a painted scene and the rows of its boxes."""
    rng = CounterRng(f"scenes {split}", np.array([index]))
    world = World(config, rng, frame_times(config, rng, "forwards"), SIDE * config.size)
    actors = _draw_actors(world, rho_of(config, split))
    sprites = {k + 1: actor for k, (_, actor) in enumerate(actors)}
    painting = paint(world, {DISTRACTOR_LAYER: draw_distractor(world)} | sprites, device)
    rows = []
    for k, (label, actor) in enumerate(actors):
        columns = {name: column.item() for name, column in describe(label, actor).items()}
        columns |= _box(painting, k + 1) | {"visible": _visible(painting, k + 1)}
        rows.append({"scene": index, "split": split, "actor": k} | columns)
    return painting, rows


def _draw_actors(world: World, rho: float) -> list[tuple[np.ndarray, Sprite]]:
    """Draws the label (1,) and the sprite of each actor of one scene."""
    rng = world.rng
    count = MIN_ACTORS + rng.integer("actors", MAX_ACTORS - MIN_ACTORS + 1).item()
    cells = np.argsort([rng(f"cell {cell}").item() for cell in range(SIDE**2)])
    actors = []
    for k in range(count):
        label = rng.integer(f"actor {k} class", len(CLASSES))
        actor = draw_target(world, label, rho, f"actor {k}", family_prefix=f"actor {k} ")
        _move_into_cell(actor, cells[k], key_frame(world.config.frames))
        actors.append((label, actor))
    return actors


def _move_into_cell(actor: Sprite, cell: int, frame: int) -> None:
    """Shifts the actor's path so that in this frame the circle around it lies within a cell, uniformly at random.

    A pixel extends by half a pixel to each side of its centre, whose coordinates are whole numbers.
    """
    side, radius = actor.size / SIDE, np.abs(actor.rotation_scale[:, frame])
    row, column = divmod(cell, SIDE)
    corner = side * (column + 1j * row) - (0.5 + 0.5j)
    # The centre was drawn uniformly from the whole frame.
    fraction = actor.centre / actor.size
    actor.move_to(corner + (1 + 1j) * radius + fraction * (side - 2 * radius), frame)


def _box(painting: Painting, number: int) -> dict[str, float]:
    """Returns the box of a layer in the key frame, fractions of the frame."""
    covered = painting.covered[number][0]
    covered = covered[key_frame(len(covered))].cpu().numpy()
    size = len(covered)
    columns, rows = (np.flatnonzero(covered.any(axis)) for axis in (0, 1))
    x1, x2, y1, y2 = (pixel.item() / size for pixel in (columns[0], columns[-1] + 1, rows[0], rows[-1] + 1))
    return {"x1": x1, "y1": y1, "x2": x2, "y2": y2}


def _visible(painting: Painting, number: int) -> float:
    """Returns the fraction of a sprite's pixels, over all frames, that its layer shows."""
    return ((painting.layer == number).sum() / painting.covered[number].sum()).item()
