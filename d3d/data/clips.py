"""Sets of clips as networks see them, a batch at a time; the rendered ones stay on their device.

for batch in clips.batches([(index, ())], ("rgb", "flow")):       # (): views for testing
    batch.inputs["rgb"]                                           # (B, 3, T, H, W) in [0, 1]
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

# Rows to take at a time, and the numbers from which their training views are drawn; none: the views for testing.
Step = tuple[np.ndarray, tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """Clips as networks see them: rows `index` (B,) of their set's table, which repeats where a clip has several views,
    `labels` (B,), and by stream its float32 input (B, C, T, H, W): RGB in [0, 1], flow in [-1, 1]."""

    index: Tensor
    labels: Tensor
    inputs: dict[str, Tensor]

    def split(self, sizes: Sequence[int]) -> Iterator["Batch"]:
        """Its clips in parts of these sizes."""
        inputs = {stream: x.split(sizes) for stream, x in self.inputs.items()}
        for i, (index, labels) in enumerate(zip(self.index.split(sizes), self.labels.split(sizes), strict=True)):
            yield Batch(index, labels, {stream: parts[i] for stream, parts in inputs.items()})


class ClipSet(Protocol):
    """Clips of one split: `labels` (N,) on the device that batches come on, a `table` of a row a clip, the group (N,)
    of classes that each counts to. redrawn: whether every epoch sees other views of them."""

    labels: Tensor
    table: pd.DataFrame
    groups: np.ndarray
    redrawn: bool

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of a clip as networks see it."""

    def __len__(self) -> int: ...

    def batches(self, steps: Iterable[Step], streams: Sequence[str]) -> Iterator[Batch]:
        """A batch a step with the inputs of `streams`."""


@dataclass(frozen=True)
class Clips:
    """Clips of one split on one device: rgb uint8 (N, 3, T, H, W), flow float16 (N, 2, T, H, W) or None, labels (N,).

    flow is what the temporal stream sees, true_flow what is so; mask (N, T, H, W) is where the target is seen. The
    table has a row a clip and at least its `label` and `group`.
    """

    rgb: Tensor
    flow: Tensor | None
    true_flow: Tensor | None
    mask: Tensor | None
    labels: Tensor
    table: pd.DataFrame
    bound: float
    redrawn = False  # every epoch sees the same

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return tuple(self.rgb.shape[2:])

    @property
    def groups(self) -> np.ndarray:
        """The group (N,) of classes that each clip counts to."""
        return self.table["group"].to_numpy(dtype=str)

    def inputs(self, stream: str, index: Tensor | slice) -> Tensor:
        """What the stream's network sees: RGB in [0, 1], or flow in [-1, 1]; float32 (B, C, T, H, W)."""
        if stream == "rgb":
            return self.rgb[index].float() / 255
        return self.flow[index].float().clamp(-self.bound, self.bound) / self.bound

    def at(self, index: Tensor, streams: Sequence[str]) -> Batch:
        """The batch of the clips `index` (B,), a tensor on their device."""
        return Batch(index, self.labels[index], {stream: self.inputs(stream, index) for stream in streams})

    def batches(self, steps: Iterable[Step], streams: Sequence[str]) -> Iterator[Batch]:
        """A batch a step; all views are the same."""
        for rows, _ in steps:
            yield self.at(torch.from_numpy(rows).to(self.labels.device), streams)


@dataclass(frozen=True)
class Data:
    """`splits["train"]` and the splits to test on. Of files: `counts` of clips listed, found and missing, the names of
    the missing, why some were `refused`, which grows while clips are read, and what is known of their flow. siblings:
    of each class the other of its pair, -1 where it has none."""

    classes: tuple[str, ...]
    splits: dict[str, ClipSet]
    counts: dict[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    flow: dict[str, float] = field(default_factory=dict)
    siblings: tuple[int, ...] = ()

    @property
    def files(self) -> dict[str, object]:
        """What became of the files, for the record; empty for rendered clips."""
        if not self.counts:
            return {}
        found = self.counts | {"decoded": self.counts["found"] - len(self.refused), "refused": self.refused}
        return found | {"missing_first": list(self.missing[:20])} | ({"flow": self.flow} if self.flow else {})

    @property
    def stand_in(self) -> bool:
        """Whether the clips are rendered, and so stand in for video."""
        return not self.counts

    @property
    def tests(self) -> dict[str, ClipSet]:
        return {name: clips for name, clips in self.splits.items() if name != "train"}
