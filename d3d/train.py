"""One loop for streams, distillation and fine-tuning, on a CPU, a GPU, or many.

    python -m d3d.train --config FILE                                         # one process
    torchrun --standalone --nproc-per-node 4 -m d3d.train --config FILE       # four GPUs of one host
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m d3d.train --config FILE

FILE is YAML: `experiment: train` or `distill`, and parameters of that notebook (or a whole profile). What comes of it
lies in <results>/<experiment>/: <arm>-seed<seed>.json the record, .npz predictions and curves, .safetensors the
weights, .jsonl the metrics as they came. A run that was killed goes on from its last state, .state/, when it is
started again.
"""

import argparse
import math
import os
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
import yaml

from d3d import notebooks, records, study
from d3d.checkpoints import States, save_checkpoint
from d3d.clips import ClipSet
from d3d.datasets import Data, load
from d3d.evaluate import accuracy, predict
from d3d.networks import Teacher, build, load_teacher, teacher_streams
from d3d.progress import EVERY, MetricsFile, Progress
from d3d.records import Record
from d3d.s3dg import S3DG
from d3d.steps import Step, Told
from d3d.team import ALONE, Team, joined
from d3d.train_config import CONFIGS, DistillConfig, TrainConfig

__all__ = ["DistillConfig", "TrainConfig", "build", "fit", "load_teacher", "run", "score", "teacher_streams"]


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
    size give or take one and at most `batch_size`. With `states` the run goes on from the newest, saves one every
    `save_every` seconds, and saves one before SIGTERM or Ctrl-C stop it. metrics: the file that gets a row an epoch,
    and one every ten seconds. capture: as of `Step`.
    Raises FloatingPointError naming step, terms and the last good state where the loss is not finite, Stopped where a
    signal asked for it, ValueError for labels that are no class, for fewer clips than a batch, or where an epoch has
    none that can be read.
    """
    clips = data.splits["train"]
    _check(config, clips, len(data.classes), team)
    # One generator for a run: the order of the clips follows from the seed alone.
    order = np.random.default_rng((config.seed, config.twin))
    batches = min(math.ceil(len(clips) / config.batch_size), len(clips) // (2 * config.accumulate * team.size))
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
        tally = Tally(**found.about)
        report(f"going on after step {first} of {len(plan)}")
    coming = iter(clips.batches([(step.share_of(r), draw) for r, draw in plan[first:]], step.streams))
    table = MetricsFile(metrics, keep=first) if metrics else None
    _write(table, {"event": "start", "step": first, "params": asdict(config), "processes": team.size})
    saved = wrote = began = time.monotonic()
    rises = _warmup_cosine(config.warmup, len(plan))

    with (
        Progress(len(plan) - first, "steps", report if team.first else _silent) as progress,
        _signals(states is not None or team.size > 1) as asked,
    ):

        def settle(told: Told) -> bool:
            """Counts a step that is done; whether a process was asked to stop by then."""
            nonlocal wrote, began
            terms, at = told.terms, told.position + 1
            if not math.isfinite(terms["loss"]):
                raise FloatingPointError(
                    f"the loss is not finite at step {at} of {len(plan)} (epoch {told.position // batches + 1}): "
                    + ", ".join(f"{name} {terms[name]:.4g}" for name in ("loss", "cross_entropy", "distance"))
                    + f"; lower learning_rate; {states.newest() if states else 'no state was saved before'}"
                )
            tally.add(terms)
            progress.step(clips=terms["clips"])
            if at % batches == 0:
                if not tally.clips:
                    why = next(iter(data.refused.values()), "see the other processes")
                    raise ValueError(f"no training clip could be read in epoch {at // batches}: {why}")
                rate = tally.clips / (time.monotonic() - began)
                row = tally.close()
                told_row = {"step": at, **row, "learning_rate": config.learning_rate * rises(told.position)}
                _write(table, told_row | {"clips_per_second": round(rate, 1)})
                shown = "  ".join(f"{k} {v:.3f}" for k, v in row.items() if k != "epoch")
                progress.say(f"epoch {row['epoch']:3d}/{config.epochs}  {shown}  {rate:,.0f} clips/s")
                wrote = began = time.monotonic()
            elif tally.clips and time.monotonic() - wrote > EVERY:
                _write(table, {"step": at, "epoch": at / batches, **tally.means()})
                wrote = time.monotonic()
            return terms["stop"] > 0

        for position in range(first, len(plan)):
            rows = plan[position][0]
            batch = next(coming) if clips.redrawn else None
            rate = config.learning_rate * rises(position)
            told = step(position, rows, rate=rate, batch=batch, stop=bool(asked))
            if position == first:
                _write(table, {"event": "first step", "step": position + 1})
            stop = max([settle(t) for t in told], default=False)
            if states and (stop or time.monotonic() - saved > config.save_every):
                for t in step.rest():
                    settle(t)
                _save(states, step, position + 1, tally, report, must=stop)
                saved = time.monotonic()
            if stop:
                signum = next(iter(asked), signal.SIGTERM)
                raise Stopped(
                    signum,
                    f"stopped by {signal.Signals(signum).name} after step {position + 1} of {len(plan)}; "
                    + ("start it again to go on" if states or not team.first else "nothing was saved"),
                )
        for t in step.rest():
            settle(t)
        if states and states.paths():
            # What follows may be killed too.
            _save(states, step, len(plan), tally, report)
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
    states: States, step: Step, at: int, tally: Tally, report: Callable[[str], None], *, must: bool = False
) -> None:
    tensors = step.state()
    if bad := [name for name, x in tensors.items() if x.is_floating_point() and not torch.isfinite(x).all()]:
        raise FloatingPointError(f"{bad[0]} is not finite after step {at}: lower learning_rate; {states.newest()}")
    try:
        states.save(at, tensors, asdict(tally))
    except OSError as error:
        if must:
            raise
        report(f"{error.strerror}; going on, {states.newest()}")


def _write(table: MetricsFile | None, row: dict[str, Any]) -> None:
    if table:
        table.append(row)


def _silent(line: str) -> None:
    pass


def _say(line: str) -> None:
    """Prints, and where nobody reads any more asks this process to stop."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        os.kill(os.getpid(), signal.SIGTERM)


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


