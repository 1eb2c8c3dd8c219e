"""The loop: epochs of steps, states from which a killed run goes on, and the end that a signal asks for.

history = fit(model, config, data, states=States(folder, fixed), metrics="run.jsonl")
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
from d3d.train.step import COUNTS, Step, StepMetrics, steps_per_epoch
from d3d.train.team import ALONE, Team


class Stopped(Exception):
    """The run was asked to stop, and saved its state first."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@dataclass
class Tally:
    """What an epoch has told so far, and a row for each that is over."""

    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    clips: float = 0.0

    def add(self, terms: dict[str, float]) -> None:
        """The means of a step count by its clips."""
        clips = terms["clips"]
        for name in (name for name in terms if name not in COUNTS):
            self.sums[name] = self.sums.get(name, 0.0) + terms[name] * clips
        self.clips += clips

    def means(self) -> dict[str, float]:
        return {name: value / self.clips for name, value in self.sums.items()}

    def close(self) -> dict[str, float]:
        """Ends the epoch."""
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
    metrics: str | Path | None = None,
    report: Callable[[str], None] = print,
    capture: bool | None = None,
) -> list[dict[str, float]]:
    """Trains `model` in place by SGD with warm-up and cosine decay; returns a row an epoch, reported as it ends.

    With a teacher the loss is cross-entropy + lambda_ · distance. Every clip is used once an epoch, in batches of equal
    size give or take one, at most `batch_size` where that leaves batch norm two clips a part. With `states` the run
    goes on from the newest, saves one every `save_every` seconds and at the end, and one before SIGTERM or Ctrl-C stop
    it. metrics: the file that gets a row an epoch, and one every ten seconds. capture: as of `Step`.
    Raises FloatingPointError naming step, terms and the last good state where the loss is not finite, Stopped where a
    signal asked for it, ValueError for labels that are no class, for fewer clips than a batch, or where an epoch has
    none that can be read.
    """
    clips = data.splits["train"]
    _check(config, clips, len(data.classes), team)
    step = Step(model, config, clips, Objective(config, teacher), team=team, capture=capture)
    run = _Run(config, data, step, team, states, report)
    first = run.resume()
    if metrics:
        run.table = MetricsFile(metrics, last_step=first)
        run.table.append({"event": "start", "step": first, "params": flatten(config), "processes": team.size})
    with (
        Progress(len(run.plan) - first, "steps", report if team.first else silent) as run.progress,
        _signals(states is not None or team.size > 1) as run.asked,
    ):
        run.go(first)
    return run.tally.history


