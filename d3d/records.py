"""Run records: one JSON a run, written last and whole, and one tidy table of them all.

table = load("results/smoke")        # experiment, arm, seed, metric, value, stand_in, path
python -m d3d.records results/smoke/train/rgb-seed0.json      # one line: the run and its headline
"""

import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

SCHEMA = 1
T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "captum", "av", "safetensors", "papermill")
HEADLINES = ("iid/top1", "test/top1", "Mixed_4f/velocity/r2", "motion_part/frozen")


class RecordError(ValueError):
    """A file that is no whole record of this schema; the message names it."""


@dataclass(frozen=True)
class Record:
    """One run. `metrics` are flat (`iid/top1`), `files` says what became of the videos found, where there were any."""

    experiment: str
    arm: str
    seed: int
    params: dict[str, Any]
    metrics: dict[str, float]
    stand_in: bool
    provenance: dict[str, Any]
    files: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}"


def write_atomic(path: Path, content: bytes) -> None:
    """The whole content or nothing: written beside `path`, flushed to the disk, then renamed onto it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"{path} could not be written and what stood there is untouched: {error.strerror}"
        ) from None


def write(results: str | Path, record: Record, arrays: Mapping[str, np.ndarray] | None = None) -> Path:
    """Writes results/<experiment>/<arm>-seed<seed>.json, after the .npz beside it where there are arrays.

    Raises ValueError for a metric that is not finite, OSError naming the file where the disk does not take it.
    """
    if bad := [name for name, value in record.metrics.items() if not np.isfinite(value)]:
        raise ValueError(f"metric {bad[0]!r} of {record.experiment}/{record.name} is {record.metrics[bad[0]]}")
    path = Path(results) / record.experiment / f"{record.name}.json"
    if arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomic(path.with_suffix(".npz"), buffer.getvalue())
    write_atomic(path, (json.dumps(asdict(record), indent=1, sort_keys=True) + "\n").encode())
    return path


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


def read_all(results: str | Path) -> list[Record]:
    """Every record below `results`, in the order of their paths; empty where the folder does not exist."""
    return [read(path) for path in sorted(Path(results).glob("*/*.json"))]


def read_arrays(results: str | Path, record: Record) -> dict[str, np.ndarray]:
    """The arrays beside a record. Raises FileNotFoundError where there are none."""
    path = Path(results) / record.experiment / f"{record.name}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"no arrays at {path}, beside its record: run {record.experiment!r} again")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def pairs(results: str | Path, first: str, second: str) -> list[tuple[Record, Record]]:
    """Trained networks to fuse: two arms of the same seed, or one arm of a seed and of the next, in a ring."""
    trained = [r for r in read_all(results) if r.experiment in ("train", "distill")]
    mine, other = ({r.seed: r for r in trained if r.arm == arm} for arm in (first, second))
    if first != second:
        return [(mine[seed], other[seed]) for seed in sorted(mine) if seed in other]
    ring = sorted(mine)
    return [(mine[a], mine[b]) for a, b in zip(ring, ring[1:] + ring[:1], strict=True) if a != b]


def of_first_seed(results: str | Path, experiment: str, arms: Sequence[str]) -> list[Record]:
    """The records of an experiment's arms at its lowest seed, in the order of `arms`; empty where there are none."""
    found = [r for r in read_all(results) if r.experiment == experiment]
    first = [r for r in found if r.seed == min(r.seed for r in found)]
    return sorted((r for r in first if r.arm in arms), key=lambda r: arms.index(r.arm))


def histories(results: str | Path, arms: Sequence[str]) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """The arrays, training curves included, of every trained network of the arms, by (arm, seed)."""
    found = [r for r in read_all(results) if r.experiment in ("train", "distill") and r.arm in arms]
    return {(r.arm, r.seed): read_arrays(results, r) for r in found}


def config(record: Record, config_class: type[T]) -> T:
    """A dataclass filled from a record's parameters of the same names."""
    return config_class(**{f.name: record.params[f.name] for f in fields(config_class)})


def load(results: str | Path):
    """One tidy pandas table: a row a metric, with experiment, arm, seed, metric, value and stand_in."""
    import pandas as pd

    rows = [
        (r.experiment, r.arm, r.seed, metric, value, r.stand_in)
        for r in read_all(results)
        for metric, value in r.metrics.items()
    ]
    return pd.DataFrame(rows, columns=["experiment", "arm", "seed", "metric", "value", "stand_in"])


def now() -> datetime:
    """The time in UTC, as records keep it."""
    return datetime.now(UTC)


def provenance(*, source: str, notebook: str, started: datetime, device: str) -> dict[str, Any]:
    """What produced a run: commit (D3D_COMMIT and D3D_DIRTY where the tree has no history), source, packages, times."""
    return {
        "commit": os.environ.get("D3D_COMMIT") or _git("rev-parse", "HEAD") or "unknown",
        "dirty": os.environ["D3D_DIRTY"] not in ("", "0", "false") if "D3D_DIRTY" in os.environ else _dirty(),
        "source": source,
        "notebook": notebook,
        "packages": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "device": device,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((now() - started).total_seconds(), 1),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _dirty() -> bool:
    """Whether code or parameters differ from the commit; what runs write does not count."""
    return bool(_git("status", "--porcelain", "--", "d3d", "notebooks", "Snakefile", "requirements.lock"))


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


if __name__ == "__main__":
    print(headline(read(sys.argv[1])))
