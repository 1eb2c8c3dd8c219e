"""Pictures of clips, flow fields and maps: what draws pixels, not tables."""

from base64 import b64encode
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
from d3d.data.sprites import Rendered, render
from d3d.flow.fields import colours, endpoint_error
from d3d.report.labels import label
from d3d.report.plots import styled
from d3d.study import records
from d3d.study.parameters import ClipConfig
from d3d.study.schema import make


@styled
def clips(rendered: Rendered, *, columns: int = 6) -> Figure:
    """One row a clip: frames over time, then the exact flow as colours (Middlebury wheel) and the target's mask."""
    rows, frames = rendered.rgb.shape[0], rendered.rgb.shape[2]
    shown = np.linspace(0, frames - 1, columns).round().astype(int)
    middle = frames // 2
    figure, axes = plt.subplots(rows, columns + 2, figsize=(columns + 3, rows * 1.05), squeeze=False)
    for row in range(rows):
        images = [rendered.rgb[row, :, t].permute(1, 2, 0).cpu().numpy() for t in shown]
        images.append(colours(rendered.flow[row, None, :, middle].cpu(), bound=3.0)[0].permute(1, 2, 0).numpy())
        images.append(rendered.mask[row, middle].cpu().numpy())
        for axis, image in zip(axes[row], images, strict=True):
            axis.imshow(image, interpolation="nearest", cmap="gray")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        name = rendered.table["class"].iloc[row]
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], [*(f"frame {t}" for t in shown), "flow", "mask"], strict=True):
        axis.set_title(title, fontsize=9)
    return figure


def film(rendered: Rendered, row: int, *, zoom: int = 4, bound: float = 3.0) -> str:
    """HTML of a video that loops: one clip's frames, exact flow as colours (full at `bound` px) and target, abreast.

    The video travels inside the page, so that nothing is fetched; it has controls, and its label is the class.
    """
    # PyAV is needed for films only: a machine that renders sprites does without it.
    from d3d.video.decode import encode

    rgb = (rendered.rgb[row].permute(1, 2, 3, 0) * 255).round().byte()
    flow = colours(rendered.flow[row].transpose(0, 1), bound=bound).permute(0, 2, 3, 1)
    mask = rendered.mask[row][..., None].expand_as(rgb).byte() * 255
    frames = torch.cat([part.cpu() for part in (rgb, flow, mask)], 2)
    frames = frames.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2).numpy()
    name = rendered.table["class"].iloc[row]
    video = b64encode(encode(frames, fps=8)).decode()
    return (
        f'<figure class="film"><video controls loop muted autoplay playsinline width="{frames.shape[2]}" '
        f'height="{frames.shape[1]}" aria-label="A clip of the class {name}: frames, exact flow, target" '
        f'src="data:video/mp4;base64,{video}"></video><figcaption>{name}</figcaption></figure>'
    )


