"""Evaluates given weights on the test clips of a set of video files, without training: the experiment `evaluate`.

    d3d train --experiment evaluate --weights model.ckpt --dataset kinetics400 --root KINETICS400 --frames 64 --size 224

Weights are those of this package, or a checkpoint of TF-slim's S3D-G. Training videos need not exist.
"""

import hashlib
import io
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from d3d import files
from d3d.data.clips import ClipSet
from d3d.data.load import load
from d3d.messages import escape_cell, one_line, printable, shown
from d3d.npz import NpzError, NpzFile
from d3d.progress import Progress, print_line
from d3d.s3dg.checkpoints import CheckpointInfo
from d3d.s3dg.folding import fold
from d3d.s3dg.network import S3DG
from d3d.s3dg.predict import read_labels
from d3d.s3dg.weights import files_of, load_network
from d3d.study import plan
from d3d.study.evaluation import EvaluateConfig
from d3d.study.experiments import params_of
from d3d.study.machine import check_run
from d3d.study.parameters import CHANGEABLE_ON_RESUME, RENDERED_DATASETS
from d3d.study.records import Record
from d3d.study.run import new_run
from d3d.train.evaluate import predict
from d3d.train.scores import class_table, clip_table
from d3d.train.splits import evaluate_splits
from d3d.train.team import SINGLE_PROCESS, Team

# Parameters of the flow's scale: weights trained with others would see another input.
SCALE = ("bound", "flow")
# Top-1 counts as no better than chance unless a binomial test rejects that at this level.
CHANCE_LEVEL = 0.001


def run(
    config: EvaluateConfig, *, team: Team = SINGLE_PROCESS, report: Callable[[str], None] = print_line
) -> Record | None:
    """Loads weights and clips, evaluates the network on every test split, and writes the record and its tables.

    Beside the record lie its arrays (.npz, with the logits of each clip), top-1 by class (.classes.csv) and the
    predicted class of each clip (.clips.csv).

    Args:
        config: the run's configuration.
        team: the processes that divide the clips among them.
        report: receives lines for the log, in the first process only.

    Returns:
        The record, in the first process; None in the others.

    Raises:
        ValueError: if `processes` differs from the team's size, the data set is rendered, the weights have another
            stream or other classes, or the results have a network of the same name that was trained; or from
            `check_run`, `load_network`, `load` or `evaluate_splits`.
        OSError: if a file cannot be read or the results cannot be written.
    """
    report = report if team.is_main else lambda line: None
    stream, source = config.network.stream, config.evaluated.weights
    team.check_size(config.run.processes)
    params = params_of("evaluate", config)
    path = plan.run_path("evaluate", params)
    _check(config, path)
    check_run("evaluate", config, device=team.device, processes=team.size)
    if team.is_main:
        files.check_writable(path.parent)
    active_run = new_run(
        "evaluate", config, team.device, torch.cuda.get_device_name() if team.device != "cpu" else "cpu"
    )
    model, info = load_network(source)
    _check_input(config, info, report)
    with active_run.phase("data"):
        data = load(
            config.data,
            seed=config.run.seed,
            streams=(stream,),
            device=team.device,
            workers=config.data.files.workers or team.decoders(),
            report=report,
            training=False,
            share=team.share,
        )
    columns = logits_in_order(info, data.classes, source, labels=config.evaluated.labels)
    counts = ", ".join(f"{len(clips)} {name}" for name, clips in data.splits.items())
    report(f"{counts} clips of {len(data.classes)} classes; on {team.size} x {active_run.provenance['device']}")
    for reason in data.refused.values():
        report(f"left out: {reason}")
    digest = hashlib.sha256(b"".join(files.sha256(file).encode() for file in files_of(source))).hexdigest()[:16]
    fixed = {name: value for name, value in params.items() if name not in (*CHANGEABLE_ON_RESUME, "processes")}
    saved = SavedPredictions(
        Path(f"{path}.state"),
        f"{fixed} {digest} {active_run.provenance['source']}",
        config.run.save_every,
        report,
    )

    def predict_rows(model: S3DG, clips: ClipSet, stream: str, *, rows: np.ndarray) -> np.ndarray:
        logits = saved.predict(model, clips, stream, rows=rows)
        return logits[:, columns] if logits.size else logits

    with active_run.phase("evaluate"):
        network = fold(model).to(team.device)
        metrics, arrays = evaluate_splits(network, data, stream, team=team, predict_rows=predict_rows)
    if not team.is_main:
        return None
    for split in data.splits:
        _warn_of_chance(arrays[f"logits/{split}"], arrays[f"labels/{split}"], split, report)
    active_run.provenance |= {"processes": team.size, "weights": {"file": Path(source).name, "sha256": digest}}
    tables = {
        Path(f"{path}.{kind}.csv"): table(arrays, data.classes).map(escape_cell).to_csv(index=False).encode()
        for kind, table in (("classes", class_table), ("clips", clip_table))
    }
    files.write_patiently(lambda: files.write_atomic(tables), report)
    arrays |= {"classes": np.array(data.classes)}
    record = active_run.write(
        plan.arm_name("evaluate", params), metrics, arrays=arrays, files=data.files, stand_in=data.stand_in
    )
    shutil.rmtree(saved.folder, ignore_errors=True)
    return record


def _check(config: EvaluateConfig, path: Path) -> None:
    """Checks what needs no file but records: that weights and videos are given, and that the name is free."""
    if not config.evaluated.weights:
        raise ValueError("evaluate needs weights: a .safetensors file, a TensorFlow checkpoint's prefix or an .npz")
    dataset = config.data.files.dataset
    if dataset in RENDERED_DATASETS:
        raise ValueError(f"evaluate reads video files, not {shown(dataset)}: set dataset and root")
    for experiment in plan.TRAINED:
        other = path.parent.parent / experiment / f"{path.name}.json"
        if other.is_file():
            raise ValueError(
                f"{printable(other)} is the record of a network of the same arm and seed: give another arm or another "
                "results"
            )


