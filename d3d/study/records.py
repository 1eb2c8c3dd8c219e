"""Run records: one JSON a run, written last and whole, and one tidy table of them all.

table = load("results/smoke")        # experiment, arm, seed, metric, value, stand_in, path
d3d records results/smoke/train/rgb-seed0.json      # one line: the run and its headline
"""

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from d3d.files import write_atomic

SCHEMA = 1
T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("torch", "torchvision", "triton", "numpy", "scipy", "scikit-learn", "captum"),
    *("av", "opencv-contrib-python-headless", "safetensors", "papermill"),
)
HEADLINES = ("iid/top1", "test/top1", "Mixed_4f/motion/r2_within", "motion_part/frozen")
# Experiments whose records are those of networks.
TRAINED = ("train", "distill")


class RecordError(ValueError):
    """A file that is no whole record of this schema; the message names it."""


@dataclass(frozen=True)
class Record:
    """One run. `metrics` are flat (`iid/top1`), `files` tells of the videos found, `arrays` is the .npz's SHA-256."""

    experiment: str
    arm: str
    seed: int
    params: dict[str, Any]
    metrics: dict[str, float]
    stand_in: bool
    provenance: dict[str, Any]
    files: dict[str, Any] = field(default_factory=dict)
    arrays: str = ""
    schema: int = SCHEMA

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}"


def write(results: str | Path, record: Record, arrays: Mapping[str, np.ndarray] | None = None) -> Path:
    """Writes results/<experiment>/<arm>-seed<seed>.json last, after the .npz beside it where there are arrays.

    Raises ValueError for a metric that is not finite, OSError naming the file where the disk does not take it.
    """
    if bad := [name for name, value in record.metrics.items() if not np.isfinite(value)]:
        raise ValueError(f"metric {bad[0]!r} of {record.experiment}/{record.name} is {record.metrics[bad[0]]}")
    path = Path(results) / record.experiment / f"{record.name}.json"
    contents: dict[Path, bytes] = {}
    if arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        contents[path.with_suffix(".npz")] = buffer.getvalue()
        record = replace(record, arrays=_digest(buffer.getvalue()))
    contents[path] = (json.dumps(asdict(record), indent=1, sort_keys=True) + "\n").encode()
    write_atomic(contents)
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def read(path: str | Path) -> Record:
    """Raises RecordError naming a file that is cut, foreign or of another schema."""
    path = Path(path)
    try:
        fields = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError):
        raise RecordError(f"{path} is no whole JSON file: delete it and run `make study` again") from None
    if not isinstance(fields, dict) or "schema" not in fields:
        raise RecordError(f"{path} is no run record: it names no schema")
    if fields["schema"] != SCHEMA:
        raise RecordError(f"{path} has schema {fields['schema']!r}, this version reads {SCHEMA}: run it again")
    try:
        record = Record(**fields)
    except TypeError as error:
        raise RecordError(f"{path} is no run record: {str(error).removeprefix('Record.__init__() ')}") from None
    if path.stem != record.name or path.parent.name != record.experiment:
        raise RecordError(f"{path} holds the record of {record.experiment}/{record.name}: it was moved or renamed")
    return record


def read_all(results: str | Path, experiments: Sequence[str] = ("*",)) -> list[Record]:
    """Every record of the experiments below `results`, in order; empty where there are none.

    Raises RecordError where runs of one arm were made with different parameters: their mean would mean nothing.
    """
    found = [read(path) for name in experiments for path in sorted(Path(results).glob(f"{name}/*.json"))]
    first: dict[tuple[str, str], Record] = {}
    for record in found:
        other = first.setdefault((record.experiment, record.arm), record)
        if differing := [k for k in _shared(record) if _shared(record)[k] != _shared(other).get(k)]:
            raise RecordError(
                f"{record.experiment}/{record.name} and {other.name} under {results} were made with different "
                f"{', '.join(differing)}: delete the one that does not belong there"
            )
    return found


def _shared(record: Record) -> dict[str, Any]:
    """The parameters that all seeds of an arm have in common."""
    own = {"seed", "results", "teacher", "student", "pictures"}
    return {name: value for name, value in record.params.items() if name not in own}


