"""Data sets as batches of network inputs; clips in memory stay on their device.

for batch in clips.batches([(rows, ())], ("rgb", "flow")):        # (): test views
    batch.inputs["rgb"]                                           # (B, 3, T, H, W) in [0, 1]
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d3d.data.draws import CounterRng

# Rows of a split's table, and the seeds of their random training views; no seeds: test views.
BatchRequest = tuple[np.ndarray, tuple[int, ...]]
# Divides a search, which maps names to what it finds, among processes: `d3d.train.team.Team.share`.
Share = Callable[[Callable[[list[str]], dict[str, Any]], list[str]], dict[str, Any]]
# Begins the name of an input that shows not the clip itself but its partner, such as partner_flow.
PARTNER = "partner_"


def alone(find: Callable[[list[str]], dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """The `Share` of one process, which finds everything itself."""
    return find(names)


def divide(x: Tensor, by: float) -> Tensor:
    """Divides x, float32, in place; a GPU divides by a plain number less exactly than a CPU, but not by a tensor."""
    return x.div_(torch.full((), by, dtype=x.dtype, device=x.device))


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


class ClipSet:
    """The clips of one split, in memory or in files.

    Attributes:
        labels: int64 (N,), on the device of the batches.
        table: one row per clip.
        partners: int64 (N,), another row for each clip, or None; an input called partner_<stream> shows its view.
        in_memory: whether the clips are on the device, so that `batch` can be captured in a CUDA graph; if not,
            `refused` maps the path of each file that turned out to be unreadable to the reason.
    """

    labels: Tensor
    table: pd.DataFrame
    partners: np.ndarray | None
    in_memory: bool

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of a network input."""
        raise NotImplementedError

    @property
    def groups(self) -> np.ndarray:
        """The group that each clip belongs to, (N,); accuracy is also reported per group."""
        raise NotImplementedError

    @property
    def augmented(self) -> bool:
        """Whether every epoch sees new random views."""
        raise NotImplementedError

    @property
    def test_views(self) -> int:
        """Number of test views of a clip."""
        return 1

    @property
    def num_labelled(self) -> int:
        """Number of clips, from the first, whose labels training may use."""
        return len(self)

    def __len__(self) -> int:
        return len(self.labels)

    def with_partners(self, partners: np.ndarray) -> Self:
        """Returns the same clips with partners (N,)."""
        return replace(self, partners=partners)

    def subset(self, rows: np.ndarray) -> Self:
        """Returns the clips of some rows (M,) of the table, without partners."""
        index = torch.from_numpy(rows).to(self.labels.device)
        table = self.table.iloc[rows].reset_index(drop=True)
        return replace(self, labels=self.labels[index], table=table, partners=None, **self._subset(rows))

    def draw(self, rows: np.ndarray, seeds: tuple[int, ...]) -> Tensor:
        """Draws one random view of each clip, or lists all of its test views.

        Args:
            rows: (B,), rows of the table.
            seeds: of the random views, which depend on them and the row alone; empty: test views.

        Returns:
            int64 (V, D) on the CPU. The first column is the row, the others say which part of the clip is seen; if the
            clips have partners, the second half of the columns is the partner's own view of the same seeds.
        """
        views = self._draw(rows, seeds)
        return torch.from_numpy(
            views if self.partners is None else np.hstack([views, self._draw(self.partners[rows], seeds)])
        )

    def batches(self, requests: Iterable[BatchRequest], streams: Sequence[str]) -> Iterator[Batch]:
        """Yields one batch per request, with the inputs of `streams`."""
        raise NotImplementedError

    def _draw(self, rows: np.ndarray, seeds: tuple[int, ...]) -> np.ndarray:
        raise NotImplementedError

    def _subset(self, rows: np.ndarray) -> dict[str, Any]:
        """Returns the attributes that differ between clips, besides labels and table, for some rows."""
        return {}

    def _part_of(self, name: str, views: Tensor) -> tuple[str, Tensor]:
        """Returns the stream of an input, and the columns of `views` (V, D) that say what it shows."""
        own_width = views.shape[1] // (1 if self.partners is None else 2)
        is_partner = name.startswith(PARTNER)
        return name.removeprefix(PARTNER), views[:, own_width:] if is_partner else views[:, :own_width]


