"""Draws clips and flow fields; d3d.films shows them moving, and d3d.report.plots draws tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from d3d.data.sprite_classes import CLASSES
from d3d.data.sprites import RenderedClips, render
from d3d.flow.fields import colours, endpoint_error
from d3d.report.labels import label
from d3d.report.plots import styled
from d3d.study import records
from d3d.study.parameters import ClipConfig
from d3d.study.schema import make


@styled
def clips(rendered: RenderedClips, *, columns: int = 6) -> Figure:
    """Draws one row per clip: `columns` frames, then the exact flow as colours and the target's mask."""
    rows, frames = rendered.rgb.shape[0], rendered.rgb.shape[2]
    frame_numbers = np.linspace(0, frames - 1, columns).round().astype(int)
    middle = frames // 2
    figure, axes = plt.subplots(rows, columns + 2, figsize=(columns + 3, rows * 1.05), squeeze=False)
    for row in range(rows):
        images = [rendered.rgb[row, :, t].permute(1, 2, 0).cpu().numpy() for t in frame_numbers]
        images.append(colours(rendered.flow[row, None, :, middle].cpu(), bound=3.0)[0].permute(1, 2, 0).numpy())
        images.append(rendered.mask[row, middle].cpu().numpy())
        for axis, image in zip(axes[row], images, strict=True):
            axis.imshow(image, interpolation="nearest", cmap="gray")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        name = rendered.table["class"].iloc[row]
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], [*(f"frame {t}" for t in frame_numbers), "flow", "mask"], strict=True):
        axis.set_title(title, fontsize=9)
    return figure


