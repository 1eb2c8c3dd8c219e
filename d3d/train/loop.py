"""The training loop: epochs of steps, states from which a killed run resumes, and an orderly stop on signals.

with Lease(folder) as lease:
    history = fit(model, config, data, states=States(lease, settings={"seed": 3}), metrics_path="run.jsonl")
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from d3d.data.clips import ClipSet
from d3d.data.load import Data
from d3d.progress import LOG_INTERVAL, MetricsFile, Progress
from d3d.s3dg.network import S3DG
from d3d.study.parameters import TrainConfig
from d3d.study.schema import flatten
from d3d.train.lessons import FIT_STEPS, build_head, fit_head
from d3d.train.losses import get_distance
from d3d.train.networks import Lesson
from d3d.train.objective import Objective
from d3d.train.order import steps_of
from d3d.train.states import States
from d3d.train.step import COUNTS, StepMetrics, TrainStep, effective_batch_size, steps_per_epoch
from d3d.train.team import SINGLE_PROCESS, Team

# One Ctrl-C or end of a job can reach a process twice; seconds later it is meant.
PATIENCE = 10.0


class Stopped(Exception):
    """A signal stopped the run, after its state was saved unless the message says otherwise."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@dataclass
class AverageMeter:
    """Averages the metrics of steps over each epoch.

    Attributes:
        history: for each finished epoch its number, from 1, and the mean of each metric over its clips.
        sums: sum over the clips of the current epoch so far, by metric.
        clips: number of clips of the current epoch so far.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    clips: float = 0.0

    def add(self, values: dict[str, float]) -> None:
        """Adds the means of one step, weighted by its number of clips."""
        num_clips = values["clips"]
        for name in (name for name in values if name not in COUNTS):
            self.sums[name] = self.sums.get(name, 0.0) + values[name] * num_clips
        self.clips += num_clips

    def means(self) -> dict[str, float]:
        return {name: value / self.clips for name, value in self.sums.items()}

    def end_epoch(self) -> dict[str, float]:
        """Appends the epoch's means to the history, starts the next epoch and returns these means."""
        self.history.append({"epoch": len(self.history) + 1, **self.means()})
        self.sums, self.clips = {}, 0.0
        return self.history[-1]


def fit(
    model: S3DG,
    config: TrainConfig,
    data: Data,
    *,
    teacher: Lesson | None = None,
    team: Team = SINGLE_PROCESS,
    states: States | None = None,
    metrics_path: str | Path | None = None,
    report: Callable[[str], None] = print,
    capture: bool | None = None,
) -> list[dict[str, float]]:
    """Trains a network in place by SGD with warm-up and cosine decay.

    Every clip is used once per epoch. The sizes of batches differ by at most one and do not exceed `batch_size`, unless
    batch norm needs larger batches: two clips per micro-batch.

    Args:
        model: the network.
        config: the run's configuration.
        data: the data set, of which the split `train` is used.
        teacher: if given, the distance to its outputs, times `lambda_`, is added to the cross-entropy.
        team: the processes that train together.
        states: the run resumes from the newest of them, and saves one every `save_every` seconds, at the end, and when
            SIGTERM or Ctrl-C stops it.
        metrics_path: JSON Lines file to which metrics are appended after each epoch and every ten seconds.
        report: receives one line per epoch; called in the first process only.
        capture: as for `TrainStep`.

    Returns:
        For each epoch a dict of `epoch`, from 1, and the means of `Objective.metric_names`.

    Raises:
        FloatingPointError: if the loss is not finite; the message names the step, the losses and the last saved state.
        Stopped: if a signal stopped the run.
        LeaseError: if another process has taken the folder of the states over.
        ValueError: if a label is not in 0 to K - 1, if there are too few clips for batch norm, or if none of an epoch's
            clips can be read.
    """
    if teacher and teacher.partners is not None:
        train = data.splits["train"].with_partners(teacher.partners)
        data = replace(data, splits=data.splits | {"train": train})
    clips = data.splits["train"]
    report = report if team.is_main else no_report
    _check_clips(config, clips, len(data.classes), team, report)
    layer = config.distillation.layer
    learns_layer = teacher and get_distance(config.distillation.distance).output == "layer"
    head = build_head(model, layer, teacher.channels) if learns_layer else None
    train_step = TrainStep(model, config, clips, Objective(config, teacher, head), team=team, capture=capture)
    training = _Training(config, data, train_step, team, states, report)
    start_step = training.resume()
    if head and not start_step:
        requests = [(train_step.local_part(rows), seeds) for rows, seeds in training.steps[:FIT_STEPS]]
        batches = clips.batches(requests, train_step.objective.streams)
        fit_head(head, model, teacher, batches, stream=config.network.stream, layer=layer, team=team)
    if metrics_path:
        check = {"check": states.lease.check} if states else {}
        training.metrics_file = MetricsFile(metrics_path, last_step=start_step, report=report, **check)
        training.metrics_file.append(
            {"event": "start", "step": start_step, "params": flatten(config), "processes": team.size}
        )
    with (
        Progress(len(training.steps) - start_step, "steps", report) as training.progress,
        _catch_signals(states is not None or team.size > 1) as training.signals,
    ):
        training.train(start_step)
    return training.meter.history


