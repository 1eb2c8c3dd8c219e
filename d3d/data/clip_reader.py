"""Reads views and whole clips of video files and of their flow cache, in worker processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from d3d.data.views import ViewSpec, first_frames, negate_x
from d3d.data.workers import Failure, begin, failure, pack, read_in_workers, track_progress, unpack
from d3d.flow.cache import read_fields
from d3d.messages import printable
from d3d.video.decode import VideoError, iter_frames, looped, resize
from d3d.video.repeats import find_repeats

T = TypeVar("T", bound=Sequence)


class Window(NamedTuple):
    """Views of one clip that show the same frames, or the whole clip.

    Attributes:
        row: row of the table.
        first: first frame, counted from the start of the clip.
        mirrored: whether the views are mirrored.
        corners: top left corner (y, x) of each view; None: the whole clip and whole frames.
        inputs: maps the name of each input that is read to its stream.
    """

    row: int
    first: int
    mirrored: bool
    corners: tuple[tuple[int, int], ...] | None
    inputs: dict[str, str]


# Row of a clip, and the windows that its inputs are cut from: its own, its partner's, or both.
ReadKey = tuple[int, tuple[Window, ...]]


class _Reader(Dataset):
    """Decodes windows; each worker has a copy and writes its process id and current row to `in_progress`."""

    def __init__(self, columns: dict[str, np.ndarray], view: ViewSpec, in_progress: Tensor) -> None:
        self.columns, self.view, self.in_progress = columns, view, in_progress

    def __getitem__(self, key: ReadKey) -> tuple[int, dict[str, Tensor | np.ndarray] | str | Failure]:
        row, windows = key
        inputs: dict[str, Tensor] = {}
        for window in windows:
            begin(self.in_progress, window.row)
            try:
                inputs |= self._inputs(window)
            except VideoError as error:
                return window.row, str(error)
            except Exception:
                return window.row, failure(self.columns["path"][window.row])
        return row, pack(inputs)

    def _inputs(self, window: Window) -> dict[str, Tensor]:
        """Returns V crops by input, uint8 (V, T, H, W, C), or whole frames (T, H, W, C), the same in each input."""
        clip = {name: values[window.row] for name, values in self.columns.items()}
        if window.corners is None:
            read = {"rgb": self._whole_rgb, "flow": lambda clip: self._flow(clip, 0, clip["frames"])}
            return {name: read[stream](clip) for name, stream in window.inputs.items()}
        frames = {stream: self._looped(stream, clip, window.first) for stream in set(window.inputs.values())}
        return {name: self._crop(frames[stream], window, stream) for name, stream in window.inputs.items()}

    def _looped(self, stream: str, clip: dict[str, Any], first: int) -> Tensor:
        """Returns the frames or fields of a view, uint8 (T, H, W, C)."""
        count = min(clip["frames"], self.view.frames)
        if stream == "rgb":
            return looped(self._rgb(clip, first, count), self.view.frames)
        return _looped_fields(self._flow(clip, first, count), self.view.frames)

    def _rgb(self, clip: dict[str, Any], first: int, count: int) -> Tensor:
        """Reads up to `count` frames, resized, uint8 (T, H, W, 3)."""
        # In both streams frames are counted at `fps` from the start of the file, as in the flow cache.
        view, offset = self.view, clip["offset"]

        def read(t: int) -> list[Tensor]:
            frames = iter_frames(clip["path"], fps=view.fps, start=(offset + t) / view.fps)
            return _resized(islice(frames, count), view.short_side)

        return self._of_known_size(torch.cat(_read_window(read, first, count)).permute(0, 2, 3, 1), clip)

    def _whole_rgb(self, clip: dict[str, Any]) -> Tensor:
        """Reads all frames of a clip that the view keeps, resized, uint8 (T, H, W, 3)."""
        view = self.view
        if view.repeats == "keep":
            return self._rgb(clip, 0, clip["frames"])
        # At the rate of the file, so that each of its frames is read once.
        start, stride = clip["offset"] / view.fps, max(1, round(clip["fps"] / view.fps))
        count = max(1, round(clip["frames"] / view.fps * clip["fps"]))
        images = islice(iter_frames(clip["path"], fps=clip["fps"], start=start), count)
        frames = torch.cat(_resized(images, view.short_side))
        unique = frames[~find_repeats(frames)]
        return self._of_known_size(unique[::stride][: clip["frames"]].permute(0, 2, 3, 1), clip)

    def _of_known_size(self, frames: Tensor, clip: dict[str, Any]) -> Tensor:
        if frames.shape[1:3] != (clip["height"], clip["width"]):
            raise VideoError(
                f"{printable(clip['path'])} has resized frames of {frames.shape[1]} x {frames.shape[2]} pixels, its "
                f"table says {clip['height']} x {clip['width']}: write the table again with `d3d data`"
            )
        return frames

    def _flow(self, clip: dict[str, Any], first: int, count: int) -> Tensor:
        """Reads the fields between up to `count` frames from the flow cache, uint8 (T - 1, H, W, 2)."""
        view, offset = self.view, clip["offset"]
        fields = _read_window(
            lambda t: read_fields(clip["flow"], first=offset + t, count=count - 1, spec=view.flow), first, count - 1
        )
        if not len(fields):
            raise VideoError(too_few_frames(clip["path"], offset / view.fps, view.fps))
        return torch.from_numpy(fields).permute(0, 2, 3, 1)

    def _crop(self, x: Tensor, window: Window, stream: str) -> Tensor:
        """Crops frames (T, H, W, C) to views (V, T, size, size, C); mirroring also negates the x component of flow."""
        size = self.view.size
        views = torch.stack([x[:, top : top + size, left : left + size] for top, left in window.corners])
        if window.mirrored:
            views = views.flip(3)
            if stream == "flow":
                views = negate_x(views, torch.ones(len(views), dtype=torch.bool))
        return views


def _read_window(read: Callable[[int], T], first: int, count: int) -> T:
    """Reads `count` items from `first`, or the last `count` where the video is shorter than its header says."""
    items = read(first)
    return items if len(items) >= count or first == 0 else read(max(0, first - (count - len(items))))


def too_few_frames(path: str, start: float, fps: float) -> str:
    """Says that a clip from `start` seconds on has no flow."""
    return (
        f"{printable(path)} has fewer than two frames from {start:g} s on at {fps:g} fps; flow needs two: use a higher "
        "fps or leave the clip out"
    )


def _resized(images: Iterable[np.ndarray], short_side: int) -> list[Tensor]:
    """Resizes images one by one, so that few are in memory at full size: uint8 (1, 3, H, W) each."""
    return [resize([image], short_side) for image in images]


def _looped_fields(fields: Tensor, frames: int) -> Tensor:
    """Loops the F fields (F, ...) of F + 1 frames as `looped` loops the frames: (frames, ...).

    Where the next frame is not part of the view, the previous field is repeated, so that the flow stream sees no frame
    that the RGB stream does not see.
    """
    index = torch.arange(frames).remainder(len(fields) + 1).clamp(max=len(fields) - 1)
    if frames > 1:
        index[-1] = index[-2]
    return fields[index]


def read_clips(
    table: pd.DataFrame, view: ViewSpec, sizes: np.ndarray, keys: Iterator[ReadKey], workers: int
) -> Iterator[tuple[int, dict[str, Tensor] | str]]:
    """Reads clips in worker processes.

    Args:
        table: as in `FileClips`.
        view: how views are cut.
        sizes: int64 (N, 3), frames, height and width of each clip.
        keys: what to read.
        workers: number of processes; 0: this process reads.

    Yields:
        Per key, its row and the bytes of each input; or the row whose file cannot be read, and why.

    Raises:
        ChildProcessError: a worker died; names the file that it was reading.
    """
    columns = {name: table[name].to_numpy() for name in ("path", "flow", "fps") if name in table}
    columns |= {"offset": first_frames(table, view)} | dict(zip(("frames", "height", "width"), sizes.T, strict=True))
    in_progress = track_progress(workers)
    reader = _Reader(columns, view, in_progress)
    for row, inputs in read_in_workers(reader, keys, workers, in_progress, table["path"].to_list()):
        yield row, inputs if isinstance(inputs, str) else unpack(inputs)
