"""One training run of an RGB or flow network, with or without a teacher: loads, trains, evaluates and writes."""

import glob
import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d3d import files
from d3d.data.load import Data, load
from d3d.progress import print_line
from d3d.s3dg.checkpoints import save_checkpoint
from d3d.study import plan, records
from d3d.study.experiments import params_of
from d3d.study.machine import check_memory, check_run
from d3d.study.parameters import CHANGEABLE_ON_RESUME, RENDERED_DATASETS, TrainConfig
from d3d.study.records import Record
from d3d.study.run import new_run
from d3d.train.controls import halves_of
from d3d.train.lease import Lease
from d3d.train.loop import fit, no_report
from d3d.train.networks import (
    build_network,
    check_student,
    load_teacher,
    starts_from_rendered_clips,
    teacher_streams,
)
from d3d.train.splits import evaluate_splits
from d3d.train.states import CODE, States
from d3d.train.team import SINGLE_PROCESS, Team


def history_arrays(history: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Converts a training history to arrays `curve/<name>`, one value per epoch."""
    return {f"curve/{name}": np.array([row[name] for row in history]) for name in history[0]}


def run(
    experiment: str, config: TrainConfig, *, team: Team = SINGLE_PROCESS, report: Callable[[str], None] = print_line
) -> Record | None:
    """Loads the data, trains and evaluates the network, and writes weights and record.

    Args:
        experiment: train or distill.
        config: the run's configuration.
        team: the processes that train together.
        report: receives lines for the log, in the first process only.

    Returns:
        The record, in the first process; None in the others.

    Raises:
        ValueError: if `processes` differs from the team's size or the settings of two processes differ; or from
            `check_student`, `check_run`, `load`, `build_network`, `load_teacher`, `fit` or `evaluate_splits`.
        Stopped, FloatingPointError: from `fit`.
        LeaseError: if another process trains this run, or has taken it over.
        OSError: if the results cannot be written.
    """
    report = report if team.is_main else no_report
    team.check_size(config.run.processes)
    teacher_streams(config)  # a missing teacher is an error before anything is written
    check_student(config)
    check_run(experiment, config, device=team.device, processes=team.size)
    path = plan.run_path(experiment, params_of(experiment, config))
    if not team.is_main:
        return _run(experiment, config, path, None, team, report)
    files.check_writable(path.parent)
    with Lease(f"{path}.state", report) as lease:
        return _run(experiment, config, path, lease, team, report)


def _run(
    experiment: str, config: TrainConfig, path: Path, lease: Lease | None, team: Team, report: Callable[[str], None]
) -> Record | None:
    """Does what `run` says, with the lease of the run's folder in the first process."""
    teacher_stream = teacher_streams(config)
    device_name = torch.cuda.get_device_name() if team.device != "cpu" else "cpu"
    active_run = new_run(experiment, config, team.device, device_name)
    provenance = active_run.provenance
    provenance["processes"] = team.size
    with active_run.phase("data"):
        data = load(
            config.data,
            seed=config.run.seed,
            streams=(config.network.stream,),
            teacher=teacher_stream,
            device=team.device,
            workers=config.data.files.workers or team.decoders(),
            report=report,
            share=team.share,
        )
    if half := config.data.half:
        train = data.splits["train"]
        rows = np.flatnonzero(halves_of(train, config.run.seed) == half)
        data = replace(data, splits=data.splits | {"train": train.subset(rows)})
    counts = ", ".join(f"{len(clips)} {name}" for name, clips in data.splits.items())
    report(f"{counts} clips; {len(data.classes)} classes; on {team.size} x {provenance['device']}")
    for reason in data.refused.values():
        report(f"left out: {reason}")
    if config.data.files.dataset not in RENDERED_DATASETS:  # their number is known now
        num_clips = len(data.splits["train"])
        check_memory(experiment, config, device=team.device, processes=team.size, train_clips=num_clips)
    model = build_network(config, data, team.device, report=report)
    with active_run.phase("teacher"):
        teacher = load_teacher(config, data, team.device)
    settings = _run_settings(experiment, config, data, provenance["source"], team)
    states = _open_states(path, lease, settings, report) if lease else None
    with active_run.phase("train"):
        history = fit(
            model,
            config,
            data,
            teacher=teacher,
            team=team,
            states=states,
            metrics_path=f"{path}.jsonl" if team.is_main else None,
            report=report,
        )
    with active_run.phase("evaluate"):
        metrics, arrays = evaluate_splits(model, data, config.network.stream, team=team)
    if not team.is_main:
        return None
    provenance["run"] = states.run_id
    save_weights = partial(
        save_checkpoint,
        f"{path}.safetensors",
        model,
        stream=config.network.stream,
        classes=data.classes,
        input=config.data.input_spec(config.network.stream),
    )
    lease.check()
    files.write_patiently(save_weights, report)
    lease.check()
    arrays |= history_arrays(history) | {"classes": np.array(data.classes)}
    record = active_run.write(
        plan.arm_name(experiment, active_run.params),
        metrics,
        arrays=arrays,
        files=data.files,
        stand_in=data.stand_in or starts_from_rendered_clips(config),
    )
    states.delete_folder()
    return record


def _run_settings(experiment: str, config: TrainConfig, data: Data, source: str, team: Team) -> dict[str, Any]:
    """Returns the settings that must be equal in all processes of a run, and again when it resumes.

    Raises:
        ValueError: if the settings of two processes differ.
    """
    table = data.splits["train"].table
    rows = table[[c for c in ("path", "label", "start", "end") if c in table]]
    params = {name: value for name, value in params_of(experiment, config).items() if name not in CHANGEABLE_ON_RESUME}
    settings = params | {
        CODE: source,
        "classes": list(data.classes),
        "training clips": f"{len(rows)}, {hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:16]}",
        "processes and device": f"{team.size} on {team.device.split(':')[0]}",
    }
    if team.device == "cpu":
        settings["threads"] = torch.get_num_threads()
    for name in ("teacher", "second_teacher", "student"):
        if weights := getattr(config.distillation, name):
            settings[f"{name}'s weights"] = files.sha256(weights)[:16]
    for rank, other in enumerate(team.all_gather(settings)):
        if differing := [name for name in settings if settings[name] != other.get(name)]:
            name = differing[0]
            raise ValueError(
                f"processes must have the same settings, but {name} is {settings[name]!r} in process {team.rank} and "
                f"{other.get(name)!r} in process {rank}"
            )
    return settings


def _open_states(path: Path, lease: Lease, settings: dict[str, Any], report: Callable[[str], None]) -> States:
    """Opens the states of a run, and deletes half-written results."""
    try:
        finished_run = records.read(f"{path}.json").provenance.get("run")
    except (ValueError, OSError):
        finished_run = None
    states = States(lease, settings, report, finished_run=finished_run)
    for unfinished in path.parent.glob(f".{glob.escape(path.name)}.*"):
        unfinished.unlink()  # half-written when a process was killed
    return states