class ClipsInMemory(ClipSet):
    """What sets of clips in the memory of a device have in common."""

    in_memory = True

    def batch(self, views: Tensor, streams: Sequence[str]) -> Batch:
        """Returns views (V, D), on the device of the clips, as a batch; this can be captured in a CUDA graph."""
        inputs = {name: self._input(*self._part_of(name, views)) for name in streams}
        return Batch(views[:, 0], self.labels[views[:, 0]], inputs)

    def batches(self, requests: Iterable[BatchRequest], streams: Sequence[str]) -> Iterator[Batch]:
        for rows, seeds in requests:
            yield self.batch(self.draw(rows, seeds).to(self.labels.device), streams)

    def _input(self, stream: str, views: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Clips(ClipsInMemory):
    """Rendered clips of one split in the memory of one device.

    Attributes:
        rgb: uint8 (N, 3, T, H, W).
        flow: float16 (N, 2, T, H, W), x and y, pixels per frame, as the temporal stream sees it; or None.
        true_flow: exact flow, same shape, dtype and unit; or None.
        mask: bool (N, T, H, W), the visible pixels of the target; or None.
        labels: int64 (N,).
        table: one row per clip, with at least `label` and `group`.
        bound: flow is clipped to ± bound pixels per frame, then scaled to [-1, 1].
        rolled: whether a random view shifts the clip on its torus; otherwise every view is the clip as it is.
        num_unlabelled: number of clips, from the last, whose labels training may not use.
        partners: as in `ClipSet`.
    """

    rgb: Tensor
    flow: Tensor | None
    true_flow: Tensor | None
    mask: Tensor | None
    labels: Tensor
    table: pd.DataFrame
    bound: float
    rolled: bool = False
    num_unlabelled: int = 0
    partners: np.ndarray | None = None

    @property
    def augmented(self) -> bool:
        return self.rolled

    @property
    def num_labelled(self) -> int:
        return len(self) - self.num_unlabelled

    @property
    def size(self) -> tuple[int, int, int]:
        return tuple(self.rgb.shape[2:])

    @property
    def groups(self) -> np.ndarray:
        return self.table["group"].to_numpy(dtype=str)

    def _subset(self, rows: np.ndarray) -> dict[str, Any]:
        tensors = {name: getattr(self, name) for name in ("rgb", "flow", "true_flow", "mask")}
        return {name: x if x is None else x[torch.from_numpy(rows).to(x.device)] for name, x in tensors.items()}

    def inputs(self, stream: str, index: Tensor | slice) -> Tensor:
        """Returns the network input of a stream, float32 (B, C, T, H, W): RGB in [0, 1] or flow in [-1, 1]."""
        return self._scaled(stream, (self.rgb if stream == "rgb" else self.flow)[index])

    def _scaled(self, stream: str, x: Tensor) -> Tensor:
        x = x.float()
        return divide(x, 255) if stream == "rgb" else divide(x.clamp_(-self.bound, self.bound), self.bound)

    def _draw(self, rows: np.ndarray, seeds: tuple[int, ...]) -> np.ndarray:
        """Returns the row and, if clips are rolled, how many pixels down and to the right: (B, 1) or (B, 3)."""
        if not self.rolled:
            return rows[:, None]
        rng, sides = CounterRng(f"roll {seeds}", rows), self.size[1:]
        shifts = [rng.integer(name, n) if seeds else 0 * rows for name, n in zip(("down", "right"), sides, strict=True)]
        return np.stack([rows, *shifts], 1)

    def _input(self, stream: str, views: Tensor) -> Tensor:
        if not self.rolled:
            return self.inputs(stream, views[:, 0])
        x = (self.rgb if stream == "rgb" else self.flow)[views[:, 0]]
        for axis, shift in ((3, views[:, 1]), (4, views[:, 2])):
            source = (torch.arange(x.shape[axis], device=x.device) - shift[:, None]) % x.shape[axis]
            shape = [-1 if k in (0, axis) else 1 for k in range(5)]
            x = x.gather(axis, source.view(len(x), *shape[1:]).expand_as(x))
        return self._scaled(stream, x)


@dataclass(frozen=True)
class Data:
    """A data set: `splits["train"]`, if it was loaded, and the test splits.

    Attributes:
        classes: names of the classes, by label.
        splits: maps the name of each split to its clips.
        counts: numbers of clips listed, found and missing; empty for rendered clips.
        missing: names of the missing files.
        refused: maps the path of each unreadable file to the reason; grows while clips are read.
        flow: statistics of the flow cache.
        siblings: for each label the other label of its pair, -1 where there is none; empty for video files.
        partial: whether video files have fewer classes than the benchmark whose name they go by.
    """

    classes: tuple[str, ...]
    splits: dict[str, ClipSet]
    counts: dict[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    flow: dict[str, float] = field(default_factory=dict)
    siblings: tuple[int, ...] = ()
    partial: bool = False

    @property
    def files(self) -> dict[str, object]:
        """The `files` of a record: numbers of clips, and the files refused and missing; empty for rendered clips."""
        if not self.counts:
            return {}
        facts = self.counts | {"decoded": self.counts["found"] - len(self.refused), "refused": self.refused}
        return facts | {"missing_first": list(self.missing[:20])} | ({"flow": self.flow} if self.flow else {})

    @property
    def stand_in(self) -> bool:
        """Whether the clips only stand in for a benchmark: rendered clips do, and a copy that lacks classes."""
        return not self.counts or self.partial

    @property
    def test_splits(self) -> dict[str, ClipSet]:
        return {name: clips for name, clips in self.splits.items() if name != "train"}
