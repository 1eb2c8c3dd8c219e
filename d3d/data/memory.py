"""Decodes a set of videos once into the memory of a device, and computes its TV-L1 flow there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d3d.data.clip_reader import Window, read_clips, too_few_frames
from d3d.data.memory_clips import MemoryClips
from d3d.data.views import ViewSpec, clip_sizes, first_frames
from d3d.flow.cache import quantise
from d3d.flow.estimate import CHUNK_PIXELS, tvl1
from d3d.progress import Progress
from d3d.study.machine import free_bytes

CHANNELS = {"rgb": 3, "flow": 2}
# A set is kept without being asked if it leaves this fraction of the free memory to the network.
LEFT_FREE = 0.5


class PixelStore(NamedTuple):
    """One stream of many clips, of any length and size.

    Attributes:
        pixels: uint8 (P, C), clip by clip, frame by frame and line by line.
        starts: int64 (N,), the first pixel of each clip.
    """

    pixels: Tensor
    starts: np.ndarray

    @classmethod
    def empty(cls, stream: str, sizes: np.ndarray, kept: np.ndarray, device: torch.device | str) -> "PixelStore":
        """Takes memory for the clips of `kept` (N,), bool; the others have no pixels."""
        ends = np.cumsum(sizes.prod(1) * kept)
        pixels = torch.empty(int(ends[-1]), CHANNELS[stream], dtype=torch.uint8, device=device)
        return cls(pixels, ends - sizes.prod(1) * kept)

    def clip(self, row: int, size: Sequence[int]) -> Tensor:
        """Returns the frames of a clip, (T, H, W, C), in this memory; `size` is T, H and W."""
        start = int(self.starts[row])
        return self.pixels[start : start + int(np.prod(size))].view(*map(int, size), -1)


def required_bytes(sizes: np.ndarray, flow_rows: np.ndarray) -> int:
    """Returns the bytes that clips take in memory.

    Args:
        sizes: (N, 3), frames, height and width of each clip.
        flow_rows: bool (N,), the clips whose flow is kept too.
    """
    pixels = sizes.prod(1)
    return int(CHANNELS["rgb"] * pixels.sum() + CHANNELS["flow"] * pixels[flow_rows].sum())


def keep_in_memory(
    memory: str, num_clips: int, required: int, device: torch.device | str, report: Callable[[str], None]
) -> bool:
    """Decides whether a set is kept in memory, and reports it before any memory is taken.

    Args:
        memory: yes, no, or auto: if the set takes at most half of the free memory.
        num_clips: number of its clips.
        required: bytes that it takes.
        device: the device that would keep it.
        report: receives one line.

    Raises:
        ValueError: memory is yes and the device has too little.
    """
    if memory == "no":
        return False
    free = free_bytes(device)
    sizes = f"{num_clips} clips take {required / 1e9:.2f} GB, {device} has {free / 1e9:.2f} GB free"
    if memory == "yes" and required > free:
        raise ValueError(
            f"memory 'yes': {sizes}: use a smaller short_side or fps, or memory 'no', which decodes in every epoch"
        )
    if memory == "auto" and required > LEFT_FREE * free:
        report(f"{sizes}: too little to keep them, so they are decoded in every epoch")
        return False
    report(f"{sizes}: they are decoded once and kept")
    return True


@dataclass(frozen=True, kw_only=True)
class VideoMemory:
    """Videos in the memory of a device.

    Attributes:
        sizes: int64 (N, 3), frames that could be read, height and width of each clip of a table.
        stores: the pixels of each stream.
        refused: maps each row that could not be read to the reason.
    """

    sizes: np.ndarray
    stores: dict[str, PixelStore]
    refused: dict[int, str] = field(default_factory=dict)

    def clips(self, rows: np.ndarray, table: pd.DataFrame, labels: Tensor, view: ViewSpec) -> MemoryClips:
        """Returns the clips of a split, which are `rows` (B,) of the table that was read.

        Args:
            rows: their numbers in the table that was read.
            table: their lines of it.
            labels: their labels, on the device.
            view: how views are cut.
        """
        return MemoryClips(
            table=table,
            labels=labels,
            view=view,
            sizes=self.sizes[rows],
            sizes_on_device=torch.from_numpy(self.sizes[rows]).to(labels.device),
            pixels={name: store.pixels for name, store in self.stores.items()},
            starts={
                name: torch.from_numpy(store.starts[rows]).to(labels.device) for name, store in self.stores.items()
            },
        )


def decode_all(
    table: pd.DataFrame,
    view: ViewSpec,
    *,
    device: torch.device | str,
    workers: int,
    report: Callable[[str], None] = print,
) -> VideoMemory:
    """Decodes the RGB frames of every clip of a table into the memory of a device.

    Args:
        table: as in `FileClips`.
        view: rate and short side of the frames.
        device: where the frames are kept.
        workers: number of processes that decode; 0: this process decodes.
        report: receives lines about the progress.
    """
    sizes = clip_sizes(table, view)
    store = PixelStore.empty("rgb", sizes, np.ones(len(sizes), dtype=bool), device)
    refused = _fill(store, "rgb", table, view, sizes, np.arange(len(table)), workers, report)
    return VideoMemory(sizes=sizes, stores={"rgb": store}, refused=refused)


def add_flow(
    memory: VideoMemory,
    rows: np.ndarray,
    table: pd.DataFrame,
    view: ViewSpec,
    *,
    workers: int,
    report: Callable[[str], None] = print,
) -> VideoMemory:
    """Adds the flow of some clips: from the cache if the table has a column `flow`, else TV-L1 computed on the device.

    Args:
        memory: the decoded clips.
        rows: (B,), the clips whose flow is added, if they could be decoded.
        table: the table that was decoded.
        view: rate and short side of the frames, and the bound of the flow.
        workers: number of processes that read; 0: this process reads.
        report: receives lines about the progress.

    Returns:
        The memory with the stream flow. Clips of one frame, and those whose flow cannot be read, are added to
        `refused`.
    """
    rows = rows[~np.isin(rows, list(memory.refused))]
    short = memory.sizes[rows, 0] < 2
    starts = first_frames(table, view) / view.fps
    refused = memory.refused | {
        int(row): too_few_frames(table["path"].iat[row], starts[row], view.fps) for row in rows[short]
    }
    rows = rows[~short]
    kept = np.isin(np.arange(len(table)), rows)
    store = PixelStore.empty("flow", memory.sizes, kept, memory.stores["rgb"].pixels.device)
    if "flow" in table:
        refused = refused | _fill(store, "flow", table, view, memory.sizes, rows, workers, report)
    else:
        with Progress(len(rows), "clips' TV-L1 flow", report) as progress:
            for group in _groups_of_one_size(rows, memory.sizes):
                _compute_flow(memory, store, group, view)
                for _ in group:
                    progress.update()
    return replace(memory, stores=memory.stores | {"flow": store}, refused=refused)


def _fill(
    store: PixelStore,
    stream: str,
    table: pd.DataFrame,
    view: ViewSpec,
    sizes: np.ndarray,
    rows: np.ndarray,
    workers: int,
    report: Callable[[str], None],
) -> dict[int, str]:
    """Reads rows into a store, writes how many frames of each could be read to `sizes`, and returns the reasons of the
    others."""
    refused: dict[int, str] = {}
    keys = ((int(row), (Window(int(row), 0, False, None, {stream: stream}),)) for row in rows)
    with Progress(len(rows), f"clips of {stream} read", report) as progress:
        for row, inputs in read_clips(table, view, sizes, keys, workers):
            if isinstance(inputs, str):
                refused[row] = inputs
            else:
                x = inputs[stream]
                sizes[row, 0] = len(x) + (stream == "flow")
                store.clip(row, x.shape[:3]).copy_(x)
            progress.update()
    return refused


def _groups_of_one_size(rows: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Yields groups of rows whose frames have one size, and as many pixels as TV-L1 solves together."""
    shapes, group_of = np.unique(sizes[rows, 1:], axis=0, return_inverse=True)
    for i in range(len(shapes)):
        members = rows[group_of == i]
        chunk = np.cumsum(sizes[members].prod(1)) // CHUNK_PIXELS
        yield from np.split(members, np.flatnonzero(np.diff(chunk)) + 1)


def _compute_flow(memory: VideoMemory, store: PixelStore, rows: np.ndarray, view: ViewSpec) -> None:
    """Computes the TV-L1 flow of clips whose frames have one size."""
    clips = [memory.stores["rgb"].clip(row, memory.sizes[row]).permute(0, 3, 1, 2).float() / 255 for row in rows]
    a, b = torch.cat([clip[:-1] for clip in clips]), torch.cat([clip[1:] for clip in clips])
    fields = quantise(tvl1(a, b), view.bound).permute(0, 2, 3, 1)
    for row, part in zip(rows, fields.split([len(clip) - 1 for clip in clips]), strict=True):
        store.clip(row, part.shape[:3]).copy_(part)
