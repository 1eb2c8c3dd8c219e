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
from typing import Any

import numpy as np
import torch

from d3d.checkpoints import States
from d3d.clips import ClipSet
from d3d.datasets import Data
from d3d.networks import Teacher
from d3d.progress import EVERY, MetricsFile, Progress
from d3d.s3dg import S3DG
from d3d.steps import Step, Told, steps_an_epoch
from d3d.team import ALONE, Team
from d3d.train_config import TrainConfig


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
        for name in ("loss", "cross_entropy", "distance", "top1"):
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
    # One generator for a run: the order of the clips follows from the seed alone.
    order = np.random.default_rng((config.seed, config.twin))
    batches = steps_an_epoch(len(clips), config, team)
    plan = [
        (rows, (config.seed, config.twin, epoch))
        for epoch in range(config.epochs)
        for rows in np.array_split(order.permutation(len(clips)), batches)
    ]
    step = Step(model, config, clips, teacher=teacher, team=team, capture=capture)
    tally, first = Tally(), 0
    if found := team.share(states.latest() if states else None):
        first = found.step
        step.restore(found.tensors)
        tally = Tally(**found.about["tally"])
        data.refused.update(found.about["refused"])
        report(f"going on after step {first} of {len(plan)}")
    coming = iter(clips.batches([(step.share_of(r), draw) for r, draw in plan[first:]], step.streams))
    table = MetricsFile(metrics, keep=first) if metrics else None
    _write(table, {"event": "start", "step": first, "params": asdict(config), "processes": team.size})
    saved = wrote = began = time.monotonic()
    rises = _warmup_cosine(config.warmup, len(plan))
    stop_after, counted = len(plan), 0.0

    with (
        Progress(len(plan) - first, "steps", report if team.first else silent) as progress,
        _signals(states is not None or team.size > 1) as asked,
    ):

        def settle(told: Told) -> None:
            """Counts a step that is done."""
            nonlocal wrote, began, stop_after, counted
            terms, at = told.terms, told.position + 1
            if terms["stop"]:
                # Where every process has been told, however far each is.
                stop_after = min(stop_after, told.position + step.lag)
            if not math.isfinite(terms["loss"]):
                if not team.first:
                    sys.exit(1)  # the first process says it
                raise FloatingPointError(
                    f"the loss is not finite at step {at} of {len(plan)} (epoch {told.position // batches + 1}): "
                    + ", ".join(f"{name} {terms[name]:.4g}" for name in ("loss", "cross_entropy", "distance"))
                    + f"; lower learning_rate; {states.newest() if states else 'no state was saved before'}"
                )
            tally.add(terms)
            progress.step(clips=terms["clips"])
            counted += terms["clips"]
            if at % batches == 0:
                if not tally.clips:
                    why = next(iter(data.refused.values()), "see the other processes")
                    raise ValueError(f"no training clip could be read in epoch {at // batches}: {why}")
                speed = counted / (time.monotonic() - began)
                row = tally.close()
                rate = config.learning_rate * rises(told.position)
                _write(table, {"step": at, **row, "learning_rate": rate, "clips_per_second": round(speed, 1)})
                shown = "  ".join(f"{k} {v:.3f}" for k, v in row.items() if k != "epoch")
                progress.say(f"epoch {row['epoch']:3d}/{config.epochs}  {shown}  {speed:,.0f} clips/s")
                wrote = began = time.monotonic()
                counted = 0.0
            elif tally.clips and time.monotonic() - wrote > EVERY:
                _write(table, {"step": at, "epoch": at / batches, **tally.means()})
                wrote = time.monotonic()

        def save(at: int, *, must: bool = False) -> None:
            nonlocal saved
            for told in step.rest():
                settle(told)
            if states:
                _save(states, step, at, {"tally": asdict(tally), "refused": data.refused}, report, must=must)
            saved = time.monotonic()

        for position in range(first, len(plan)):
            batch = next(coming) if clips.redrawn else None
            rate = config.learning_rate * rises(position)
            for told in step(position, plan[position][0], rate=rate, batch=batch, stop=bool(asked)):
                settle(told)
            if position == first:
                _write(table, {"event": "first step", "step": position + 1})
            if position >= stop_after:
                break
            if states and time.monotonic() - saved > config.save_every:
                save(position + 1)
        else:
            position = len(plan) - 1
            save(position + 1)  # what follows may be stopped too
        if position < len(plan) - 1 or int(team.sum_(torch.tensor([len(asked)], device=step.device))):
            save(position + 1, must=True)
            team.share(None)  # torchrun ends the first process soon after another has left
            signum = next(iter(asked), signal.SIGTERM)
            raise Stopped(
                signum,
                f"stopped by {signal.Signals(signum).name} after step {position + 1} of {len(plan)}; "
                + ("start it again to go on" if states or not team.first else "nothing was saved"),
            )
    return tally.history


def _check(config: TrainConfig, clips: ClipSet, classes: int, team: Team) -> None:
    if len(clips) < config.batch_size:
        raise ValueError(f"batch_size is {config.batch_size}, there are {len(clips)} training clips: ask for no more")
    if config.batch_size < 2 * config.accumulate * team.size:
        raise ValueError(
            f"batch_size {config.batch_size} is too small for {team.size} processes in {config.accumulate} parts: "
            f"batch norm needs two clips each, at least {2 * config.accumulate * team.size}"
        )
    low, high = int(clips.labels.min()), int(clips.labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must lie between 0 and {classes - 1}, those of the training clips reach {low}..{high}"
        )


def _save(
    states: States, step: Step, at: int, about: dict[str, Any], report: Callable[[str], None], *, must: bool
) -> None:
    tensors = step.state()
    if bad := [name for name, x in tensors.items() if x.is_floating_point() and not torch.isfinite(x).all()]:
        raise FloatingPointError(f"{bad[0]} is not finite after step {at}: lower learning_rate; {states.newest()}")
    try:
        states.save(at, tensors, about)
    except OSError as error:
        if must:
            raise
        report(f"{error.strerror}; going on, {states.newest()}")


def _write(table: MetricsFile | None, row: dict[str, Any]) -> None:
    if table:
        table.append(row)


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