@styled
def flows(pictures: Mapping[str, torch.Tensor], truth: torch.Tensor, *, bound: float = 3.0) -> Figure:
    """Columns of flow fields as colours, a row a pair, under each the end-point error (px) of the row.

    pictures: title to frames (B, 3, H, W) in [0, 1] or flow (B, 2, H, W); truth (B, 2, H, W).
    """
    rows = len(truth)
    figure, axes = plt.subplots(rows, len(pictures), figsize=(1.5 * len(pictures), 1.7 * rows), squeeze=False)
    for column, (title, given) in enumerate(pictures.items()):
        is_flow = given.shape[1] == 2
        images = colours(given, bound=bound) if is_flow else given
        for row, axis in enumerate(axes[:, column]):
            axis.imshow(images[row].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if is_flow and given is not truth:
                axis.set_xlabel(f"{endpoint_error(given[row, None], truth[row, None]).mean():.2f} px", fontsize=8)
        axes[0, column].set_title(title, fontsize=9)
    figure.tight_layout()
    return figure


@styled
def attributions(rgb: torch.Tensor, mask: torch.Tensor, maps: Mapping[str, np.ndarray], *, title: str) -> Figure:
    """One row a clip at its middle frame: the frame with the target's outline, then each network's map over it.

    rgb (N, 3, T, H, W) in [0, 1], mask (N, T, H, W), maps (N, T, H, W), each clip scaled to a maximum of 1.
    """
    rows, middle = len(rgb), rgb.shape[2] // 2
    figure, axes = plt.subplots(rows, len(maps) + 1, figsize=(1.6 * (len(maps) + 1), 1.65 * rows), squeeze=False)
    for row in range(rows):
        frame = rgb[row, :, middle].permute(1, 2, 0).cpu().numpy()
        grey = frame.mean(-1)
        axes[row, 0].imshow(frame, interpolation="nearest")
        for axis, values in zip(axes[row, 1:], maps.values(), strict=True):
            axis.imshow(grey, cmap="gray", interpolation="nearest", alpha=0.5)
            heat = np.asarray(values[row, middle], dtype=np.float32)
            axis.imshow(heat, cmap="magma", alpha=0.75, interpolation="nearest", vmin=0)
        for axis in axes[row]:
            axis.contour(mask[row, middle].cpu().numpy(), levels=[0.5], colors="cyan", linewidths=0.8)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, name in zip(axes[0], ["clip", *maps], strict=True):
        axis.set_title(label(name), fontsize=9)
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def examples(table: pd.DataFrame, programs: Sequence[str] = ("right", "clockwise", "expand")) -> list[int]:
    """The first clip of each program in a table of clips, or the first clips where none has one."""
    found = table[table["program"].isin(programs)].drop_duplicates("program").index
    return list(found) or list(table.index[: len(programs)])


def decoded(results: str | Path, arms: Sequence[str], *, columns: int = 3) -> dict[str, Any] | None:
    """Flow decoded from the networks of the first examined seed: its `endpoint`, and as `panels` what `filmstrips`
    draws, at `columns` of the frames it was kept at; None where no record has any.
    """
    found = [r for r in records.read_all(results, ["probe"]) if r.arm in arms and r.arrays]
    found = sorted((r for r in found if r.seed == min(r.seed for r in found)), key=lambda r: arms.index(r.arm))
    if not found:
        return None
    arrays = {r.arm: records.read_arrays(results, r) for r in found}
    config, first = make(ClipConfig, found[0].params), arrays[found[0].arm]
    kept = np.linspace(0, len(first["frames"]) - 1, min(columns, len(first["frames"]))).round().astype(int)
    moments = first["frames"][kept]
    clips = render(config, "iid", range(len(first["dense"])))
    rows = examples(clips.table)
    panels = {
        "rgb": clips.rgb[rows][:, :, moments],
        "truth": clips.flow[rows][:, :, moments],
        "mask": clips.mask[rows][:, moments],
        "decoded": {arm: a["dense"][rows][:, :, kept].astype(np.float32) for arm, a in arrays.items()},
        "titles": list(clips.table["program"][rows]),
        "moments": moments.tolist(),
        "bound": 2 * config.amplitude,
    }
    return {"endpoint": found[0].params["endpoint"], "panels": panels}


@styled
def filmstrips(
    rgb: torch.Tensor,
    truth: torch.Tensor,
    mask: torch.Tensor,
    decoded: Mapping[str, np.ndarray],
    *,
    titles: Sequence[str],
    moments: Sequence[int],
    bound: float,
) -> Figure:
    """Flow decoded from networks beside the true flow: clips abreast, each with its frames as columns; rows are the
    frames, the true flow and each network's (`decoded` maps arm to flow); below, the wheel of the colours.

    rgb (N, 3, K, H, W) in [0, 1]; truth and each decoded (N, 2, K, H, W) in pixels a frame, coloured in full at
    `bound`; mask (N, K, H, W) of the target. titles: one a clip. moments: which frame of the clip each of the K is. In
    a network's row stands the mean end-point error on the target over the clip's K frames, in pixels.
    """
    clips, frames = rgb.shape[0], rgb.shape[2]
    rows = {"frame": rgb, "true flow": truth} | {label(arm): torch.as_tensor(flow) for arm, flow in decoded.items()}
    side, gap = 0.6, 0.25
    columns = ([1] * frames + [gap]) * (clips - 1) + [1] * frames
    heights = [*[1] * len(rows), 1.6]
    width, height = side * sum(columns), side * sum(heights)
    whole = (width + 1.3, height + 0.5)
    figure = plt.figure(figsize=whole)
    grid = GridSpec(
        len(heights), len(columns), figure=figure, wspace=0.05, hspace=0.05,
        width_ratios=columns, height_ratios=heights, left=1.25 / whole[0], right=1 - 0.05 / whole[0],
        top=1 - 0.45 / whole[1], bottom=0.05 / whole[1],
    )  # fmt: skip
    for row, (name, values) in enumerate(rows.items()):
        for clip in range(clips):
            wrong = endpoint_error(values[clip][None].float(), truth[clip][None])[0] if values.shape[1] == 2 else None
            for k in range(frames):
                axis = figure.add_subplot(grid[row, clip * (frames + 1) + k])
                image = values[clip, :, k].float()
                image = image if wrong is None else colours(image[None], bound=bound)[0]
                axis.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if row == 0:
                    axis.set_title(f"{moments[k]}", fontsize=8, pad=2)
                if clip == 0 and k == 0:
                    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
                if row == 0 and k == frames // 2:
                    axis.annotate(titles[clip], (0.5, 1.35), xycoords="axes fraction", ha="center", fontsize=10)
                if row > 1 and k == 0 and mask[clip].any():
                    text = f"{wrong[mask[clip]].mean():.2f}"
                    box = {"facecolor": "white", "alpha": 0.8, "pad": 1, "lw": 0}
                    axis.text(0.04, 0.06, text, transform=axis.transAxes, fontsize=7, bbox=box)
    _legend(figure.add_subplot(grid[-1, :]), bound)
    return figure


def wheel(*, bound: float, pixels: int = 101) -> np.ndarray:
    """The colours of flows up to `bound` pixels (P, P, 3), uint8, white beyond: right of the middle is to the right."""
    across = torch.linspace(-bound, bound, pixels)
    flow = torch.stack(torch.meshgrid(across, across, indexing="xy"))
    image = colours(flow[None], bound=bound)[0].permute(1, 2, 0).clone()
    image[torch.linalg.vector_norm(flow, dim=0) > bound] = 255
    return image.numpy()


def _legend(axis: plt.Axes, bound: float) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, f"hue: direction\nsaturation: speed, white at rest,\nfull at {bound:g} px a frame\n"
              "numbers: error on the target (px)", transform=axis.transAxes, va="center", fontsize=8)  # fmt: skip
    inset = axis.inset_axes((0.2, 0.0, 0.28, 0.95))
    inset.imshow(wheel(bound=bound))
    inset.set_axis_off()


if __name__ == "__main__":
    # The README's picture: a clip of every second class.
    picture = clips(render(ClipConfig(frames=16, size=64, camera=0.5), "iid", range(0, len(CLASSES), 2)))
    picture.savefig("book/_static/clips.png", dpi=90, bbox_inches="tight")
