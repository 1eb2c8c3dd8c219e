"""Data sets as batches of network inputs; rendered clips stay on their device.

for batch in clips.batches([(rows, ())], ("rgb", "flow")):        # (): test views
    batch.inputs["rgb"]                                           # (B, 3, T, H, W) in [0, 1]
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

# Rows of a split's table, and the seeds of their random training views; no seeds: test views.
BatchRequest = tuple[np.ndarray, tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """Network inputs and labels of a batch of views.

    Attributes:
        index: int64 (B,), rows of the split's table; a row repeats where its clip has several views.
        labels: int64 (B,).
        inputs: maps each stream to float32 (B, C, T, H, W); RGB in [0, 1], flow in [-1, 1].
    """

    index: Tensor
    labels: Tensor
    inputs: dict[str, Tensor]

    def split(self, sizes: Sequence[int]) -> Iterator["Batch"]:
        """Yields micro-batches of the given sizes."""
        inputs = {stream: x.split(sizes) for stream, x in self.inputs.items()}
        for i, (index, labels) in enumerate(zip(self.index.split(sizes), self.labels.split(sizes), strict=True)):
            yield Batch(index, labels, {stream: chunks[i] for stream, chunks in inputs.items()})


class ClipSet(Protocol):
    """The clips of one split, in memory or in files.

    Attributes:
        labels: int64 (N,), on the device of the batches.
        table: one row per clip.
        groups: (N,), the group of classes that each clip belongs to; accuracy is also reported per group.
        augmented: whether every epoch sees new random views.
    """

    labels: Tensor
    table: pd.DataFrame
    groups: np.ndarray
    augmented: bool

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of a network input."""

    def __len__(self) -> int: ...

    def batches(self, requests: Iterable[BatchRequest], streams: Sequence[str]) -> Iterator[Batch]:
        """Yields one batch per request, with the inputs of `streams`."""


@dataclass(frozen=True)
class Clips:
    """The clips of one split in the memory of one device.

    Attributes:
        rgb: uint8 (N, 3, T, H, W).
        flow: float16 (N, 2, T, H, W), x and y, pixels per frame, as the temporal stream sees it; or None.
        true_flow: exact flow, same shape, dtype and unit; or None.
        mask: bool (N, T, H, W), the visible pixels of the target; or None.
        labels: int64 (N,).
        table: one row per clip, with at least `label` and `group`.
        bound: flow is clipped to ± bound pixels per frame, then scaled to [-1, 1].
    """

    rgb: Tensor
    flow: Tensor | None
    true_flow: Tensor | None
    mask: Tensor | None
    labels: Tensor
    table: pd.DataFrame
    bound: float
    augmented = False  # every epoch sees the same clips

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return tuple(self.rgb.shape[2:])

    @property
    def groups(self) -> np.ndarray:
        """The group of classes that each clip belongs to, (N,)."""
        return self.table["group"].to_numpy(dtype=str)

    def inputs(self, stream: str, index: Tensor | slice) -> Tensor:
        """Returns the network input of a stream, float32 (B, C, T, H, W): RGB in [0, 1] or flow in [-1, 1]."""
        if stream == "rgb":
            return self.rgb[index].float() / 255
        return self.flow[index].float().clamp(-self.bound, self.bound) / self.bound

    def batch(self, index: Tensor, streams: Sequence[str]) -> Batch:
        """Returns the clips `index` (B,), a tensor on their device, as a batch."""
        return Batch(index, self.labels[index], {stream: self.inputs(stream, index) for stream in streams})

    def batches(self, requests: Iterable[BatchRequest], streams: Sequence[str]) -> Iterator[Batch]:
        """Yields one batch per request; the seeds have no effect, as every epoch sees the same clips."""
        for rows, _ in requests:
            yield self.batch(torch.from_numpy(rows).to(self.labels.device), streams)


@dataclass(frozen=True)
class Data:
    """A data set: `splits["train"]` and the test splits.

    Attributes:
        classes: names of the classes, by label.
        splits: maps the name of each split to its clips.
        counts: numbers of clips listed, found and missing; empty for rendered clips.
        missing: names of the missing files.
        refused: maps the path of each unreadable file to the reason; grows while clips are read.
        flow: statistics of the flow cache.
        siblings: for each label the other label of its pair, -1 where there is none; empty for video files.
    """

    classes: tuple[str, ...]
    splits: dict[str, ClipSet]
    counts: dict[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    flow: dict[str, float] = field(default_factory=dict)
    siblings: tuple[int, ...] = ()

    @property
    def files(self) -> dict[str, object]:
        """The `files` of a record: numbers of clips, and the files refused and missing; empty for rendered clips."""
        if not self.counts:
            return {}
        facts = self.counts | {"decoded": self.counts["found"] - len(self.refused), "refused": self.refused}
        return facts | {"missing_first": list(self.missing[:20])} | ({"flow": self.flow} if self.flow else {})

    @property
    def stand_in(self) -> bool:
        """Whether the clips are rendered, and so stand in for video."""
        return not self.counts

    @property
    def test_splits(self) -> dict[str, ClipSet]:
        return {name: clips for name, clips in self.splits.items() if name != "train"}
