"""One run: loads, trains, scores and writes, for streams, distillation and fine-tuning, on one process or several."""

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d3d import files
from d3d.data.load import Data, load
from d3d.s3dg.checkpoints import save_checkpoint
from d3d.s3dg.network import S3DG
from d3d.study import plan
from d3d.study.experiments import params_of
from d3d.study.parameters import CHANGEABLE_ON_RESUME, TrainConfig
from d3d.study.records import Record
from d3d.study.run import new_run
from d3d.train.evaluate import accuracy, predict
from d3d.train.loop import fit, silent
from d3d.train.networks import build, load_teacher, teacher_streams
from d3d.train.states import CODE, States
from d3d.train.team import ALONE, Team


def _say(line: str) -> None:
    """Prints, and where nobody reads any more asks this process to stop."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        os.kill(os.getpid(), signal.SIGTERM)


def score(
    model: S3DG, data: Data, stream: str, *, team: Team = ALONE
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics such as `iid/top1` and `iid/motion/top1` of every test split; logits, labels and groups behind them.

    Each process scores its share; all get everything. Clips in files that could not be read do not count, and the
    record's `files` names them. Raises ValueError where other clips were left out, or none could be read.
    """
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, clips in data.test_splits.items():
        shares = [np.arange(len(clips))[rank :: team.size] for rank in range(team.size)]
        parts = team.gather(predict(model, clips, stream, rows=shares[team.rank]))
        logits = np.full((len(clips), len(data.classes)), np.nan, np.float32)
        for rows, part in zip(shares, parts, strict=True):
            if part.size:
                logits[rows] = part
        labels, groups = clips.labels.cpu().numpy(), clips.groups
        scored = ~np.isnan(logits).any(1)
        lost = ~scored
        if clips.augmented:
            for unread in team.gather(dict(clips.refused)):
                clips.refused.update(unread)
            lost &= ~clips.table["path"].isin(clips.refused).to_numpy()
        if lost.any():
            raise ValueError(f"{lost.sum()} of the {len(lost)} clips of split {name!r} have no score: it is not whole")
        if not scored.any():
            raise ValueError(f"no clip of split {name!r} could be read: {next(iter(clips.refused.values()))}")
        logits, labels, groups = logits[scored], labels[scored], groups[scored]
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
    report = report if team.first else silent
    if config.run.processes > 1 and config.run.processes != team.size:
        raise ValueError(
            f"processes is {config.run.processes}, running are {team.size}: "
            f"start it with torchrun --nproc-per-node {config.run.processes}, or leave the parameter out"
        )
    params = params_of(experiment, config)
    path = plan.run_path(experiment, params)
    if team.first:
        files.check_writable(path.parent)
    this = new_run(experiment, config, team.device, torch.cuda.get_device_name() if team.device != "cpu" else "cpu")
    made = this.provenance
    made["processes"] = team.size
    # torchrun gives each process one thread, which is no reason to decode with one.
    workers = config.data.files.workers or (0 if team.size == 1 else team.cores())
    with this.phase("data"):
        data = load(
            config.data,
            seed=config.run.seed,
            streams=(config.network.stream,),
            teacher=teacher_streams(config),
            device=team.device,
            workers=workers,
        )
    counts = ", ".join(f"{len(clips)} {name}" for name, clips in data.splits.items())
    report(f"{counts} clips; {len(data.classes)} classes; on {team.size} x {made['device']}")
    for reason in data.refused.values():
        report(f"refused: {reason}")
    model = build(config, data, team.device, report=report)
    with this.phase("teacher"):
        teacher = load_teacher(config, data, team.device)
    fixed = _facts(experiment, config, data, made["source"], team)
    states = _states(path, fixed, report) if team.first else None
    with this.phase("train"):
        metrics = f"{path}.jsonl" if team.first else None
        history = fit(model, config, data, teacher=teacher, team=team, states=states, metrics=metrics, report=report)
    with this.phase("evaluate"):
        found, arrays = score(model, data, config.network.stream, team=team)
    if not team.first:
        return None
    save_checkpoint(
        f"{path}.safetensors",
        model,
        stream=config.network.stream,
        classes=data.classes,
        input=config.data.input_spec(config.network.stream),
    )
    record = this.write(
        plan.arm_name(experiment, params),
        found,
        arrays=arrays | curves(history) | ({"siblings": np.array(data.siblings)} if data.siblings else {}),
        files=data.files,
        stand_in=data.stand_in,
    )
    states.clear()
    return record


def _facts(experiment: str, config: TrainConfig, data: Data, source: str, team: Team) -> dict[str, Any]:
    """What must be the same in all processes of a run, and when it is gone on with.

    Raises ValueError where processes differ.
    """
    table = data.splits["train"].table
    rows = table[[c for c in ("path", "label", "start", "end") if c in table]]
    fixed = {name: value for name, value in params_of(experiment, config).items() if name not in CHANGEABLE_ON_RESUME}
    facts = fixed | {
        CODE: source,
        "classes": list(data.classes),
        "training clips": f"{len(rows)}, {hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:16]}",
        "running": f"{team.size} on {team.device.split(':')[0]}",
    }
    if team.device == "cpu":
        facts["threads"] = torch.get_num_threads()
    for name in ("teacher", "student"):
        if weights := getattr(config.distillation, name):
            facts[f"{name}'s weights"] = hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:16]
    for rank, others in enumerate(team.gather(facts)):
        if differ := [name for name in facts if facts[name] != others.get(name)]:
            raise ValueError(
                f"processes {team.rank} and {rank} do not run the same: {differ[0]} is {facts[differ[0]]!r} and "
                f"{others.get(differ[0])!r}"
            )
    return facts


def _states(path: Path, fixed: dict[str, Any], report: Callable[[str], None]) -> States:
    """The states of the run, without what a finished or killed one left."""
    states = States(f"{path}.state", fixed, report)
    record = Path(f"{path}.json")
    if states.paths() and record.is_file() and record.stat().st_mtime >= states.paths()[0].stat().st_mtime:
        states.drop()  # killed after its record
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink()  # killed while it wrote
    return states