class _Training:
    """Runs the steps of a run, logs their metrics, saves states, and stops after a signal."""

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
        clips = data.splits["train"]
        self.steps_per_epoch = steps_per_epoch(clips.num_labelled, config.optimiser, team)
        self.steps = steps_of(config, clips, self.steps_per_epoch)
        self.lr_schedule = warmup_cosine(config.optimiser.warmup, len(self.steps))
        self.meter = AverageMeter()
        self.stop_after = len(self.steps)
        self.queue_times: dict[int, float] = {}  # of the steps that are not known to be finished, by step
        self.timed_clips = 0.0  # clips of the steps that are known to be finished since an epoch was

    def resume(self) -> int:
        """Restores the newest state in all processes and returns the number of completed steps, 0 without a state."""
        state = self.team.broadcast(self.states.latest() if self.states else None)
        if not state:
            return 0
        self.train_step.sgd.load_state_dict(state.tensors)
        self.meter = AverageMeter(**state.metadata["tally"])
        self.data.refused.update(state.metadata["refused"])
        self.report(f"resuming after step {state.step} of {len(self.steps)}")
        return state.step

    def train(self, start_step: int) -> None:
        """Runs the steps from index `start_step` on; raises Stopped if any process received a signal."""
        clips, steps_done, total = self.data.splits["train"], start_step, len(self.steps)
        local_steps = [(self.train_step.local_part(rows), view_seeds) for rows, view_seeds in self.steps[start_step:]]
        streams = self.train_step.objective.streams
        batches = None if clips.in_memory else iter(clips.batches(local_steps, streams))
        self.last_save_time = self.last_log_time = time.monotonic()
        # When the last step of the previous epoch was queued, and when it was known to be finished.
        self.queued_until = self.finished_until = time.monotonic()
        while steps_done < min(total, self.stop_after + 1):
            if self.states:
                self.states.lease.raise_if_lost()
            batch = next(batches) if batches else None
            rows, view_seeds = self.steps[steps_done]
            finished = self.train_step(
                steps_done,
                rows,
                view_seeds=view_seeds,
                learning_rate=self._learning_rate(steps_done),
                batch=batch,
                stop=bool(self.signals),
            )
            self.queue_times[steps_done] = time.monotonic()
            self._log_steps(finished)
            steps_done += 1
            if self.metrics_file and steps_done == start_step + 1:
                self.metrics_file.append({"event": "first step", "step": steps_done})
            save_is_due = time.monotonic() - self.last_save_time > self.config.run.save_every
            if self.states and steps_done < total and save_is_due:
                self._drain_and_save(steps_done)
        self._drain_and_save(steps_done)
        # Also counts signals that were received after the last step had started.
        signals = self.team.all_reduce_(torch.tensor([len(self.signals)], device=self.train_step.device))
        if steps_done < total or int(signals):
            self._raise_stopped(steps_done)

    def _learning_rate(self, step: int) -> float:
        return self.config.optimiser.learning_rate * self.lr_schedule(step)

    def _log_steps(self, finished: list[StepMetrics]) -> None:
        """Logs steps that are known to be finished since the previous call.

        All that is finished counts once, over the time since an epoch was last known to be finished, in which states
        are also saved: on a GPU several epochs can become known at once. On a GPU that waits for the clips, steps are
        known to be finished long after they were; what counts then is the time in which they were queued.
        """
        if not finished:
            return
        now, queue_time = time.monotonic(), [self.queue_times.pop(metrics.step) for metrics in finished][-1]
        self.timed_clips += sum(metrics.values["clips"] for metrics in finished)
        seconds = max(now - self.finished_until, queue_time - self.queued_until, 1e-9)
        for metrics in finished:
            self._log_step(metrics, self.timed_clips / seconds)
        if any((metrics.step + 1) % self.steps_per_epoch == 0 for metrics in finished):
            self.timed_clips, self.finished_until, self.queued_until = 0.0, now, queue_time

    def _log_step(self, metrics: StepMetrics, clips_per_second: float) -> None:
        step, values = metrics
        if values["stop"]:
            # Processes learn of a stop up to `lag` steps later; all of them must stop after the same step.
            self.stop_after = min(self.stop_after, step + self.train_step.lag)
        if not math.isfinite(values["loss"]):
            self._raise_not_finite(metrics)
        self.meter.add(values)
        self.progress.update(clips=values["clips"])
        steps_done = step + 1
        if steps_done % self.steps_per_epoch == 0:
            self._end_epoch(step, clips_per_second)
        elif self.metrics_file and self.meter.clips and time.monotonic() - self.last_log_time > LOG_INTERVAL:
            epoch = steps_done / self.steps_per_epoch
            self.metrics_file.append({"step": steps_done, "epoch": epoch, **self.meter.means()})
            self.last_log_time = time.monotonic()

    def _end_epoch(self, step: int, clips_per_second: float) -> None:
        if not self.meter.clips:
            reason = next(iter(self.data.refused.values()), "the output of another process has the reason")
            raise ValueError(f"no training clip could be read in epoch {step // self.steps_per_epoch + 1}: {reason}")
        epoch_means = self.meter.end_epoch()
        if self.metrics_file:
            rates = {"learning_rate": self._learning_rate(step), "clips_per_second": round(clips_per_second, 1)}
            self.metrics_file.append({"step": step + 1} | epoch_means | rates)
        means = "  ".join(f"{name} {value:.3f}" for name, value in epoch_means.items() if name != "epoch")
        epoch = f"epoch {epoch_means['epoch']:3d}/{self.config.optimiser.epochs}"
        self.progress.log(f"{epoch}  {means}  {clips_per_second:,.0f} clips/s")
        self.last_log_time = time.monotonic()

    def _raise_not_finite(self, metrics: StepMetrics) -> None:
        if not self.team.is_main:
            sys.exit(1)  # the first process raises
        losses = ", ".join(f"{name} {metrics.values[name]:.4g}" for name in self.train_step.objective.loss_names)
        raise FloatingPointError(
            f"the loss is not finite at step {metrics.step + 1} of {len(self.steps)} (epoch "
            f"{metrics.step // self.steps_per_epoch + 1}): {losses}; lower learning_rate; "
            + (self.states.describe_latest() if self.states else "no state was saved")
        )

    def _drain_and_save(self, steps_done: int) -> None:
        """Waits for the steps in flight, then saves a state; if writing fails, reports the error and returns."""
        self._log_steps(self.train_step.drain())
        self.last_save_time = time.monotonic()
        if not self.states:
            return
        tensors = self.train_step.sgd.state_dict()
        if not_finite := [name for name, x in tensors.items() if x.is_floating_point() and not torch.isfinite(x).all()]:
            raise FloatingPointError(
                f"{not_finite[0]} is not finite after step {steps_done}: lower learning_rate; "
                + self.states.describe_latest()
            )
        try:
            # States of format d3d-state-1 call the meter "tally".
            self.states.save(steps_done, tensors, {"tally": asdict(self.meter), "refused": self.data.refused})
        except OSError as error:
            self.report(f"{error.strerror}; training continues, {self.states.describe_latest()}")

    def _raise_stopped(self, steps_done: int) -> None:
        self.team.broadcast(None)  # a barrier: torchrun ends the first process soon after another has exited
        signum = next(iter(self.signals), signal.SIGTERM)
        name = signal.Signals(signum).name
        state = f"{self.states.describe_latest()}; " if self.states else ""
        raise Stopped(
            signum,
            f"stopped by {name} after step {steps_done} of {len(self.steps)}; {state}run the same command again to "
            "resume",
        )


