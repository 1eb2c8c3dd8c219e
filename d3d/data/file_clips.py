"""Clips in video files, read by worker processes as they are needed.

    clips = FileClips(table=table, labels=labels, view=View(frames=64, size=224, fps=25, short_side=256, bound=20))
    for batch in clips.batches(steps, ("rgb", "flow")): ...

Training views lie anywhere in time and space, one in two mirrored; views for testing lie evenly.
"""

import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from d3d.data.clips import Batch, Step
from d3d.flow.cache import STEPS, ZERO, FlowSpec, read_fields
from d3d.video.decode import VideoError, looped, read_frames, resize

T = TypeVar("T", bound=Sequence)


@dataclass(frozen=True, kw_only=True)
class View:
    """What of a video is shown: `frames` at `fps` per second, the short side `short_side` pixels, `size` square of it.

    Training views lie anywhere, one in two mirrored. For testing, `clips` stretches evenly over the video (one: its
    middle) times `crops` squares evenly over the long side (1: the centre).
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
    """Clips of one split in files: the table has a row a video with path, label, start and end in seconds, where needed
    flow, the path of its fields, and seconds, how long the whole video is.

    damaged: "skip" leaves out what cannot be read and names it in `unread`, "raise" raises VideoError.
    """

    table: pd.DataFrame
    labels: Tensor
    view: View
    damaged: str = "skip"
    workers: int = 1
    unread: dict[str, str] = field(default_factory=dict)
    redrawn = True  # every epoch sees other views

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of a view."""
        return self.view.frames, self.view.size, self.view.size

    @property
    def groups(self) -> np.ndarray:
        """One group (N,): data sets of files divide their classes no further."""
        return np.full(len(self), "all")

    def batches(self, steps: Iterable[Step], streams: Sequence[str]) -> Iterator[Batch]:
        """A batch a step, of what of it can be read, decoded ahead by `workers` processes (0: by this one).

        Raises VideoError for what cannot where `damaged` is "raise", ChildProcessError naming the file on which a
        worker died.
        """
        steps = list(steps)
        found = self._read(self._items(steps), streams)
        for step in steps:
            kept: list[tuple[int, dict[str, Tensor]]] = []
            for _ in self._items([step]):
                row, views = next(found)
                if isinstance(views, str):
                    if self.damaged == "raise":
                        raise VideoError(views)
                    self.unread[self.table["path"].iat[row]] = views
                else:
                    kept.append((row, views))
            yield self._batch(kept, streams)

    def _items(self, steps: Iterable[Step]) -> Iterator[tuple[int, tuple[int, ...], int]]:
        """What is read one by one: a row, how it is drawn, which of its stretches."""
        for rows, draw in steps:
            for row in rows:
                for part in range(1 if draw else self.view.clips):
                    yield int(row), draw, part

    def _batch(self, kept: list[tuple[int, dict[str, Tensor]]], streams: Sequence[str]) -> Batch:
        device = self.labels.device
        repeats = [row for row, views in kept for _ in range(len(views[streams[0]]))]
        index = torch.tensor(repeats, dtype=torch.long, device=device)
        inputs = {}
        for stream in streams if kept else ():
            # Channels innermost in memory, as files have them and as the network wants them.
            found = [views[stream] for _, views in kept]
            levels = torch.empty(len(index), *found[0].shape[1:], dtype=torch.uint8, device=device)
            for place, views in zip(levels.split([len(views) for views in found]), found, strict=True):
                place.copy_(views)
            levels = levels.float()
            levels = levels.div_(255) if stream == "rgb" else levels.sub_(ZERO).div_(STEPS)
            inputs[stream] = levels.permute(0, 4, 1, 2, 3)
        return Batch(index, self.labels[index], inputs)

    def _read(self, items: Iterator, streams: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor] | str]]:
        columns = [c for c in ("path", "flow", "start", "end", "seconds") if c in self.table]
        reading = torch.full((max(1, self.workers), 2), -1).share_memory_()
        reader = _Reader({c: self.table[c].to_numpy() for c in columns}, self.view, tuple(streams), reading)
        # A server that has imported what workers need forks them: no thread or GPU of this process comes along.
        context = multiprocessing.get_context("forkserver") if self.workers else None
        if context:
            context.set_forkserver_preload(["__main__", "d3d.data.file_clips"])
            _start_server()
        loader = DataLoader(
            reader, sampler=items, batch_size=None, num_workers=self.workers, multiprocessing_context=context,
            prefetch_factor=4 if self.workers else None, generator=torch.Generator(),
        )  # fmt: skip
        try:
            yield from loader
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            if isinstance(error, RuntimeError) and not re.search("exited unexpectedly|killed", str(error)):
                raise
            alive = {child.pid for child in multiprocessing.active_children()}
            dead = [int(row) for pid, row in reading.tolist() if pid >= 0 and pid not in alive]
            paths = ", ".join(self.table["path"].iat[row] for row in dead if row >= 0)
            raise ChildProcessError(
                f"a worker process died while it read {paths or 'no file'}: convert or delete the file, or, where the "
                "machine ran out of memory, ask for fewer workers"
            ) from None


