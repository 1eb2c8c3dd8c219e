"""The training loop: epochs of steps, states from which a killed run resumes, and an orderly stop on signals.

history = fit(model, config, data, states=States(folder, fixed), metrics_path="run.jsonl")
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from d3d.data.clips import ClipSet
from d3d.data.load import Data
from d3d.progress import LOG_INTERVAL, MetricsFile, Progress
from d3d.s3dg.network import S3DG
from d3d.study.parameters import TrainConfig
from d3d.study.schema import flatten
from d3d.train.networks import Teacher
from d3d.train.objective import Objective
from d3d.train.states import States
from d3d.train.step import COUNTS, StepMetrics, TrainStep, effective_batch_size, steps_per_epoch
from d3d.train.team import ALONE, Team


class Stopped(Exception):
    """A signal stopped the run, after its state was saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@dataclass
class AverageMeter:
    """Averages the metrics of steps over each epoch.

    Attributes:
        history: one row of means per finished epoch.
        sums: of the current epoch, by metric.
        clips: of the current epoch.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    clips: float = 0.0

    def add(self, values: dict[str, float]) -> None:
        """Adds the means of one step, weighted by its clips."""
        clips = values["clips"]
        for name in (name for name in values if name not in COUNTS):
            self.sums[name] = self.sums.get(name, 0.0) + values[name] * clips
        self.clips += clips

    def means(self) -> dict[str, float]:
        return {name: value / self.clips for name, value in self.sums.items()}

    def end_epoch(self) -> dict[str, float]:
        """Appends the epoch's row to the history, starts the next epoch and returns the row."""
        self.history.append({"epoch": len(self.history) + 1, **self.means()})
        self.sums, self.clips = {}, 0.0
        return self.history[-1]


def fit(
    model: S3DG,
    config: TrainConfig,
    data: Data,
    *,
    teacher: Teacher | None = None,
    team: Team = ALONE,
    states: States | None = None,
    metrics_path: str | Path | None = None,
    report: Callable[[str], None] = print,
    capture: bool | None = None,
) -> list[dict[str, float]]:
    """Trains a network in place by SGD with warm-up and cosine decay.

    Every clip is used once per epoch, in batches whose sizes differ by at most one: of at most `batch_size` clips where
    that leaves batch norm two per micro-batch, and of all clips where they are fewer than `batch_size`.

    Args:
        model: the network.
        config: the run's configuration.
        data: its split `train` is trained on.
        teacher: adds lambda_ · distance to the cross-entropy.
        team: the processes that train together.
        states: the run resumes from the newest of them, and saves one every `save_every` seconds, at the end, and when
            SIGTERM or Ctrl-C stops it.
        metrics_path: file that gets one row per epoch, and one every ten seconds.
        report: receives one line per epoch; called in the first process only.
        capture: as for `TrainStep`.

    Returns:
        One row of training metrics per epoch.

    Raises:
        FloatingPointError: if the loss is not finite; the message names the step, the losses and the last good state.
        Stopped: if a signal stopped the run.
        ValueError: for labels that are no class, for too few clips for batch norm, or if none of an epoch's clips can
            be read.
    """
    clips = data.splits["train"]
    report = report if team.is_main else silent
    _check_clips(config, clips, len(data.classes), team, report)
    train_step = TrainStep(model, config, clips, Objective(config, teacher), team=team, capture=capture)
    training = _Training(config, data, train_step, team, states, report)
    first = training.resume()
    if metrics_path:
        training.metrics_file = MetricsFile(metrics_path, last_step=first)
        training.metrics_file.append(
            {"event": "start", "step": first, "params": flatten(config), "processes": team.size}
        )
    with (
        Progress(len(training.steps) - first, "steps", report) as training.progress,
        _catch_signals(states is not None or team.size > 1) as training.signals,
    ):
        training.train(first)
    return training.meter.history