class _Run:
    """A run between its steps: what they told, what is saved, whether it is to stop."""

    progress: Progress
    asked: list[int]  # signals that came
    table: MetricsFile | None = None

    def __init__(
        self,
        config: TrainConfig,
        data: Data,
        step: Step,
        team: Team,
        states: States | None,
        report: Callable[[str], None],
    ) -> None:
        self.config, self.data, self.step, self.team = config, data, step, team
        self.states, self.report = states, report
        clips = len(data.splits["train"])
        # One generator for a run: the order of the clips follows from the seed alone.
        seed = config.run.seed, config.run.twin
        order = np.random.default_rng(seed)
        self.epoch = steps_per_epoch(clips, config.optimiser, team)
        self.plan = [
            (rows, (*seed, epoch))
            for epoch in range(config.optimiser.epochs)
            for rows in np.array_split(order.permutation(clips), self.epoch)
        ]
        self.lr_schedule = _warmup_cosine(config.optimiser.warmup, len(self.plan))
        self.tally = Tally()
        self.stop_after = len(self.plan)
        self.seen = 0.0  # clips since `began`

    def resume(self) -> int:
        """Goes back to the newest state on all processes; how many steps it had behind it."""
        found = self.team.share(self.states.latest() if self.states else None)
        if not found:
            return 0
        self.step.sgd.restore(found.tensors)
        self.tally = Tally(**found.about["tally"])
        self.data.refused.update(found.about["refused"])
        self.report(f"going on after step {found.step} of {len(self.plan)}")
        return found.step

    def go(self, first: int) -> None:
        """The steps from `first` on. Raises Stopped where a signal came to any process."""
        clips, done, last = self.data.splits["train"], first, len(self.plan)
        mine = [(self.step.share_of(rows), draw) for rows, draw in self.plan[first:]]
        coming = iter(clips.batches(mine, self.step.objective.streams)) if clips.augmented else None
        self.saved = self.wrote = self.began = time.monotonic()
        while done < min(last, self.stop_after + 1):
            batch = next(coming) if coming else None
            rows, rate = self.plan[done][0], self._rate(done)
            for metrics in self.step(done, rows, rate=rate, batch=batch, stop=bool(self.asked)):
                self._settle(metrics)
            done += 1
            if self.table and done == first + 1:
                self.table.append({"event": "first step", "step": done})
            if self.states and done < last and time.monotonic() - self.saved > self.config.run.save_every:
                self._save(done)
        self._save(done)
        # A signal may have come after the last step told of those before it.
        came = self.team.sum_(torch.tensor([len(self.asked)], device=self.step.device))
        if done < last or int(came):
            self._stop(done)

    def _rate(self, position: int) -> float:
        return self.config.optimiser.learning_rate * self.lr_schedule(position)

    def _settle(self, metrics: StepMetrics) -> None:
        """Counts a step that is done."""
        position, terms = metrics
        at = position + 1
        if terms["stop"]:
            # A step that every process will have heard of it by, however far each is.
            self.stop_after = min(self.stop_after, position + self.step.lag)
        if not math.isfinite(terms["loss"]):
            self._fail(metrics)
        self.tally.add(terms)
        self.progress.update(clips=terms["clips"])
        self.seen += terms["clips"]
        if at % self.epoch == 0:
            self._end_epoch(position)
        elif self.table and self.tally.clips and time.monotonic() - self.wrote > LOG_INTERVAL:
            self.table.append({"step": at, "epoch": at / self.epoch, **self.tally.means()})
            self.wrote = time.monotonic()

    def _end_epoch(self, position: int) -> None:
        if not self.tally.clips:
            why = next(iter(self.data.refused.values()), "see the other processes")
            raise ValueError(f"no training clip could be read in epoch {position // self.epoch + 1}: {why}")
        speed = self.seen / (time.monotonic() - self.began)
        row = self.tally.close()
        if self.table:
            rates = {"learning_rate": self._rate(position), "clips_per_second": round(speed, 1)}
            self.table.append({"step": position + 1} | row | rates)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "epoch")
        self.progress.log(f"epoch {row['epoch']:3d}/{self.config.optimiser.epochs}  {shown}  {speed:,.0f} clips/s")
        self.wrote = self.began = time.monotonic()
        self.seen = 0.0

    def _fail(self, metrics: StepMetrics) -> None:
        if not self.team.first:
            sys.exit(1)  # the first process says it
        terms = ", ".join(f"{name} {metrics.values[name]:.4g}" for name in self.step.objective.losses)
        raise FloatingPointError(
            f"the loss is not finite at step {metrics.position + 1} of {len(self.plan)} (epoch "
            f"{metrics.position // self.epoch + 1}): {terms}; lower learning_rate; "
            + (self.states.newest() if self.states else "no state was saved before")
        )

    def _save(self, done: int) -> None:
        """Waits for the steps under way; then saves, where a disk that takes nothing is only reported."""
        for metrics in self.step.drain():
            self._settle(metrics)
        self.saved = time.monotonic()
        if not self.states:
            return
        tensors = self.step.sgd.state()
        if bad := [name for name, x in tensors.items() if x.is_floating_point() and not torch.isfinite(x).all()]:
            raise FloatingPointError(
                f"{bad[0]} is not finite after step {done}: lower learning_rate; {self.states.newest()}"
            )
        try:
            self.states.save(done, tensors, {"tally": asdict(self.tally), "refused": self.data.refused})
        except OSError as error:
            self.report(f"{error.strerror}; going on, {self.states.newest()}")

    def _stop(self, done: int) -> None:
        self.team.share(None)  # torchrun ends the first process soon after another has left
        signum = next(iter(self.asked), signal.SIGTERM)
        kept = f"{self.states.newest()}, start it again to go on" if self.states else "start it again to go on"
        name = signal.Signals(signum).name
        raise Stopped(signum, f"stopped by {name} after step {done} of {len(self.plan)}; {kept}")


def _check(config: TrainConfig, clips: ClipSet, classes: int, team: Team) -> None:
    batch_size, accumulate = config.optimiser.batch_size, config.optimiser.accumulate
    if len(clips) < batch_size:
        raise ValueError(f"batch_size is {batch_size}, there are {len(clips)} training clips: ask for no more")
    if batch_size < 2 * accumulate * team.size:
        raise ValueError(
            f"batch_size {batch_size} is too small for {team.size} processes in {accumulate} parts: "
            f"batch norm needs two clips each, at least {2 * accumulate * team.size}"
        )
    low, high = int(clips.labels.min()), int(clips.labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must lie between 0 and {classes - 1}, those of the training clips reach {low}..{high}"
        )


@contextmanager
def _signals(wanted: bool) -> Iterator[list[int]]:
    """Notes SIGTERM and SIGINT instead of dying of them."""
    asked: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {s: signal.signal(s, lambda signum, _: asked.append(signum)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def silent(line: str) -> None:
    """For processes that leave reporting to the first."""


def _warmup_cosine(warmup: float, steps: int) -> Callable[[int], float]:
    """Linear rise over the first share of steps, then half a cosine to zero (Loshchilov and Hutter 2017)."""
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))

    return factor
