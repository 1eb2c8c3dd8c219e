"""One loop for streams, distillation and fine-tuning, on a CPU, a GPU, or many.

    d3d train --config FILE                                         # one process
    torchrun --standalone --nproc-per-node 4 -m d3d.train --config FILE       # four GPUs of one host
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m d3d.train --config FILE

FILE is YAML: `experiment: train` or `distill`, and parameters of that notebook (or a whole profile). What comes of it
lies in <results>/<experiment>/: <arm>-seed<seed>.json the record, .npz predictions and curves, .safetensors the
weights, .jsonl the metrics as they came. A run that was killed goes on from its last state, .state/, when it is
started again.
"""

import argparse
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from d3d import files
from d3d.data.load import Data, load
from d3d.s3dg.checkpoints import save_checkpoint
from d3d.s3dg.network import S3DG
from d3d.study import arms as study
from d3d.study import notebooks, records
from d3d.study.records import Record
from d3d.train.config import CONFIGS, DistillConfig, TrainConfig
from d3d.train.evaluate import accuracy, predict
from d3d.train.loop import Stopped, fit, silent
from d3d.train.networks import build, load_teacher, teacher_streams
from d3d.train.states import CODE, States
from d3d.train.team import ALONE, Team, joined

__all__ = ["DistillConfig", "TrainConfig", "build", "fit", "load_teacher", "run", "score", "teacher_streams"]


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
    for name, clips in data.tests.items():
        shares = [np.arange(len(clips))[rank :: team.size] for rank in range(team.size)]
        parts = team.gather(predict(model, clips, stream, rows=shares[team.rank]))
        logits = np.full((len(clips), len(data.classes)), np.nan, np.float32)
        for rows, part in zip(shares, parts, strict=True):
            if part.size:
                logits[rows] = part
        labels, groups = clips.labels.cpu().numpy(), clips.groups
        scored = ~np.isnan(logits).any(1)
        lost = ~scored
        if clips.redrawn:
            for unread in team.gather(dict(clips.unread)):
                clips.unread.update(unread)
            lost &= ~clips.table["path"].isin(clips.unread).to_numpy()
        if lost.any():
            raise ValueError(f"{lost.sum()} of the {len(lost)} clips of split {name!r} have no score: it is not whole")
        if not scored.any():
            raise ValueError(f"no clip of split {name!r} could be read: {next(iter(clips.unread.values()))}")
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
    if config.processes > 1 and config.processes != team.size:
        raise ValueError(
            f"processes is {config.processes}, running are {team.size}: "
            f"start it with torchrun --nproc-per-node {config.processes}, or leave the parameter out"
        )
    path = study.run_path(experiment, asdict(config))
    if team.first:
        files.writable(path.parent)
    source = notebooks.source_hash(experiment)
    made = records.provenance(
        source=source,
        notebook=str(notebooks.notebook(experiment)),
        device=torch.cuda.get_device_name() if team.device != "cpu" else "cpu",
    ) | {"processes": team.size}
    this = notebooks.Run(experiment, config, team.device, made)
    # torchrun gives each process one thread, which is no reason to decode with one.
    workers = config.workers or (0 if team.size == 1 else team.cores())
    with this.phase("data"):
        data = load(
            config,
            seed=config.seed,
            streams=(config.stream,),
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
    fixed = _facts(config, data, source, team)
    states = _states(path, fixed, report) if team.first else None
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


def _facts(config: TrainConfig, data: Data, source: str, team: Team) -> dict[str, Any]:
    """What must be the same in all processes of a run, and when it is gone on with.

    Raises ValueError where processes differ.
    """
    table = data.splits["train"].table
    rows = table[[c for c in ("path", "label", "start", "end") if c in table]]
    facts = config.fixed() | {
        CODE: source,
        "classes": list(data.classes),
        "training clips": f"{len(rows)}, {hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:16]}",
        "running": f"{team.size} on {team.device.split(':')[0]}",
    }
    if team.device == "cpu":
        facts["threads"] = torch.get_num_threads()
    for name in ("teacher", "student"):
        if weights := getattr(config, name, ""):
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


def read_config(path: str | Path) -> tuple[str, TrainConfig]:
    """The experiment and its parameters from a YAML file. Raises ValueError or OSError naming what is wrong."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must map parameters to values, such as `epochs: 8`")
    for name, value in content.items():
        plain = isinstance(value, str | bool | int | float | list | dict)
        if not isinstance(name, str) or name.startswith("_") or not plain:
            raise ValueError(f"{path} sets {name!r} to {value!r}: it must map parameters to values")
    experiment = content.pop("experiment", "train")
    if experiment not in tuple(CONFIGS):
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
    parser = argparse.ArgumentParser(prog="d3d train", description="Trains or distils one network.")
    parser.add_argument("--config", required=True, help="YAML: experiment (train or distill) and its parameters")
    given = parser.parse_args(argv)
    if follower := os.environ.get("D3D_FOLLOWER"):
        threading.Thread(target=_end_with, args=(int(follower),), daemon=True).start()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _stop)
    try:
        experiment, config = read_config(given.config)
        if not torch.cuda.is_available():
            # Other threads, other last digits.
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        with joined() as team:
            run(experiment, config, team=team)
    except Stopped as stopped:
        _leave(128 + stopped.signum, f"{parser.prog}: {stopped}")
    except torch.OutOfMemoryError:
        _leave(
            1,
            f"{parser.prog}: the GPU's memory does not hold a step of batch_size {config.batch_size} in "
            f"{config.accumulate} parts: raise accumulate",
        )
    except (ValueError, OSError, FloatingPointError) as error:
        _leave(1, f"{parser.prog}: {error}")


def _stop(signum: int, _: object) -> None:
    """Outside of training, where there is nothing to save."""
    raise Stopped(signum, f"stopped by {signal.Signals(signum).name}; start it again to go on")


def _leave(code: int, sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
    if "WORLD_SIZE" in os.environ:
        # To take leave of the others can block where one of them is gone; torchrun ends them.
        os._exit(code)
    sys.exit(code)
