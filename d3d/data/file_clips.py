"""Clips of video files, decoded by worker processes as they are needed.

    clips = FileClips(table=table, labels=labels, view=ViewSpec(frames=64, size=224, fps=25, short_side=256, bound=20))
    requests = [([0, 1], (seed, epoch))]                      # rows of the table and the seeds of their random views
    for batch in clips.batches(requests, ("rgb", "flow")): ...

Training views are random crops in space and time, half of them mirrored; test views are spaced evenly in time and along
the long side.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from d3d.data.clips import Batch, BatchRequest
from d3d.data.workers import Failure, begin, failure, pack, read_in_workers, track_progress, unpack
from d3d.flow.cache import STEPS, ZERO, FlowSpec, read_fields
from d3d.video.decode import VideoError, looped, read_frames, resize

T = TypeVar("T", bound=Sequence)
# Row of the table, seeds of its random view (empty for a test view), index of its test clip.
ViewKey = tuple[int, tuple[int, ...], int]


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
    """

    frames: int
    size: int
    fps: float
    short_side: int
    bound: float
    clips: int = 1
    crops: int = 1

    @property
    def flow(self) -> FlowSpec:
        return FlowSpec(fps=self.fps, short_side=self.short_side, bound=self.bound)


@dataclass(frozen=True, kw_only=True)
class FileClips:
    """The clips of one split, stored in video files.

    Attributes:
        table: one row per clip with path, label, start and end in seconds, and seconds, the duration of the whole file;
            for the flow stream also flow, the path of its flow fields.
        labels: int64 (N,), on the device of the batches.
        view: how views are cut.
        damaged: "skip" leaves out unreadable files and adds them to `refused`; "raise" raises VideoError.
        workers: number of processes that decode; 0: this process decodes.
        refused: maps the path of each unreadable file to the reason; grows while clips are read.
    """

    table: pd.DataFrame
    labels: Tensor
    view: ViewSpec
    damaged: str = "skip"
    workers: int = 1
    refused: dict[str, str] = field(default_factory=dict)
    augmented = True  # every epoch sees new random views

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of a view."""
        return self.view.frames, self.view.size, self.view.size

    @property
    def groups(self) -> np.ndarray:
        """The group of each clip (N,), always "all": classes of video data sets have no groups."""
        return np.full(len(self), "all")

    def batches(self, requests: Iterable[BatchRequest], streams: Sequence[str]) -> Iterator[Batch]:
        """Yields one batch per request, without the clips that cannot be read.

        Args:
            requests: rows of the table, and the seeds of their random views; no seeds: all test views of each row.
            streams: inputs of the batches, rgb or flow.

        Yields:
            The readable views, maybe none; `index` repeats the row of a clip for each of its views.

        Raises:
            VideoError: a file cannot be read and `damaged` is "raise".
            ChildProcessError: a worker died; names the file that it was reading.
        """
        requests = list(requests)
        decoded = self._read(self._view_keys(requests), streams)
        for request in requests:
            readable: list[tuple[int, dict[str, Tensor]]] = []
            for _ in self._view_keys([request]):
                row, views_or_reason = next(decoded)
                if isinstance(views_or_reason, str):
                    if self.damaged == "raise":
                        raise VideoError(views_or_reason)
                    self.refused[self.table["path"].iat[row]] = views_or_reason
                else:
                    readable.append((row, views_or_reason))
            yield self._batch(readable, streams)

    def _view_keys(self, requests: Iterable[BatchRequest]) -> Iterator[ViewKey]:
        for rows, seeds in requests:
            for row in rows:
                for test_clip in range(1 if seeds else self.view.clips):
                    yield int(row), seeds, test_clip

    def _batch(self, readable: list[tuple[int, dict[str, Tensor]]], streams: Sequence[str]) -> Batch:
        device = self.labels.device
        repeated_rows = [row for row, views in readable for _ in range(len(views[streams[0]]))]
        index = torch.tensor(repeated_rows, dtype=torch.long, device=device)
        inputs = {}
        for stream in streams if readable else ():
            # Channels innermost in memory, as files store them and as the network reads them.
            views_of_clips = [views[stream] for _, views in readable]
            stacked = torch.empty(len(index), *views_of_clips[0].shape[1:], dtype=torch.uint8, device=device)
            slots = stacked.split([len(views) for views in views_of_clips])
            for slot, views in zip(slots, views_of_clips, strict=True):
                slot.copy_(views)
            # Flow is stored as ZERO + STEPS * flow / bound.
            x = stacked.float()
            x = x.div_(255) if stream == "rgb" else x.sub_(ZERO).div_(STEPS)
            inputs[stream] = x.permute(0, 4, 1, 2, 3)
        return Batch(index, self.labels[index], inputs)

    def _read(self, keys: Iterator[ViewKey], streams: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor] | str]]:
        """Yields, per key, its row and either its views by stream or why the file cannot be read."""
        columns = [c for c in ("path", "flow", "start", "end", "seconds") if c in self.table]
        in_progress = track_progress(self.workers)
        reader = _Reader({c: self.table[c].to_numpy() for c in columns}, self.view, tuple(streams), in_progress)
        results = read_in_workers(reader, keys, self.workers, in_progress, self.table["path"].to_list())
        for row, views_or_reason in results:
            yield row, views_or_reason if isinstance(views_or_reason, str) else unpack(views_or_reason)


class _Reader(Dataset):
    """Decodes the views of a row; each worker has a copy and writes its process id and current row to `in_progress`."""

    def __init__(
        self, columns: dict[str, np.ndarray], view: ViewSpec, streams: tuple[str, ...], in_progress: Tensor
    ) -> None:
        self.columns, self.view, self.streams, self.in_progress = columns, view, streams, in_progress

    def __getitem__(self, key: ViewKey) -> tuple[int, dict[str, Tensor | np.ndarray] | str | Failure]:
        row, seeds, test_clip = key
        begin(self.in_progress, row)
        try:
            return row, pack(self._views(row, seeds, test_clip))
        except VideoError as error:
            return row, str(error)
        except Exception:
            return row, failure(self.columns["path"][row])

    def _views(self, row: int, seeds: tuple[int, ...], test_clip: int) -> dict[str, Tensor]:
        """Returns V crops by stream, uint8 (V, T, H, W, C), with the same frames and pixels in each stream."""
        view, clip = self.view, {name: values[row] for name, values in self.columns.items()}
        rng = np.random.default_rng((*seeds, row)) if seeds else None
        end = np.nanmin([clip["end"], clip["seconds"]])
        # In both streams frames are counted at `fps` from the start of the file, as in the flow cache.
        offset = round(clip["start"] * view.fps)
        length = max(1, int(end * view.fps + 1e-3) - offset)
        last_start = max(0, length - view.frames)
        if rng is not None:
            first = int(rng.integers(last_start + 1))
        else:
            first = last_start // 2 if view.clips == 1 else round(last_start * test_clip / (view.clips - 1))
        count = min(length, view.frames)
        streams: dict[str, Tensor] = {}
        if "rgb" in self.streams:
            frames = _read_window(
                lambda t: read_frames(clip["path"], frames=count, fps=view.fps, start=(offset + t) / view.fps),
                first, count,
            )  # fmt: skip
            streams["rgb"] = looped(resize(frames, view.short_side), view.frames).permute(0, 2, 3, 1)
        if "flow" in self.streams:
            fields = _read_window(
                lambda t: read_fields(clip["flow"], first=offset + t, count=count - 1, spec=view.flow),
                first,
                count - 1,
            )
            if not len(fields):
                raise VideoError(
                    f"{clip['path']} has fewer than two frames from {offset / view.fps:g} s on at {view.fps:g} fps; "
                    "flow needs two: use a higher fps or leave the clip out"
                )
            streams["flow"] = torch.from_numpy(_looped_fields(fields, view.frames)).permute(0, 2, 3, 1)
        height, width = next(iter(streams.values())).shape[1:3]
        mirrored = rng is not None and rng.random() < 0.5
        corners = _crop_corners(height, width, view, rng)
        return {stream: _crop(x, corners, view.size, mirrored, stream) for stream, x in streams.items()}


def _read_window(read: Callable[[int], T], first: int, count: int) -> T:
    """Reads `count` items from `first`, or the last `count` where the video is shorter than its header says."""
    items = read(first)
    return items if len(items) >= count or first == 0 else read(max(0, first - (count - len(items))))


def _looped_fields(fields: np.ndarray, frames: int) -> np.ndarray:
    """Loops the F fields (F, 2, H, W) of F + 1 frames as `looped` loops the frames: (frames, 2, H, W).

    Where the next frame is not part of the view, the previous field is repeated, so that the flow stream sees no frame
    that the RGB stream does not see.
    """
    index = np.minimum(np.arange(frames) % (len(fields) + 1), len(fields) - 1)
    if frames > 1:
        index[-1] = index[-2]
    return fields[index]


def _crop_corners(height: int, width: int, view: ViewSpec, rng: np.random.Generator | None) -> list[tuple[int, int]]:
    """Returns the top left corners (y, x) of the crops."""
    max_y, max_x = height - view.size, width - view.size
    if rng is not None:
        return [(int(rng.integers(max_y + 1)), int(rng.integers(max_x + 1)))]
    if view.crops == 1:
        return [(round(max_y / 2), round(max_x / 2))]
    fractions = np.linspace(0, 1, view.crops)
    if width >= height:
        return [(round(max_y / 2), round(max_x * fraction)) for fraction in fractions]
    return [(round(max_y * fraction), round(max_x / 2)) for fraction in fractions]


def _crop(x: Tensor, corners: list[tuple[int, int]], size: int, mirrored: bool, stream: str) -> Tensor:
    """Crops frames (T, H, W, C) to views (V, T, size, size, C); mirroring also negates the x component of flow."""
    views = torch.stack([x[:, top : top + size, left : left + size] for top, left in corners])
    if mirrored:
        views = views.flip(3)
        if stream == "flow":
            views[..., 0] = 2 * ZERO - views[..., 0].short()
    return views