@styled
def flows(columns: Mapping[str, torch.Tensor], truth: torch.Tensor, *, bound: float = 3.0) -> Figure:
    """Draws one row per pair of frames, and under each estimated field its mean end-point error in pixels.

    Args:
        columns: title to frames (B, 3, H, W) in [0, 1] or flow (B, 2, H, W) in pixels.
        truth: exact flow (B, 2, H, W).
        bound: speed in pixels per frame that is drawn in full colour.
    """
    rows = len(truth)
    figure, axes = plt.subplots(rows, len(columns), figsize=(1.5 * len(columns), 1.7 * rows), squeeze=False)
    for column, (title, values) in enumerate(columns.items()):
        is_flow = values.shape[1] == 2
        images = colours(values, bound=bound) if is_flow else values
        for row, axis in enumerate(axes[:, column]):
            axis.imshow(images[row].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if is_flow and values is not truth:
                axis.set_xlabel(f"{endpoint_error(values[row, None], truth[row, None]).mean():.2f} px", fontsize=8)
        axes[0, column].set_title(title, fontsize=9)
    figure.tight_layout()
    return figure


def example_rows(table: pd.DataFrame, programs: Sequence[str] = ("right", "clockwise", "expand")) -> list[int]:
    """Returns the row of the first clip of each program, or the first rows of the table where there is none."""
    rows = table[table["program"].isin(programs)].drop_duplicates("program").index
    return list(rows) or list(table.index[: len(programs)])


def decoded_flow(results: str | Path, arms: Sequence[str], *, columns: int = 3) -> dict[str, Any] | None:
    """Loads the flow that was decoded from the networks of the first examined seed.

    Args:
        results: folder of the records.
        arms: networks to show, in this order, if their records hold decoded flow.
        columns: frames per clip.

    Returns:
        `endpoint`, the name of the decoded endpoint, and `panels`, the arguments of `filmstrips`; None where no record
        holds decoded flow.
    """
    probes = [r for r in records.read_all(results, ["probe"]) if r.arm in arms and r.arrays]
    probes = sorted((r for r in probes if r.seed == min(r.seed for r in probes)), key=lambda r: arms.index(r.arm))
    if not probes:
        return None
    arrays = {r.arm: records.read_arrays(results, r) for r in probes}
    config, first = make(ClipConfig, probes[0].params), arrays[probes[0].arm]
    selected = np.linspace(0, len(first["frames"]) - 1, min(columns, len(first["frames"]))).round().astype(int)
    frame_numbers = first["frames"][selected]
    rendered = render(config, "iid", range(len(first["dense"])))
    rows = example_rows(rendered.table)
    panels = {
        "rgb": rendered.rgb[rows][:, :, frame_numbers],
        "truth": rendered.flow[rows][:, :, frame_numbers],
        "mask": rendered.mask[rows][:, frame_numbers],
        "decoded": {arm: a["dense"][rows][:, :, selected].astype(np.float32) for arm, a in arrays.items()},
        "titles": list(rendered.table["program"][rows]),
        "frame_numbers": frame_numbers.tolist(),
        "bound": 2 * config.amplitude,
    }
    return {"endpoint": probes[0].params["endpoint"], "panels": panels}


@styled
def filmstrips(
    rgb: torch.Tensor,
    truth: torch.Tensor,
    mask: torch.Tensor,
    decoded: Mapping[str, np.ndarray],
    *,
    titles: Sequence[str],
    frame_numbers: Sequence[int],
    bound: float,
) -> Figure:
    """Draws clips side by side, with rows for their K frames, the true flow and the flow decoded from each network.

    The first field of each clip and network shows its mean end-point error on the target over the K frames, in pixels.

    Args:
        rgb: (N, 3, K, H, W) in [0, 1].
        truth: exact flow (N, 2, K, H, W), pixels per frame.
        mask: the target's mask, bool (N, K, H, W).
        decoded: arm to flow, as `truth`.
        titles: one per clip.
        frame_numbers: the K frames' positions in their clip.
        bound: speed in pixels per frame that is drawn in full colour.
    """
    count, frames = rgb.shape[0], rgb.shape[2]
    rows = {"frame": rgb, "true flow": truth} | {label(arm): torch.as_tensor(flow) for arm, flow in decoded.items()}
    side, gap = 0.6, 0.25
    columns = ([1] * frames + [gap]) * (count - 1) + [1] * frames
    heights = [*[1] * len(rows), 1.6]
    width, height = side * sum(columns), side * sum(heights)
    figsize = (width + 1.3, height + 0.5)
    figure = plt.figure(figsize=figsize)
    grid = GridSpec(
        len(heights), len(columns), figure=figure, wspace=0.05, hspace=0.05,
        width_ratios=columns, height_ratios=heights, left=1.25 / figsize[0], right=1 - 0.05 / figsize[0],
        top=1 - 0.45 / figsize[1], bottom=0.05 / figsize[1],
    )  # fmt: skip
    for row, (name, values) in enumerate(rows.items()):
        for clip in range(count):
            is_flow = values.shape[1] == 2
            error = endpoint_error(values[clip][None].float(), truth[clip][None])[0] if is_flow else None
            for k in range(frames):
                axis = figure.add_subplot(grid[row, clip * (frames + 1) + k])
                image = values[clip, :, k].float()
                image = colours(image[None], bound=bound)[0] if is_flow else image
                axis.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if row == 0:
                    axis.set_title(f"{frame_numbers[k]}", fontsize=8, pad=2)
                if clip == 0 and k == 0:
                    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
                if row == 0 and k == frames // 2:
                    axis.annotate(titles[clip], (0.5, 1.35), xycoords="axes fraction", ha="center", fontsize=10)
                if row > 1 and k == 0 and mask[clip].any():
                    text = f"{error[mask[clip]].mean():.2f}"
                    box = {"facecolor": "white", "alpha": 0.8, "pad": 1, "lw": 0}
                    axis.text(0.04, 0.06, text, transform=axis.transAxes, fontsize=7, bbox=box)
    _legend(figure.add_subplot(grid[-1, :]), bound)
    return figure


def colour_wheel(*, bound: float, pixels: int = 101) -> np.ndarray:
    """Returns the colours of all flows up to `bound` pixels, uint8 (P, P, 3); zero flow is in the middle."""
    component = torch.linspace(-bound, bound, pixels)
    flow = torch.stack(torch.meshgrid(component, component, indexing="xy"))
    image = colours(flow[None], bound=bound)[0].permute(1, 2, 0).clone()
    image[torch.linalg.vector_norm(flow, dim=0) > bound] = 255
    return image.numpy()


def _legend(axis: plt.Axes, bound: float) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, f"hue: direction\nsaturation: speed, white at rest,\nfull at {bound:g} px per frame\n"
              "numbers: error on the target (px)", transform=axis.transAxes, va="center", fontsize=8)  # fmt: skip
    inset = axis.inset_axes((0.2, 0.0, 0.28, 0.95))
    inset.imshow(colour_wheel(bound=bound))
    inset.set_axis_off()


if __name__ == "__main__":
    # The figure of the README: a clip of every second class.
    figure = clips(render(ClipConfig(frames=16, size=64, camera=0.5), "iid", range(0, len(CLASSES), 2)))
    figure.savefig("book/_static/clips.png", dpi=90, bbox_inches="tight")