class _Training:
    """Runs the steps of a run, logs their metrics, saves states, and stops when a signal has come."""

    progress: Progress
    signals: list[int]  # received so far
    metrics_file: MetricsFile | None = None

    def __init__(
        self,
        config: TrainConfig,
        data: Data,
        train_step: TrainStep,
        team: Team,
        states: States | None,
        report: Callable[[str], None],
    ) -> None:
        self.config, self.data, self.train_step, self.team = config, data, train_step, team
        self.states, self.report = states, report
        clips = len(data.splits["train"])
        # One generator for the whole run: the order of the clips depends on the seed alone.
        seed = config.run.seed, config.run.twin
        order = np.random.default_rng(seed)
        self.steps_per_epoch = steps_per_epoch(clips, config.optimiser, team)
        # The rows of each step's clips, and the seed from which their views are drawn.
        self.steps = [
            (rows, (*seed, epoch))
            for epoch in range(config.optimiser.epochs)
            for rows in np.array_split(order.permutation(clips), self.steps_per_epoch)
        ]
        self.lr_schedule = _warmup_cosine(config.optimiser.warmup, len(self.steps))
        self.meter = AverageMeter()
        self.stop_after = len(self.steps)
        self.clips_timed = 0.0  # clips since `epoch_began`

    def resume(self) -> int:
        """Restores the newest state in all processes and returns how many steps were done by then."""
        state = self.team.broadcast(self.states.latest() if self.states else None)
        if not state:
            return 0
        self.train_step.sgd.restore(state.tensors)
        self.meter = AverageMeter(**state.metadata["tally"])
        self.data.refused.update(state.metadata["refused"])
        self.report(f"resuming after step {state.step} of {len(self.steps)}")
        return state.step

    def train(self, first: int) -> None:
        """Runs the steps from index `first` on; raises Stopped if any process received a signal."""
        clips, done, total = self.data.splits["train"], first, len(self.steps)
        local_steps = [(self.train_step.local_rows(rows), view_seed) for rows, view_seed in self.steps[first:]]
        batches = iter(clips.batches(local_steps, self.train_step.objective.streams)) if clips.augmented else None
        self.saved = self.logged = self.epoch_began = time.monotonic()
        while done < min(total, self.stop_after + 1):
            batch = next(batches) if batches else None
            rows, learning_rate = self.steps[done][0], self._learning_rate(done)
            stop = bool(self.signals)
            for metrics in self.train_step(done, rows, learning_rate=learning_rate, batch=batch, stop=stop):
                self._log_step(metrics)
            done += 1
            if self.metrics_file and done == first + 1:
                self.metrics_file.append({"event": "first step", "step": done})
            if self.states and done < total and time.monotonic() - self.saved > self.config.run.save_every:
                self._drain_and_save(done)
        self._drain_and_save(done)
        # Includes signals that came too late for the last step to pass them on.
        signals = self.team.sum_(torch.tensor([len(self.signals)], device=self.train_step.device))
        if done < total or int(signals):
            self._raise_stopped(done)

    def _learning_rate(self, step: int) -> float:
        return self.config.optimiser.learning_rate * self.lr_schedule(step)

    def _log_step(self, metrics: StepMetrics) -> None:
        step, values = metrics
        done = step + 1
        if values["stop"]:
            # Processes learn of a stop up to `lag` steps later; all of them must stop after the same step.
            self.stop_after = min(self.stop_after, step + self.train_step.lag)
        if not math.isfinite(values["loss"]):
            self._raise_not_finite(metrics)
        self.meter.add(values)
        self.progress.update(clips=values["clips"])
        self.clips_timed += values["clips"]
        if done % self.steps_per_epoch == 0:
            self._end_epoch(step)
        elif self.metrics_file and self.meter.clips and time.monotonic() - self.logged > LOG_INTERVAL:
            self.metrics_file.append({"step": done, "epoch": done / self.steps_per_epoch, **self.meter.means()})
            self.logged = time.monotonic()

    def _end_epoch(self, step: int) -> None:
        if not self.meter.clips:
            reason = next(iter(self.data.refused.values()), "see the other processes")
            raise ValueError(f"no training clip could be read in epoch {step // self.steps_per_epoch + 1}: {reason}")
        clips_per_second = self.clips_timed / (time.monotonic() - self.epoch_began)
        row = self.meter.end_epoch()
        if self.metrics_file:
            rates = {"learning_rate": self._learning_rate(step), "clips_per_second": round(clips_per_second, 1)}
            self.metrics_file.append({"step": step + 1} | row | rates)
        means = "  ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "epoch")
        epoch = f"epoch {row['epoch']:3d}/{self.config.optimiser.epochs}"
        self.progress.log(f"{epoch}  {means}  {clips_per_second:,.0f} clips/s")
        self.logged = self.epoch_began = time.monotonic()
        self.clips_timed = 0.0

    def _raise_not_finite(self, metrics: StepMetrics) -> None:
        if not self.team.is_main:
            sys.exit(1)  # the first process raises
        losses = ", ".join(f"{name} {metrics.values[name]:.4g}" for name in self.train_step.objective.loss_names)
        raise FloatingPointError(
            f"the loss is not finite at step {metrics.step + 1} of {len(self.steps)} (epoch "
            f"{metrics.step // self.steps_per_epoch + 1}): {losses}; lower learning_rate; "
            + (self.states.describe_latest() if self.states else "no state was saved before")
        )

    def _drain_and_save(self, done: int) -> None:
        """Waits for the steps in flight, then saves a state; if the disk does not take it, only reports that."""
        for metrics in self.train_step.drain():
            self._log_step(metrics)
        self.saved = time.monotonic()
        if not self.states:
            return
        tensors = self.train_step.sgd.state()
        if bad := [name for name, x in tensors.items() if x.is_floating_point() and not torch.isfinite(x).all()]:
            raise FloatingPointError(
                f"{bad[0]} is not finite after step {done}: lower learning_rate; {self.states.describe_latest()}"
            )
        try:
            # States of format d3d-state-1 call the meter "tally".
            self.states.save(done, tensors, {"tally": asdict(self.meter), "refused": self.data.refused})
        except OSError as error:
            self.report(f"{error.strerror}; training continues, {self.states.describe_latest()}")

    def _raise_stopped(self, done: int) -> None:
        self.team.broadcast(None)  # a barrier: torchrun ends the first process soon after another has exited
        signum = next(iter(self.signals), signal.SIGTERM)
        name = signal.Signals(signum).name
        state = f"{self.states.describe_latest()}; " if self.states else ""
        raise Stopped(
            signum,
            f"stopped by {name} after step {done} of {len(self.steps)}; {state}run the same command again to resume",
        )