def _check_clips(
    config: TrainConfig, clips: ClipSet, num_classes: int, team: Team, report: Callable[[str], None]
) -> None:
    """Raises ValueError for too small a batch or a label out of range; reports if `batch_size` exceeds the clips."""
    batch_size, accumulate = config.optimiser.batch_size, config.optimiser.accumulate
    num_clips = clips.num_labelled
    min_size = 2 * accumulate * team.size
    if effective_batch_size(num_clips, config.optimiser) < min_size:
        size = f"batch_size {batch_size}" if batch_size < min_size else f"the number of training clips, {num_clips},"
        raise ValueError(
            f"{size} is too small for {team.size} process{'es' * (team.size > 1)} with accumulate {accumulate}: batch "
            f"norm needs two clips per micro-batch of each process, at least {min_size}"
        )
    low, high = int(clips.labels.min()), int(clips.labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must lie between 0 and {num_classes - 1}, those of the training clips reach {low}..{high}"
        )
    if num_clips < batch_size:
        report(f"batch_size is {batch_size}, but there are only {num_clips} training clips: each step uses all of them")


@contextmanager
def _catch_signals(enabled: bool) -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list, after which the run stops when its step is done.

    Raises:
        Stopped: for a signal `PATIENCE` seconds after the first, since the step seems to hang.
    """
    received: list[int] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield received
        return
    started: list[float] = []

    def receive(signum: int, _: object) -> None:
        received.append(signum)
        started.append(time.monotonic())
        if started[-1] - started[0] > PATIENCE:
            raise Stopped(
                signum,
                f"stopped by a second {signal.Signals(signum).name} before the step ended, without a new state; run "
                "the same command again to resume",
            )

    handlers = {s: signal.signal(s, receive) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def no_report(line: str) -> None:
    """Discards a line: the `report` of all processes but the first."""


def warmup_cosine(warmup: float, num_steps: int) -> Callable[[int], float]:
    """Returns the factor of the learning rate by step: linear warm-up, then half a cosine to 0.

    Loshchilov and Hutter 2017.

    Args:
        warmup: the fraction of the steps that warm up, at least one.
        num_steps: number of steps.
    """
    warmup_steps = max(1, round(warmup * num_steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps))

    return factor