def _check_input(config: EvaluateConfig, info: CheckpointInfo, report: Callable[[str], None]) -> None:
    """Compares the input that weights were trained on, where the file says it, with that of the run."""
    source, stream = config.evaluated.weights, config.network.stream
    if info.stream != stream:
        raise ValueError(f"weights {source} are a {info.stream} stream, but the run has stream {stream!r}")
    here = config.data.input_spec(stream)
    differing = [name for name, value in info.input.items() if here.get(name, value) != value]
    text = ", ".join(one_line(f"{name} {info.input[name]} instead of {here[name]}", 80) for name in differing)
    if set(differing) & set(SCALE):
        raise ValueError(f"weights {source} were trained on flow of another scale: {text}")
    if differing:
        report(f"weights {source} were trained on another input: {text}")


def logits_in_order(info: CheckpointInfo, classes: tuple[str, ...], source: str, *, labels: str = "") -> np.ndarray:
    """Returns which logit of the weights belongs to each class of the data set, int64 (K,).

    Names are compared without case, spaces and punctuation. Imported weights call their classes by numbers, and are
    taken to have them in the data set's alphabetical order unless `labels` says otherwise.

    Args:
        info: description of the weights.
        classes: the classes of the data set, in the order of their labels.
        source: the file of the weights, for errors.
        labels: text file with the classes of the weights in the order of the logits; empty: those in their file.

    Raises:
        ValueError: if the weights have other classes than the data set; or from `read_labels`.
        FileNotFoundError: from `read_labels`.
    """
    names = tuple(read_labels(Path(labels), len(info.classes))) if labels else info.classes
    numbers = tuple(str(i) for i in range(len(classes)))
    if names in (classes, numbers):
        return np.arange(len(classes))
    position = {_plain(name): i for i, name in enumerate(names)}
    lacking = [name for name in classes if _plain(name) not in position]
    if lacking or not len(position) == len(names) == len(classes):
        first = f", and none called {shown(lacking[0])}" if lacking else ""
        raise ValueError(
            f"weights {source} have {len(names)} classes{first}; the data set has {len(classes)}: give weights of the "
            "same classes, and if their names differ labels, the file of the classes in the order of the logits"
        )
    return np.array([position[_plain(name)] for name in classes])


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold()


def _warn_of_chance(logits: np.ndarray, labels: np.ndarray, split: str, report: Callable[[str], None]) -> None:
    """Reports a network that is no better than chance, which may have its classes in another order."""
    correct, chance = int((logits.argmax(1) == labels).sum()), 1 / logits.shape[1]
    if binomtest(correct, len(labels), chance, alternative="greater").pvalue > CHANCE_LEVEL:
        report(
            f"top-1 on {split} is no better than chance: are the classes (labels) in the order of the logits, and are "
            "frames, size and fps those that the weights were trained on?"
        )


@dataclass(frozen=True)
class SavedPredictions:
    """Predictions that a killed evaluation left, and those of the one in progress.

    Attributes:
        folder: where they are saved, a file per process and split.
        identity: all that the predictions depend on besides the clips; files of another identity are not read.
        save_every: seconds between savings.
        report: receives lines about resuming, and about a disk that is full.
    """

    folder: Path
    identity: str
    save_every: float
    report: Callable[[str], None]

    def predict(self, model: S3DG, clips: ClipSet, stream: str, *, rows: np.ndarray) -> np.ndarray:
        """Predicts as `d3d.train.evaluate.predict` does, but only what is not saved yet."""
        listed = clips.table.iloc[rows][["path", "start", "end"]].to_csv(index=False)
        name = hashlib.sha256(f"{self.identity} {listed} {rows.tolist()}".encode()).hexdigest()[:16]
        path = self.folder / f"{name}.npz"
        known = self._read(path)
        if known:
            self.report(f"resuming after {len(known)} of {len(rows)} clips")
        rest = np.array([row for row in rows.tolist() if row not in known], dtype=np.int64)
        next_save = time.monotonic() + self.save_every
        with Progress(len(rest), "clips evaluated", self.report) as progress:

            def keep(done: np.ndarray, outputs: np.ndarray) -> None:
                nonlocal next_save
                known.update(zip(done.tolist(), outputs, strict=True))
                for _ in done:
                    progress.update()
                if time.monotonic() >= next_save:
                    self._write(path, known)
                    next_save = time.monotonic() + self.save_every

            try:
                predict(model, clips, stream, rows=rest, done=keep)
            except BaseException:
                self._write(path, known)
                raise
        width = len(next(iter(known.values()), ()))
        unread = np.full(width, np.nan, np.float32)
        return np.array([known.get(row, unread) for row in rows.tolist()], np.float32).reshape(len(rows), width)

    def _read(self, path: Path) -> dict[int, np.ndarray]:
        if not path.is_file():
            return {}
        try:
            with NpzFile(path) as file:
                rows, logits = file.read("rows"), file.read("logits")
        except NpzError as error:
            self.report(f"not resumed: {error}")
            return {}
        return dict(zip(rows.tolist(), logits, strict=True))

    def _write(self, path: Path, known: dict[int, np.ndarray]) -> None:
        if not known:
            return
        buffer = io.BytesIO()
        np.savez(buffer, rows=np.array(list(known)), logits=np.stack(list(known.values())))
        try:
            files.write_atomic({path: buffer.getvalue()})
        except OSError as error:
            self.report(f"predictions are not saved: {one_line(error)}")