def _check_clips(config: TrainConfig, clips: ClipSet, classes: int, team: Team, report: Callable[[str], None]) -> None:
    """Raises ValueError if a batch is too small for batch norm or a label is no class; reports a smaller batch."""
    batch_size, accumulate = config.optimiser.batch_size, config.optimiser.accumulate
    min_size = 2 * accumulate * team.size
    if effective_batch_size(len(clips), config.optimiser) < min_size:
        size = f"batch_size {batch_size}" if batch_size < min_size else f"the number of training clips, {len(clips)},"
        raise ValueError(
            f"{size} is too small for {team.size} process{'es' * (team.size > 1)} with accumulate {accumulate}: batch "
            f"norm needs two clips per micro-batch of each process, at least {min_size}"
        )
    low, high = int(clips.labels.min()), int(clips.labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must lie between 0 and {classes - 1}, those of the training clips reach {low}..{high}"
        )
    if len(clips) < batch_size:
        report(
            f"batch_size is {batch_size}, but there are only {len(clips)} training clips: each step uses all of them"
        )


@contextmanager
def _catch_signals(enabled: bool) -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list instead of letting them end the process."""
    received: list[int] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield received
        return
    handlers = {s: signal.signal(s, lambda signum, _: received.append(signum)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def silent(line: str) -> None:
    """Reports nothing, for all processes but the first."""


def _warmup_cosine(warmup: float, steps: int) -> Callable[[int], float]:
    """Linear warm-up over the share `warmup` of the steps, then half a cosine to 0 (Loshchilov and Hutter 2017)."""
    warmup_steps = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))

    return factor
