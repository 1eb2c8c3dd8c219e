"""Draws clips, flow fields and attribution maps; d3d.report.plots draws tables."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from d3d.data.scenes import RenderedScenes, key_frame, render_scenes
from d3d.data.sprite_classes import CLASSES
from d3d.data.sprites import RenderedClips, render
from d3d.flow.fields import colours, endpoint_error
from d3d.report.labels import label
from d3d.report.plots import styled
from d3d.study import records
from d3d.study.parameters import ClipConfig
from d3d.study.schema import make

FILM_FPS, SECONDS_STILL = 8, 2
PANEL, NAME = 320, 20  # screen pixels of a scene's side, about, and of the height of a name
# Of boxes: the truth, what is right, what is wrong; and of their labels' text.
INKS = {None: "white", True: "#56b4e9", False: "#d55e00"}
TEXT_INKS = {None: "black", True: "black", False: "white"}


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


def video_html(rendered: RenderedClips, row: int, *, zoom: int = 4, bound: float = 3.0) -> str:
    """Returns an HTML figure with a looping video of one clip: frames, exact flow and target mask side by side.

    The video is embedded. In the book it starts by itself (book/_static/book.js), but not for readers who ask for
    reduced motion.

    Args:
        rendered: clips.
        row: which of them.
        zoom: screen pixels per pixel.
        bound: speed in pixels per frame that is drawn in full colour.
    """
    rgb = (rendered.rgb[row].permute(1, 2, 3, 0) * 255).round().byte()
    flow = colours(rendered.flow[row].transpose(0, 1), bound=bound).permute(0, 2, 3, 1)
    mask = rendered.mask[row][..., None].expand_as(rgb).byte() * 255
    frames = torch.cat([panel.cpu() for panel in (rgb, flow, mask)], 2)
    frames = frames.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2).numpy()
    name = rendered.table["class"].iloc[row]
    return _film_html(frames, f"A clip of the class {name}: frames, exact flow, target", name)


class DrawnBox(NamedTuple):
    """A box with an action.

    Attributes:
        corners: x1, y1, x2, y2, fractions of the frame.
        action: name of the action.
        is_right: whether it is a true positive; None: it is the truth.
    """

    corners: tuple[float, ...]
    action: str
    is_right: bool | None = None


def detected_scenes(results: str | Path, arms: Sequence[str], *, count: int = 4) -> dict[str, Any] | None:
    """Chooses test scenes, and reads what detectors see in the boxes of the person detector there.

    Of a scene, as many boxes are drawn as it has actors: those whose most probable action has the highest scores. The
    scenes are the first ones in which all of these boxes of the last arm are right, and as many of the first in which
    one is wrong.

    Args:
        results: folder or archive of the records.
        arms: whose detections are drawn; of the first seed that has records of any.
        count: number of scenes.

    Returns:
        `scenes` and `panels`, the arguments of `scene_html`, the latter a mapping for each of the scenes; None where no
        record holds detections.
    """
    runs = [
        r for r in records.read_all(results, ["detect"]) if r.arm in arms and r.arrays and "drawn_scenes" in r.params
    ]
    runs = sorted((r for r in runs if r.seed == min(r.seed for r in runs)), key=lambda r: arms.index(r.arm))
    if not runs or not runs[0].params["drawn_scenes"]:
        return None
    scenes = render_scenes(make(ClipConfig, runs[0].params), "iid", range(runs[0].params["drawn_scenes"]))
    panels = []
    arrays = {r.arm: records.read_arrays(results, r) for r in runs}
    for scene, actors in scenes.boxes.groupby("scene"):
        rows = actors[["x1", "y1", "x2", "y2", "class"]].itertuples(index=False)
        true_boxes = [DrawnBox(tuple(corners), action) for *corners, action in rows]
        panels.append({"truth": true_boxes})
        for arm, values in arrays.items():
            own = values["detected/scene"] == scene
            panels[-1][arm] = _drawn(values["detected/corners"][own], values["detected/scores"][own], true_boxes)
    all_right = [all(box.is_right for box in panel[runs[-1].arm]) for panel in panels]
    right, wrong = ([k for k, value in enumerate(all_right) if value == kind] for kind in (True, False))
    right = right[: max(count // 2, count - len(wrong))]
    chosen = [*right, *wrong[: count - len(right)]]
    return {"scenes": scenes, "panels": {k: panels[k] for k in chosen}}


def _drawn(corners: np.ndarray, scores: np.ndarray, truth: Sequence[DrawnBox]) -> list[DrawnBox]:
    """The boxes of one scene that are drawn, as `detected_scenes` chooses them, by descending score."""
    from torchvision.ops import box_iou

    order = np.argsort(-scores.max(1).astype(float), kind="stable")[: len(truth)]
    overlaps = box_iou(torch.from_numpy(corners[order]), torch.tensor([box.corners for box in truth]))
    boxes, free = [], set(range(len(truth)))
    for i, row in zip(order, overlaps.tolist(), strict=True):
        action = CLASSES[int(scores[i].argmax())].name
        hits = [k for k in free if truth[k].action == action and row[k] >= 0.5]
        free -= set(hits[:1])
        boxes.append(DrawnBox(tuple(corners[i].tolist()), action, bool(hits)))
    return boxes


def scene_html(scenes: RenderedScenes, row: int, panels: Mapping[str, Sequence[DrawnBox]]) -> str:
    """Returns an HTML figure with a looping video of one scene, once per panel, that stops at the key frame.

    There the boxes appear: white the truth, blue what is right, red, with a cross, what is wrong.

    Args:
        scenes: rendered scenes.
        row: which of them.
        panels: `truth` or an arm, to its boxes.
    """
    frames = (scenes.rgb[row].transpose(0, 1) * 255).round().byte().cpu()
    zoom = max(2, round(PANEL / frames.shape[-1]))
    frames = frames.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    gap = torch.full((3, frames.shape[2], 2 * zoom), 255, dtype=torch.uint8)

    def beside(images: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([part for image in images for part in (gap, image)][1:], 2)

    film, middle = [beside([frame] * len(panels)) for frame in frames], key_frame(len(frames))
    still = beside([_with_boxes(frames[middle], boxes) for boxes in panels.values()])
    film[middle + 1 : middle + 1] = [still] * SECONDS_STILL * FILM_FPS
    actors, arms = len(panels["truth"]), [arm for arm in panels if arm != "truth"]
    counts = [f"{label(arm)} {sum(bool(box.is_right) for box in panels[arm])} of {actors}" for arm in arms]
    about = f"A scene of {actors} actors: true boxes and actions, and those of {' and '.join(map(label, arms))}"
    return _film_html(torch.stack(film).permute(0, 2, 3, 1).numpy(), about, f"Right: {', '.join(counts)}")


def _with_boxes(frame: torch.Tensor, boxes: Sequence[DrawnBox]) -> torch.Tensor:
    """Draws boxes, and above each the name of its action, or in it at the upper edge, on a frame uint8 (3, H, W)."""
    from torchvision.utils import draw_bounding_boxes

    if not boxes:
        return frame
    side, inks = frame.shape[-1], [INKS[box.is_right] for box in boxes]
    names = [f"{'✗ ' if box.is_right is False else ''}{box.action}" for box in boxes]
    corners = torch.tensor([box.corners for box in boxes]) * side
    frame = draw_bounding_boxes(frame, corners, colors=inks, width=3)
    places = corners.clone()
    for place, name in zip(places, names, strict=True):
        place[0] = min(place[0], max(0, side - 8 * len(name) - 4))  # the name ends within the frame
        place[1] = place[1] - NAME if place[1] >= NAME else place[1]
        place[2:] = side - 1
    return draw_bounding_boxes(
        frame, places, names, inks, width=0, font=str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")),
        font_size=13, fill_labels=True, label_colors=[TEXT_INKS[box.is_right] for box in boxes],
    )  # fmt: skip


def _film_html(frames: np.ndarray, about: str, caption: str) -> str:
    """A looping video, uint8 (T, H, W, 3), embedded in an HTML figure; in the book it starts by itself (book.js)."""
    # Imported here, so that rendering sprites does not need PyAV.
    from d3d.video.decode import encode

    video = b64encode(encode(frames, fps=FILM_FPS)).decode()
    return (
        f'<figure class="film"><video controls loop muted playsinline preload="metadata" width="{frames.shape[2]}" '
        f'height="{frames.shape[1]}" aria-label="{about}" '
        f'src="data:video/mp4;base64,{video}"></video><figcaption>{caption}</figcaption></figure>'
    )


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


@styled
def attributions(rgb: torch.Tensor, mask: torch.Tensor, maps: Mapping[str, np.ndarray], *, title: str) -> Figure:
    """Draws one row per clip: its middle frame with the target's outline, then each network's map over that frame.

    Args:
        rgb: (N, 3, T, H, W) in [0, 1].
        mask: the target's mask, bool (N, T, H, W).
        maps: arm to attributions (N, T, H, W), each clip scaled to a maximum of 1.
        title: of the figure.
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