def score(
    model: S3DG, data: Data, stream: str, *, team: Team = ALONE
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics such as `iid/top1` and `iid/motion/top1` of every test split; logits, labels and groups behind them.

    Each process scores its share; all get everything. Clips in files that could not be read do not count, and the
    record's `files` names them. Raises ValueError where other clips were left out, or none could be read.
    """
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, clips in data.tests.items():
        shares = [np.arange(len(clips))[rank :: team.size] for rank in range(team.size)]
        parts = team.gather(predict(model, clips, stream, rows=shares[team.rank]))
        logits = np.full((len(clips), len(data.classes)), np.nan, np.float32)
        for rows, part in zip(shares, parts, strict=True):
            logits[rows] = part
        labels, groups = clips.labels.cpu().numpy(), clips.groups
        expected = np.ones(len(clips), bool)
        if clips.redrawn:
            for unread in team.gather(dict(clips.unread)):
                clips.unread.update(unread)
            expected = ~clips.table["path"].isin(clips.unread).to_numpy()
            if not expected.any():
                raise ValueError(f"no clip of split {name!r} could be read: {next(iter(clips.unread.values()))}")
        logits, labels, groups = logits[expected], labels[expected], groups[expected]
        if scored := int(np.isnan(logits).any(1).sum()):
            raise ValueError(f"{scored} of the {len(logits)} clips of split {name!r} have no score: it is not whole")
        metrics |= {f"{name}/{metric}": value for metric, value in accuracy(logits, labels, groups).items()}
        arrays |= {f"logits/{name}": logits, f"labels/{name}": labels, f"groups/{name}": groups}
    return metrics, arrays


def curves(history: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """A history as arrays `curve/<name>`, one value an epoch."""
    return {f"curve/{name}": np.array([row[name] for row in history]) for name in history[0]}


def run(
    experiment: str, config: TrainConfig, *, team: Team = ALONE, report: Callable[[str], None] = _say
) -> Record | None:
    """Loads, trains, scores and writes; the record, on the first process. Raises as what it calls."""
    report = report if team.first else _silent
    path = study.run_path(experiment, asdict(config))
    source = notebooks.source_hash(experiment)
    made = records.provenance(
        source=source,
        notebook=str(notebooks.notebook(experiment)),
        device=torch.cuda.get_device_name() if team.device != "cpu" else "cpu",
    ) | {"processes": team.size}
    this = notebooks.Run(experiment, config, team.device, made)
    fixed = config.fixed() | {"source": source, "processes running": team.size}
    states = States(f"{path}.state", fixed, report) if team.first else None
    with this.phase("data"):
        data = load(
            config,
            seed=config.seed,
            streams=(config.stream,),
            teacher=teacher_streams(config),
            device=team.device,
            # torchrun gives each process one thread, which is no reason to decode with one.
            workers=config.workers or (0 if team.size == 1 else max(1, os.cpu_count() // team.local)),
        )
    counts = ", ".join(f"{len(clips)} {name}" for name, clips in data.splits.items())
    report(f"{counts} clips; {len(data.classes)} classes; on {team.size} x {made['device']}")
    for reason in data.refused.values():
        report(f"refused: {reason}")
    model = build(config, data, team.device, report=report)
    with this.phase("teacher"):
        teacher = load_teacher(config, data, team.device)
    with this.phase("train"):
        metrics = f"{path}.jsonl" if team.first else None
        history = fit(model, config, data, teacher=teacher, team=team, states=states, metrics=metrics, report=report)
    with this.phase("evaluate"):
        found, arrays = score(model, data, config.stream, team=team)
    if not team.first:
        return None
    save_checkpoint(
        f"{path}.safetensors",
        model,
        stream=config.stream,
        classes=data.classes,
        input=config.input_of(config.stream),
    )
    record = this.write(
        study.arm_of(experiment, asdict(config)),
        found,
        arrays=arrays | curves(history),
        files=data.files,
        stand_in=config.dataset == "sprites",
    )
    states.clear()
    return record


def _warmup_cosine(warmup: float, steps: int) -> Callable[[int], float]:
    """Linear rise over the first share of steps, then half a cosine to zero (Loshchilov and Hutter 2017)."""
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))

    return factor


def read_config(path: str | Path) -> tuple[str, TrainConfig]:
    """The experiment and its parameters from a YAML file. Raises ValueError or OSError naming what is wrong."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must map parameters to values, such as `epochs: 8`")
    experiment = content.pop("experiment", "train")
    if experiment not in CONFIGS:
        raise ValueError(f"experiment in {path} must be one of {', '.join(CONFIGS)}, not {experiment!r}")
    return experiment, CONFIGS[experiment](**notebooks.parameters(experiment, notebooks.defaults(experiment) | content))


def _end_with(pid: int) -> None:
    """Asks this process to stop once the process that follows it is gone."""
    while True:
        time.sleep(1)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m d3d.train", description="Trains or distils one network.")
    parser.add_argument("--config", required=True, help="YAML: experiment (train or distill) and its parameters")
    given = parser.parse_args(argv)
    if follower := os.environ.get("D3D_FOLLOWER"):
        threading.Thread(target=_end_with, args=(int(follower),), daemon=True).start()
    try:
        experiment, config = read_config(given.config)
        if not torch.cuda.is_available():
            # Other threads, other last digits.
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        with joined() as team:
            run(experiment, config, team=team)
    except Stopped as stopped:
        print(f"{parser.prog}: {stopped}", file=sys.stderr)
        sys.exit(128 + stopped.signum)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
