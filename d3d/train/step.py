"""One step of training, on one process or several: gradients of an objective, their sum, an update.

On a GPU, clips that lie there are trained on by a CUDA graph that holds the whole step, from gathering the clips to the
update: at the study's scale launching its kernels one by one takes several times as long as they do.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from d3d.data.clips import Batch, ClipSet
from d3d.s3dg.network import S3DG
from d3d.study.parameters import OptimiserConfig, TrainConfig
from d3d.train.objective import Objective
from d3d.train.sgd import Sgd
from d3d.train.team import ALONE, Team, synchronise

# What a step gives beside its objective's metrics: its clips, and how many processes were asked to stop.
COUNTS = ("clips", "stop")
# Steps that may be under way on a GPU before the oldest is waited for.
AHEAD = 8


class StepMetrics(NamedTuple):
    """What came of the step at a position: means over its clips, beside `clips` and `stop`."""

    position: int
    values: dict[str, float]


def steps_per_epoch(clips: int, config: OptimiserConfig, team: Team) -> int:
    """How many steps there are per epoch of so many clips: batch norm needs two per part, which may make a step a
    little larger than `batch_size`."""
    return min(-(-clips // config.batch_size), clips // (2 * config.accumulate * team.size))


class _Slot(NamedTuple):
    """Page-locked memory of one step under way: what goes to the GPU, and what comes back."""

    rows: Tensor
    mask: Tensor
    metrics: Tensor
    done: torch.cuda.Event


class Step:
    """Trains `model` on an objective, a step at a time, over all processes of the team.

    capture: train by CUDA graphs; None: where clips lie on a GPU and batch norm is not synchronised.
    """

    def __init__(
        self,
        model: S3DG,
        config: TrainConfig,
        clips: ClipSet,
        objective: Objective,
        *,
        team: Team = ALONE,
        capture: bool | None = None,
    ) -> None:
        synced = config.optimiser.sync_norm and team.size > 1
        if synced:
            synchronise(model)
        self.model, self.config, self.clips, self.objective, self.team = model.train(), config, clips, objective, team
        self.device = clips.labels.device
        on_gpu = self.device.type == "cuda"
        self.capture = on_gpu and not clips.augmented and not synced if capture is None else capture
        # The metrics of a step are read this many steps later.
        self.lag = AHEAD if on_gpu else 0
        self.names = (*objective.names, *COUNTS)
        self.sgd = Sgd(model, config.optimiser, self.device, extra=len(self.names))
        # Averaged over processes, so that all hold the same network.
        self.averages = [b for b in model.buffers() if b.is_floating_point()]
        self.stream = torch.cuda.Stream(self.device) if on_gpu else None
        self.slots = [self._slot() for _ in range(AHEAD)] if on_gpu else []
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self.warm: set[tuple] = set()
        self.under_way: deque[tuple[int, _Slot]] = deque()

    def _slot(self) -> _Slot:
        optimiser, clips = self.config.optimiser, len(self.clips)
        step = max(optimiser.batch_size, -(-clips // steps_per_epoch(clips, optimiser, self.team)))
        most = -(-step // self.team.size)
        shape = self.model.pooled_shape(self.clips.size)
        return _Slot(
            torch.empty(most, dtype=torch.int64, pin_memory=True),
            torch.empty(most, *shape, dtype=torch.bool, pin_memory=True),
            torch.empty(len(self.names), pin_memory=True),
            torch.cuda.Event(),
        )

    def share_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """This process's part of a step's rows."""
        return np.array_split(np.asarray(rows), self.team.size)[self.team.rank]

    def __call__(
        self, position: int, rows: np.ndarray, *, rate: float, batch: Batch | None = None, stop: bool = False
    ) -> list[StepMetrics]:
        """Trains on the clips of `rows`; returns the metrics of earlier steps, and on a CPU of this one.

        rate: the learning rate. batch: this process's clips, where they come from files; else they are taken by row.
        stop: ask all processes to stop.
        """
        mine = torch.from_numpy(self.share_of(rows)) if batch is None else batch.index
        mask, total = self._dropout_mask(position, rows), len(rows)
        if batch is not None:
            # Some files may have been unreadable. If one process lacks clips, all skip the step.
            mask = mask[np.isin(self.share_of(rows), mine.cpu().numpy())]
            counts = torch.tensor([len(mine), len(mine) < 2 * self.config.optimiser.accumulate], device=self.device)
            total, lacking = self.team.sum_(counts).tolist()
            if lacking:
                return [*self.drain(), StepMetrics(position, dict.fromkeys(self.names, 0.0))]
        if self.stream is None:
            self._step(mine, mask, total, rate, batch, stop)
            return [self._metrics(position, self.sgd.extra)]
        oldest = [self._oldest()] if len(self.under_way) == AHEAD else []
        slot = self.slots[0]
        self.slots = [*self.slots[1:], slot]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            if batch is None:
                mine = slot.rows[: len(mine)].copy_(mine)
            self._step(mine, slot.mask[: len(mask)].copy_(mask), total, rate, batch, stop)
            slot.metrics.copy_(self.sgd.extra, non_blocking=True)
            slot.done.record()
        torch.cuda.current_stream().wait_stream(self.stream)
        self.under_way.append((position, slot))
        return oldest

    def drain(self) -> list[StepMetrics]:
        """The metrics of the steps still under way, once they are done."""
        return [self._oldest() for _ in range(len(self.under_way))]

    def _oldest(self) -> StepMetrics:
        position, slot = self.under_way.popleft()
        slot.done.synchronize()
        return self._metrics(position, slot.metrics)

    def _metrics(self, position: int, sums: Tensor) -> StepMetrics:
        values = dict(zip(self.names, sums.tolist(), strict=True))
        means = {name: values[name] / values["clips"] for name in self.objective.names}
        return StepMetrics(position, values | means)

    def _step(self, mine: Tensor, mask: Tensor, total: int, rate: float, batch: Batch | None, stop: bool) -> None:
        sizes = [len(part) for part in np.array_split(np.arange(len(mine)), self.config.optimiser.accumulate)]
        self.sgd.learning_rate.fill_(rate)
        alone = self.team.size == 1
        key = (*sizes, total)
        if self.capture and key in self.warm:
            self._replay(key, mine, mask, total)
        else:
            # The first step of a size runs launch by launch, which is what a capture needs to have seen.
            self.warm.add(key)
            batches = batch.split(sizes) if batch is not None else self._taken(self._there(mine), sizes)
            self._gradients(batches, self._there(mask), total)
            if alone:
                self.sgd.update()
        self.sgd.extra[-1] = float(stop)
        if not alone:
            self.team.sum_(self.sgd.flat)
            self.sgd.update()
            self._average()

    def _replay(self, key: tuple, rows: Tensor, mask: Tensor, total: int) -> None:
        if key not in self.graphs:
            held = self._there(rows), self._there(mask)
            graph = torch.cuda.CUDAGraph()
            pool = next((g.pool() for g, *_ in self.graphs.values()), None)
            with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                self._gradients(self._taken(held[0], key[:-1]), held[1], total)
                if self.team.size == 1:
                    self.sgd.update()
            self.graphs[key] = graph, *held
        graph, held_rows, held_mask = self.graphs[key]
        held_rows.copy_(rows, non_blocking=True)
        held_mask.copy_(mask, non_blocking=True)
        graph.replay()

    def _there(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)

    def _taken(self, rows: Tensor, sizes: Sequence[int]) -> Iterable[Batch]:
        for part in rows.split(list(sizes)):
            yield self.clips.batch(part, self.objective.streams)

    def _dropout_mask(self, position: int, rows: np.ndarray) -> Tensor:
        """What dropout leaves of this process's clips, bool (B, C, T', H', W'), by seed, step and place in it alone.

        So it is the same on any device, in any number of processes and parts, and after a pause.
        """
        run, shape = self.config.run, self.model.pooled_shape(self.clips.size)
        drawn = np.random.default_rng((run.seed, run.twin, position)).random((len(rows), *shape), np.float32)
        return torch.from_numpy(self.share_of(drawn) >= self.config.network.dropout)

    def _gradients(self, batches: Iterable[Batch], mask: Tensor, total: int) -> None:
        self.sgd.flat.zero_()
        first = 0
        for batch in batches:
            own = mask[first : first + len(batch.labels)]
            first += len(batch.labels)
            values = self.objective(self.model, batch, own)
            (values["loss"].sum() / total).backward()
            ones = torch.ones_like(values["loss"])
            rows = torch.stack([*(values[name] for name in self.objective.names), ones, torch.zeros_like(ones)])
            self.sgd.extra += rows.detach().sum(1)

    @torch.no_grad()
    def _average(self) -> None:
        flat = self.team.sum_(torch.cat(self.averages)) / self.team.size
        torch._foreach_copy_(self.averages, list(flat.split([len(b) for b in self.averages])))