def read_arrays(results: str | Path, record: Record) -> dict[str, np.ndarray]:
    """The arrays beside a record.

    Raises FileNotFoundError where there are none, RecordError where they are cut or another run's.
    """
    path = Path(results) / record.experiment / f"{record.name}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"no arrays at {path}, beside its record: run {record.experiment!r} again")
    content = path.read_bytes()
    if _digest(content) != record.arrays:
        raise RecordError(f"{path} holds other arrays than its record says: run {record.experiment!r} again")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def pairs(results: str | Path, first: str, second: str, *, same: Sequence[str]) -> list[tuple[Record, Record]]:
    """Trained networks to fuse: two arms of each seed, or one arm of the seeds 2k and 2k + 1, so that pairs share none.

    Records whose logits are not beside them are passed over: they come from another machine. `same` names the
    parameters that both must agree on. Raises RecordError where they do not.
    """
    trained = read_all(results, TRAINED)
    trained = [r for r in trained if (Path(results) / r.experiment / f"{r.name}.npz").is_file()]
    mine, other = ({r.seed: r for r in trained if r.arm == arm} for arm in (first, second))
    if first == second:
        mine, other = ({s: r for s, r in mine.items() if s % 2 == 0}, {s - 1: r for s, r in mine.items() if s % 2})
    found = [(mine[seed], other[seed]) for seed in sorted(set(mine) & set(other))]
    for a, b in found:
        if differing := [name for name in same if a.params.get(name) != b.params.get(name)]:
            raise RecordError(f"{a.name} and {b.name} saw other clips: they differ in {', '.join(differing)}")
    return found


def of_first_seed(results: str | Path, experiment: str, arms: Sequence[str]) -> list[Record]:
    """The records of an experiment's arms at its lowest seed, in the order of `arms`.

    Raises FileNotFoundError where there is none.
    """
    found = [r for r in read_all(results, [experiment]) if r.arm in arms]
    if not found:
        raise FileNotFoundError(f"no records of {experiment!r} under {results}: run that experiment first")
    first = [r for r in found if r.seed == min(r.seed for r in found)]
    return sorted(first, key=lambda r: arms.index(r.arm))


def histories(results: str | Path, arms: Sequence[str]) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """The arrays, training curves included, of every trained network of the arms, by (arm, seed)."""
    found = [r for r in read_all(results, TRAINED) if r.arm in arms]
    return {(r.arm, r.seed): read_arrays(results, r) for r in found}


def config(record: Record, config_class: type[T]) -> T:
    """A dataclass filled from a record's parameters of the same names."""
    return config_class(**{f.name: record.params[f.name] for f in fields(config_class)})


def load(results: str | Path, *, needs: Sequence[str] = ()):
    """One tidy pandas table: a row a metric, with experiment, arm, seed, metric, value and stand_in.

    Raises FileNotFoundError naming an experiment of `needs` that has no record.
    """
    import pandas as pd

    rows = [
        (r.experiment, r.arm, r.seed, metric, value, r.stand_in)
        for r in read_all(results)
        for metric, value in r.metrics.items()
    ]
    table = pd.DataFrame(rows, columns=["experiment", "arm", "seed", "metric", "value", "stand_in"])
    if missing := [name for name in needs if name not in set(table["experiment"])]:
        raise FileNotFoundError(f"no records of {missing[0]!r} under {results}: run that experiment first")
    return table


def provenance(*, source: str, notebook: str, device: str) -> dict[str, Any]:
    """What a run is made from, to be taken when it starts: commit (D3D_COMMIT and D3D_DIRTY where the tree has no
    history), source, packages, device, time.
    """
    return {
        "commit": os.environ.get("D3D_COMMIT") or _git("rev-parse", "HEAD") or "unknown",
        "dirty": os.environ["D3D_DIRTY"] not in ("", "0", "false") if "D3D_DIRTY" in os.environ else _dirty(),
        "source": source,
        "notebook": notebook,
        "packages": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "device": device,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def seconds_since(started: str) -> float:
    """Seconds since a time as `provenance` keeps it."""
    return round((datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds(), 1)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _dirty() -> bool:
    """Whether code or parameters differ from the commit, or nobody knows; what runs write does not count."""
    made_from = ("d3d", "notebooks", "Snakefile", "requirements.lock")
    return not _git("rev-parse", "HEAD") or bool(_git("status", "--porcelain", "--", *made_from))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def headline(record: Record) -> str:
    """One line: the run, its first metric of interest, its seconds."""
    metric = next((m for m in HEADLINES if m in record.metrics), next(iter(record.metrics), None))
    value = f"{metric} {record.metrics[metric]:.3f}" if metric else "no metric"
    return f"{record.experiment:<12} {record.name:<22} {value:<32} {record.provenance['seconds']:6.1f} s"


def main(argv: list[str] | None = None) -> None:
    print(headline(read((argv or sys.argv[1:])[0])))
