"""One training step, on one process or several: gradients of an objective, their sum over processes, an update.

If the clips are in GPU memory, the whole step, from cutting views out of them to the update, is captured in a CUDA
graph and replayed: for networks as small as the study's, launching the kernels one by one takes several times as long
as running them.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from d3d.data.clips import Batch, ClipSet
from d3d.s3dg.graphs import Graphs
from d3d.s3dg.network import S3DG
from d3d.study.parameters import OptimiserConfig, TrainConfig
from d3d.train.gradients import Gradients
from d3d.train.objective import Objective
from d3d.train.sgd import Sgd
from d3d.train.team import SINGLE_PROCESS, Team, use_synced_norm

# Counts besides the objective's metrics: the clips of the step, and the processes that had received a stop signal.
COUNTS = ("clips", "stop")
# How many steps may be queued on a GPU before the oldest is waited for.
MAX_IN_FLIGHT = 8


class StepMetrics(NamedTuple):
    """Metrics of one step.

    Attributes:
        step: index of the step.
        values: means over the step's clips, and the COUNTS; all 0 for a skipped step.
    """

    step: int
    values: dict[str, float]


def effective_batch_size(num_clips: int, config: OptimiserConfig) -> int:
    """Returns `batch_size`, or the number of training clips if that is smaller."""
    return min(config.batch_size, num_clips)


def steps_per_epoch(num_clips: int, config: OptimiserConfig, team: Team) -> int:
    """Returns the number of steps per epoch for a number of training clips.

    Batch norm needs two clips per micro-batch of each process. Where that takes fewer steps, batches exceed
    `batch_size`.
    """
    batch_size = effective_batch_size(num_clips, config)
    return min(-(-num_clips // batch_size), num_clips // (2 * config.accumulate * team.size))


class _Staging(NamedTuple):
    """Page-locked memory of one step in flight: its inputs on their way to the GPU, its metrics on their way back."""

    views: Tensor
    mask: Tensor
    metrics: Tensor
    done: torch.cuda.Event


class TrainStep:
    """Trains a network step by step, in all processes of a team.

    Args:
        model: the network.
        config: the run's configuration.
        clips: the training clips; their device is the model's.
        objective: what is minimised.
        team: the processes that train together.
        capture: whether to use CUDA graphs; None: if the clips are in GPU memory and batch norm is not synchronised.
    """

    def __init__(
        self,
        model: S3DG,
        config: TrainConfig,
        clips: ClipSet,
        objective: Objective,
        *,
        team: Team = SINGLE_PROCESS,
        capture: bool | None = None,
    ) -> None:
        synced = config.optimiser.sync_norm and team.size > 1
        if synced:
            use_synced_norm(model)
        self.model, self.config, self.clips, self.objective, self.team = model.train(), config, clips, objective, team
        self.device = clips.labels.device
        on_gpu = self.device.type == "cuda"
        self.capture = on_gpu and clips.in_memory and not synced if capture is None else capture
        # A step's metrics are returned this many steps later.
        self.lag = MAX_IN_FLIGHT if on_gpu else 0
        self.metric_names = (*objective.metric_names, *COUNTS)
        trained = nn.ModuleDict({"student": model, "head": objective.head}) if objective.head else model
        self.sgd = Sgd(trained, config.optimiser, self.device)
        self.gradients = Gradients(trained, team, self.device, num_extra=len(self.metric_names))
        self.stop = torch.zeros((), device=self.device)
        self.staging = [self._new_staging() for _ in range(MAX_IN_FLIGHT)] if on_gpu else []
        self.graphs = Graphs()
        self.in_flight: deque[tuple[int, _Staging]] = deque()

    def _new_staging(self) -> _Staging:
        optimiser, num_clips = self.config.optimiser, self.clips.num_labelled
        steps = steps_per_epoch(num_clips, optimiser, self.team)
        max_clips = max(effective_batch_size(num_clips, optimiser), -(-num_clips // steps))
        if num_clips < len(self.clips):
            max_clips *= 2  # as many unlabelled ones
        max_local_clips = -(-max_clips // self.team.size)
        shape = self.model.pooled_shape(self.clips.size)
        view_width = self.clips.draw(np.zeros(1, dtype=np.int64), (0,)).shape[1]
        return _Staging(
            torch.empty(max_local_clips, view_width, dtype=torch.int64, pin_memory=True),
            torch.empty(max_local_clips, *shape, dtype=torch.bool, pin_memory=True),
            torch.empty(len(self.metric_names), pin_memory=True),
            torch.cuda.Event(),
        )

    def local_part(self, array: np.ndarray) -> np.ndarray:
        """Returns this process's part of an array whose first axis is the clips of a step."""
        return np.array_split(array, self.team.size)[self.team.rank]

    def __call__(
        self,
        step: int,
        rows: np.ndarray,
        *,
        view_seeds: tuple[int, ...],
        learning_rate: float,
        batch: Batch | None = None,
        stop: bool = False,
    ) -> list[StepMetrics]:
        """Trains on one batch.

        Args:
            step: index of the step.
            rows: (N,), the clips of all processes, as rows of the training split's table.
            view_seeds: seeds of the clips' random views.
            learning_rate: learning rate of this step.
            batch: this process's views, decoded from files; None: they are cut from the clips in memory.
            stop: whether this process asks all processes to stop.

        Returns:
            The metrics that have become available: on a CPU those of this step, on a GPU those of earlier steps, if
            any.
        """
        mask, total = self._dropout_mask(step, rows), len(rows)
        if batch is None:
            views = self.clips.draw(self.local_part(rows), view_seeds)
        else:
            views = batch.index[:, None]
            # Unreadable files can leave a process with too few clips; all processes then skip the step.
            mask = mask[np.isin(self.local_part(rows), batch.index.cpu().numpy())]
            counts = torch.tensor([len(views), len(views) < 2 * self.config.optimiser.accumulate], device=self.device)
            total, num_lacking = self.team.all_reduce_(counts).tolist()
            if num_lacking:
                return [*self.drain(), StepMetrics(step, dict.fromkeys(self.metric_names, 0.0))]
        if not self.staging:
            self._run_step(views, mask, total, learning_rate, batch, stop)
            return [self._to_metrics(step, self.gradients.extra)]
        completed = [self._wait_for_oldest()] if len(self.in_flight) == MAX_IN_FLIGHT else []
        staging = self.staging[0]
        self.staging = [*self.staging[1:], staging]
        if batch is None:
            views = staging.views[: len(views)].copy_(views)
        self._run_step(views, staging.mask[: len(mask)].copy_(mask), total, learning_rate, batch, stop)
        staging.metrics.copy_(self.gradients.extra, non_blocking=True)
        staging.done.record()
        self.in_flight.append((step, staging))
        return completed

    def drain(self) -> list[StepMetrics]:
        """Waits for the steps in flight and returns their metrics."""
        return [self._wait_for_oldest() for _ in range(len(self.in_flight))]

    def _wait_for_oldest(self) -> StepMetrics:
        step, staging = self.in_flight.popleft()
        staging.done.synchronize()
        return self._to_metrics(step, staging.metrics)

    def _to_metrics(self, step: int, sums: Tensor) -> StepMetrics:
        values = dict(zip(self.metric_names, sums.tolist(), strict=True))
        means = {name: values[name] / values["clips"] for name in self.objective.metric_names}
        return StepMetrics(step, values | means)

    def _run_step(
        self, views: Tensor, mask: Tensor, total: int, learning_rate: float, batch: Batch | None, stop: bool
    ) -> None:
        sizes = [len(part) for part in np.array_split(np.arange(len(views)), self.config.optimiser.accumulate)]
        self.sgd.learning_rate.fill_(learning_rate)
        self.stop.fill_(stop)
        if batch is not None:
            self._compute(batch.split(sizes), self._to_device(mask), total)
        elif self.capture:
            compute = partial(self._compute_views, sizes=sizes, total=total)
            self.graphs.run(compute, views, mask, device=self.device, key=(*sizes, total), copy_outputs=False)
        else:
            self._compute_views(self._to_device(views), self._to_device(mask), sizes=sizes, total=total)

    def _compute_views(self, views: Tensor, mask: Tensor, *, sizes: Sequence[int], total: int) -> tuple[()]:
        self._compute((self.clips.batch(v, self.objective.streams) for v in views.split(list(sizes))), mask, total)
        return ()

    def _to_device(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)

    def _dropout_mask(self, step: int, rows: np.ndarray) -> Tensor:
        """Returns the dropout mask of this process's clips, bool (B, C, T', H', W'): True where a feature is kept.

        It is drawn on the CPU from seed and step for the whole batch, so it depends neither on the device nor on the
        number of processes and micro-batches, and is the same after a run resumes.
        """
        run, shape = self.config.run, self.model.pooled_shape(self.clips.size)
        # A twin trains on the clips of its seed, but with other random numbers.
        uniform = np.random.default_rng((run.seed, run.twin, step)).random((len(rows), *shape), np.float32)
        return torch.from_numpy(self.local_part(uniform) >= self.config.network.dropout)

    def _compute(self, batches: Iterable[Batch], mask: Tensor, total: int) -> None:
        """Computes the gradients of a step's micro-batches and updates the network."""
        self.gradients.clear()
        start = 0
        for batch in batches:
            batch_mask = mask[start : start + len(batch.labels)]
            start += len(batch.labels)
            values = self.objective(self.model, batch, batch_mask)
            ones = torch.ones_like(values["loss"])
            metrics = torch.stack([*(values[name] for name in self.objective.metric_names), ones])
            self.gradients.extra[:-1] += metrics.detach().sum(1)
            self.gradients.backward(values["loss"].sum() / total, is_last=start == len(mask))
        self.gradients.extra[-1] += self.stop
        self.gradients.finish()
        self.sgd.update(self.gradients.values)
