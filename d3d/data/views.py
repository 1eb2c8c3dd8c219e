"""Views of videos: which frames and pixels a network sees of a clip, drawn as whole numbers before anything is read.

    spec = ViewSpec(frames=64, size=224, fps=25, short_side=256, bound=20)
    views = spec.draw(clip_sizes(table, spec), rows, seeds=(seed, twin, epoch))     # (V, 5), one line per view

Training views are random crops in space and time, half of them mirrored; test views are spaced evenly in time and along
the long side. The same numbers choose the pixels of RGB and of flow.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d3d.data.clips import ClipSet, divide
from d3d.data.draws import CounterRng
from d3d.flow.cache import STEPS, ZERO, FlowSpec
from d3d.video.decode import resized_size

# Columns of a view: row of the split's table, first frame of the clip, top left corner, whether it is mirrored.
ROW, FIRST, TOP, LEFT, MIRRORED = range(5)


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """How views are cut from a video.

    A training view is one random crop, mirrored with probability 1/2. A video is tested on clips x crops views.

    Attributes:
        frames: frames per view.
        size: height and width in pixels.
        fps: frames per second at which the video is sampled.
        short_side: pixels to which the short side of its frames is resized.
        bound: flow is clipped to ± bound pixels per frame.
        clips: number of test clips, spaced evenly in time; 1: the middle of the video.
        crops: number of square crops of each test clip, spaced evenly along the long side; 1: the centre.
        repeats: "keep" samples the frames of the file at `fps`. "drop" leaves out those that repeat the one before and
            takes every k-th of the rest, k being the file's rate divided by `fps`, rounded. Repeats come from the
            conversion of frame rates; flow is about zero there, which tells the flow stream, but hardly the RGB
            stream, what rate the source had. Dropping makes a clip's motion even, and the clip shorter.
    """

    frames: int
    size: int
    fps: float
    short_side: int
    bound: float
    clips: int = 1
    crops: int = 1
    repeats: str = "keep"

    @property
    def flow(self) -> FlowSpec:
        return FlowSpec(fps=self.fps, short_side=self.short_side, bound=self.bound)

    def draw(self, sizes: np.ndarray, rows: np.ndarray, seeds: tuple[int, ...]) -> np.ndarray:
        """Draws one random view of each row, or lists all of its test views.

        Args:
            sizes: (N, 3), frames, height and width of all clips, as `clip_sizes` returns them.
            rows: (B,), rows of the clips.
            seeds: of the random views, which depend on them and the row alone; empty: test views.

        Returns:
            int64 (V, 5), with the columns ROW, FIRST, TOP, LEFT and MIRRORED; V is B or B * clips * crops.
        """
        if not seeds:
            return self._test_views(sizes, rows)
        rng = CounterRng(f"view {seeds}", rows)
        free = self._free(sizes[rows])
        drawn = [rng.integer(name, free[:, k] + 1) for k, name in enumerate(("first", "top", "left"))]
        return np.stack([rows, *drawn, rng.integer("mirrored", 2)], 1)

    def _test_views(self, sizes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        rows = np.repeat(rows, self.clips * self.crops)
        free = self._free(sizes[rows])
        clip, crop = np.divmod(np.arange(len(rows)) % (self.clips * self.crops), self.crops)
        # One clip is the middle of the video, one crop the centre of the frame.
        first = free[:, 0] // 2 if self.clips == 1 else np.rint(free[:, 0] * clip / (self.clips - 1))
        centre = np.rint(free[:, 1:] / 2)
        along = centre if self.crops == 1 else np.rint(free[:, 1:] * (crop / (self.crops - 1))[:, None])
        wide = (free[:, 2] >= free[:, 1])[:, None]
        corners = np.where(wide == [False, True], along, centre)
        return np.column_stack([rows, first, corners, np.zeros(len(rows))]).astype(np.int64)

    def _free(self, sizes: np.ndarray) -> np.ndarray:
        """Returns how far a view can be shifted within each clip, (B, 3): frames, pixels down, pixels to the right."""
        return np.maximum(sizes - [self.frames, self.size, self.size], 0)


def clip_sizes(table: pd.DataFrame, view: ViewSpec) -> np.ndarray:
    """Returns the frames, height and width of each clip as a view sees them, int64 (N, 3).

    Args:
        table: one row per clip with start and end in seconds, seconds of the whole file, and height and width of its
            frames in pixels.
        view: its rate and short side.
    """
    end = np.fmin(table["end"].astype(float), table["seconds"].astype(float)).to_numpy()
    frames = np.maximum(1, (end * view.fps + 1e-3).astype(np.int64) - first_frames(table, view))
    heights_widths = zip(table["height"], table["width"], strict=True)
    sizes = np.array([resized_size(int(h), int(w), view.short_side) for h, w in heights_widths], dtype=np.int64)
    return np.column_stack([frames, sizes.reshape(-1, 2)])


def first_frames(table: pd.DataFrame, view: ViewSpec) -> np.ndarray:
    """Returns the first frame of each clip (N,), counted at `fps` from the start of its file, as in the flow cache."""
    return np.rint(table["start"].to_numpy(dtype=float) * view.fps).astype(np.int64)


class VideoClips(ClipSet):
    """What sets of clips of video files have in common, in memory or not.

    Attributes:
        view: how views are cut.
        sizes: int64 (N, 3), frames, height and width of each clip.
    """

    view: ViewSpec
    sizes: np.ndarray
    augmented = True

    @property
    def size(self) -> tuple[int, int, int]:
        return self.view.frames, self.view.size, self.view.size

    @property
    def test_views(self) -> int:
        return self.view.clips * self.view.crops

    @property
    def groups(self) -> np.ndarray:
        """Whether the camera of each clip is still or moving (N,), where the data set says so; else "all"."""
        return self.table["camera"].to_numpy(dtype=str) if "camera" in self.table else np.full(len(self), "all")

    def _draw(self, rows: np.ndarray, seeds: tuple[int, ...]) -> np.ndarray:
        return self.view.draw(self.sizes, rows, seeds)


def negate_x(levels: Tensor, mirrored: Tensor) -> Tensor:
    """Negates the x component of mirrored views of quantised flow, uint8 (V, T, H, W, 2); `mirrored` is bool (V,)."""
    negated = mirrored[:, None] & (torch.arange(2, device=levels.device) == 0)
    # Modulo 256 the negative of a level is the level of the negated flow.
    return torch.where(negated[:, None, None, None], levels.neg(), levels)


def to_input(levels: Tensor, stream: str) -> Tensor:
    """Converts bytes (V, T, H, W, C) to network inputs, float32 (V, C, T, H, W), equal to the bit on every device.

    Channels stay innermost in memory, as files store them and as the network reads them.
    """
    zero, steps = (0, 255) if stream == "rgb" else (ZERO, STEPS)
    return divide(levels.float().sub_(zero), steps).permute(0, 4, 1, 2, 3)
