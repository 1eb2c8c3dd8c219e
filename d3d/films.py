"""Looping videos of clips, boxes and attribution maps, as HTML figures for pages of the book."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch

from d3d.data.scenes import RenderedScenes, key_frame, render_scenes
from d3d.data.sprite_classes import CLASSES
from d3d.data.sprites import RenderedClips, render
from d3d.flow.fields import colours
from d3d.report.labels import label
from d3d.study import records
from d3d.study.parameters import ClipConfig
from d3d.study.schema import make

FILM_FPS, SECONDS_STILL = 8, 2
PANEL, NAME = 320, 20  # screen pixels of a scene's side, about, and of the height of a name
MAP_PANEL = 128  # screen pixels of the side of a clip beside its maps, about
# Of boxes: the truth, what is right, what is wrong; and of their labels' text.
INKS = {None: "white", True: "#56b4e9", False: "#d55e00"}
TEXT_INKS = {None: "black", True: "black", False: "white"}


def clip_html(rendered: RenderedClips, row: int, *, zoom: int = 4, bound: float = 3.0) -> str:
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


def attribution_films(results: str | Path, arms: Sequence[str]) -> list[str]:
    """Returns HTML figures with looping videos of clips and the attribution maps of networks, one for each clip.

    From the left: the clip, then each network's maps over its frames in grey, the brighter the more the decision
    depends on a pixel: above integrated gradients from the clip without motion, below Grad-CAM. The target's outline is
    cyan. `d3d.probing.attribution.choose_shown` chose the clips.

    Args:
        results: folder or archive of the records.
        arms: the networks, of the first seed that has records of any; those without maps are left out.
    """
    runs = records.of_first_seed(results, "attribution", arms)
    arrays = {r.arm: x for r in runs if r.arrays and "shown/rows" in (x := records.read_arrays(results, r))}
    if not arrays:
        return []
    rows = next(iter(arrays.values()))["shown/rows"]
    rendered = render(make(ClipConfig, runs[0].params), "iid", rows.tolist())
    return [_attribution_film(rendered, k, arrays) for k in range(len(rows))]


def _attribution_film(rendered: RenderedClips, k: int, arrays: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    frames, mask = rendered.rgb[k].permute(1, 2, 3, 0).cpu().numpy(), rendered.mask[k].cpu().numpy()
    inner = mask.copy()
    for axis, step in ((1, 1), (1, -1), (2, 1), (2, -1)):
        inner &= np.roll(mask, step, axis)  # the frame is a torus
    outline, side = mask & ~inner, frames.shape[1]
    zoom, gap = max(2, round(MAP_PANEL / side)), np.ones((len(frames), side, 2, 3))
    films = []
    for method in ("motion_gradients", "grad_cam"):
        panels = [frames] + [_with_heat(frames, x[f"shown/{method}"][k] / 255, outline) for x in arrays.values()]
        films.append(np.concatenate([part for panel in panels for part in (gap, panel)][1:], 2))
    film = np.concatenate([films[0], np.ones_like(films[0][:, :2]), films[1]], 1)
    film = (255 * film).round().astype(np.uint8).repeat(zoom, 1).repeat(zoom, 2)
    answers = [f"{label(arm)} {'✓' if x['shown/right'][k] else '✗'}" for arm, x in arrays.items()]
    name = rendered.table["class"].iloc[k]
    about = f"A clip of the class {name}, then attribution maps of {', '.join(map(label, arrays))}"
    return _film_html(film, about, f"Class {name}. From the left: the clip, {', '.join(answers)}")


def _with_heat(frames: np.ndarray, heat: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) in grey under a map (T, H, W) in [0, 1], with the outline of the target, bool (T, H, W)."""
    # Few pixels come near the maximum; the root shows the others too.
    strength = np.sqrt(heat)[..., None]
    grey = np.repeat(0.6 * frames.mean(-1, keepdims=True), 3, -1)
    drawn = (1 - strength) * grey + strength * matplotlib.colormaps["magma"](np.sqrt(heat))[..., :3]
    drawn[outline] = matplotlib.colors.to_rgb("cyan")
    return drawn