def _start_server() -> None:
    """Starts what forks the workers with SIGINT and SIGTERM blocked, which they inherit.

    Both reach all processes of a terminal or a job: workers go on, so that this one ends in order, and end with it.
    """
    resource_tracker.ensure_running()  # which would unblock them
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Reader(Dataset):
    """Reads views of rows; one such object lives in every worker, which notes in `reading` its process and its row."""

    def __init__(self, columns: dict[str, np.ndarray], view: View, streams: tuple[str, ...], reading: Tensor) -> None:
        self.columns, self.view, self.streams, self.reading = columns, view, streams, reading

    def __getitem__(self, item: tuple[int, tuple[int, ...], int]) -> tuple[int, dict[str, Tensor] | str]:
        row, draw, part = item
        if worker := get_worker_info():
            self.reading[worker.id] = torch.tensor([os.getpid(), row])
        try:
            return row, self._views(row, draw, part)
        except VideoError as error:
            return row, str(error)

    def _views(self, row: int, draw: tuple[int, ...], part: int) -> dict[str, Tensor]:
        """By stream its views, uint8 (V, T, H, W, C): the same frames and pixels of each."""
        view, column = self.view, {name: values[row] for name, values in self.columns.items()}
        rng = np.random.default_rng((*draw, row)) if draw else None
        end = np.nanmin([column["end"], column["seconds"]])
        # Both streams lie on the grid of the flow's frames.
        zero = round(column["start"] * view.fps)
        length = max(1, int(end * view.fps + 1e-3) - zero)
        free = max(0, length - view.frames)
        if rng is not None:
            first = int(rng.integers(free + 1))
        else:
            first = free // 2 if view.clips == 1 else round(free * part / (view.clips - 1))
        count = min(length, view.frames)
        found: dict[str, Tensor] = {}
        if "rgb" in self.streams:
            shown = _last_whole(
                lambda at: read_frames(column["path"], frames=count, fps=view.fps, start=(zero + at) / view.fps),
                first, count,
            )  # fmt: skip
            found["rgb"] = looped(resize(shown, view.short_side), view.frames).permute(0, 2, 3, 1)
        if "flow" in self.streams:
            fields = _last_whole(
                lambda at: read_fields(column["flow"], first=zero + at, count=count - 1, spec=view.flow),
                first,
                count - 1,
            )
            found["flow"] = torch.from_numpy(_looped_fields(fields, view.frames)).permute(0, 2, 3, 1)
        height, width = next(iter(found.values())).shape[1:3]
        mirrored = rng is not None and rng.random() < 0.5
        corners = _corners(height, width, view, rng)
        return {stream: _cut(x, corners, view.size, mirrored, stream) for stream, x in found.items()}


def _last_whole(read: Callable[[int], T], first: int, count: int) -> T:
    """What `read` gives from `first` on; where the video proves shorter than it says, its last `count`."""
    found = read(first)
    return found if len(found) >= count or first == 0 else read(max(0, first - (count - len(found))))


def _looped_fields(fields: np.ndarray, frames: int) -> np.ndarray:
    """Fields (F, 2, H, W) of F + 1 frames as those of `frames`, looped: where the next frame is not shown, the last
    field before it is repeated, so that the temporal stream sees no frame that the spatial one lacks."""
    if not len(fields):
        raise VideoError("a clip of one frame has no flow: ask for a lower fps or leave the video out")
    at = np.minimum(np.arange(frames) % (len(fields) + 1), len(fields) - 1)
    if frames > 1:
        at[-1] = at[-2]
    return fields[at]


def _corners(height: int, width: int, view: View, rng: np.random.Generator | None) -> list[tuple[int, int]]:
    """Top left corners of the squares to cut."""
    down, right = height - view.size, width - view.size
    if rng is not None:
        return [(int(rng.integers(down + 1)), int(rng.integers(right + 1)))]
    if view.crops == 1:
        return [(round(down / 2), round(right / 2))]
    share = np.linspace(0, 1, view.crops)
    if width >= height:
        return [(round(down / 2), round(right * s)) for s in share]
    return [(round(down * s), round(right / 2)) for s in share]


def _cut(x: Tensor, corners: list[tuple[int, int]], size: int, mirrored: bool, stream: str) -> Tensor:
    """Squares of frames (T, H, W, C) as (V, T, size, size, C); a mirror turns the flow's x around too."""
    views = torch.stack([x[:, y : y + size, z : z + size] for y, z in corners])
    if mirrored:
        views = views.flip(3)
        if stream == "flow":
            views[..., 0] = 2 * ZERO - views[..., 0].short()
    return views
