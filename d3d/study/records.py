"""Run records: one JSON per run, written last and whole, and one tidy table of them all.

    table = load("results/smoke")        # experiment, arm, seed, metric, value, stand_in
    table = load("results/h200.jsonl")   # the same of a published study (d3d/study/archive.py)

A working folder holds <experiment>/<arm>-seed<seed>.json, and beside it .npz, .jsonl and .safetensors.
"""

import hashlib
import io
import json
import os
import platform
import subprocess
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, get_origin

import numpy as np

from d3d.files import write_atomic

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("torch", "torchvision", "triton", "numpy", "scipy", "scikit-learn", "captum"),
    *("av", "opencv-contrib-python-headless", "safetensors", "papermill"),
)
HEADLINES = ("iid/top1", "/test/top1", "/val/top1", "Mixed_4f/motion/r2_within", "motion_part/frozen")


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
    record = _record(_fields(path.read_bytes(), str(path)), str(path))
    if path.stem != record.name or path.parent.name != record.experiment:
        raise RecordError(f"{path} holds the record of {record.experiment}/{record.name}: it was moved or renamed")
    return record


def _fields(content: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError:
        raise RecordError(f"{where} is no whole JSON, as a run's record is: delete it and run it again") from None
    if not isinstance(fields, dict) or "schema" not in fields:
        raise RecordError(f"{where} is no run record: it names no schema")
    return fields


def _record(fields: dict[str, Any], where: str) -> Record:
    if fields["schema"] != SCHEMA:
        raise RecordError(f"{where} has schema {fields['schema']!r}, this version reads {SCHEMA}: run it again")
    try:
        record = Record(**fields)
    except TypeError as error:
        raise RecordError(f"{where} is no run record: {str(error).removeprefix('Record.__init__() ')}") from None
    for f in dataclass_fields(Record):
        kind = get_origin(f.type) or f.type
        if type(getattr(record, f.name)) is not kind:
            raise RecordError(f"{where}: {f.name} must be of type {kind.__name__}, not {getattr(record, f.name)!r}")
    if bad := [name for name, value in record.metrics.items() if type(value) not in (int, float)]:
        raise RecordError(f"{where}: metric {bad[0]!r} must be a number, not {record.metrics[bad[0]]!r}")
    return record


def is_archive(results: str | Path) -> bool:
    """Whether results are a published study, one file, and not a working folder."""
    return Path(results).suffix == ".jsonl"


def read_cells(results: str | Path) -> dict[str, list[Record]]:
    """The records of a published study by the folder that they were made in; `""` where it had no folders in it.

    Raises RecordError naming the line that is no record.
    """
    found: dict[str, list[Record]] = {}
    path = Path(results)
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        where = f"line {number} of {path}"
        fields = _fields(line, where)
        cell = fields.pop("cell", "")
        found.setdefault(cell, []).append(_record(fields, where))
    return found


def read_all(results: str | Path, experiments: Sequence[str] = ("*",)) -> list[Record]:
    """Every record of the experiments in a working folder or a published study, in order; empty where there are none.

    Raises RecordError where runs of one arm were made with different parameters: their mean would mean nothing.
    """
    if is_archive(results):
        cells = list(read_cells(results).values())
    else:
        cells = [[read(path) for name in experiments for path in sorted(Path(results).glob(f"{name}/*.json"))]]
    return [r for cell in cells for r in comparable(cell, results) if set(experiments) & {"*", r.experiment}]


def comparable(found: list[Record], results: str | Path) -> list[Record]:
    """The records. Raises RecordError where runs of one arm were made with different parameters: their mean would mean
    nothing."""
    first: dict[tuple[str, str], Record] = {}
    names = Counter((r.experiment, r.name) for r in found)
    if doubled := [f"{experiment}/{name}" for (experiment, name), count in names.items() if count > 1]:
        raise RecordError(f"{results} holds {doubled[0]} more than once: leave one")
    for record in found:
        other = first.setdefault((record.experiment, record.arm), record)
        own, others = _shared(record), _shared(other)
        if differing := [name for name in own if own[name] != others.get(name)]:
            raise RecordError(
                f"{record.experiment}/{record.name} and {other.name} under {results} were made with different "
                f"{', '.join(differing)}: delete the one that does not belong there"
            )
    return found


def _shared(record: Record) -> dict[str, Any]:
    """The parameters that all seeds of an arm have in common."""
    own = {"seed", "results", "teacher", "student", "pictures"}
    return {name: value for name, value in record.params.items() if name not in own}


def read_arrays(results: str | Path, record: Record, *, cell: str = "") -> dict[str, np.ndarray]:
    """The arrays beside a record; of a published study in several folders, of the one named `cell`.

    Raises FileNotFoundError where there are none, RecordError where they are cut or another run's.
    """
    if is_archive(results):
        return _published_arrays(arrays_of(results), record, cell)
    path = Path(results) / record.experiment / f"{record.name}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"no arrays at {path}, beside its record: run {record.experiment!r} again")
    content = path.read_bytes()
    if _digest(content) != record.arrays:
        raise RecordError(f"{path} holds other arrays than its record says: run {record.experiment!r} again")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def arrays_of(archive: str | Path) -> Path:
    """Where the arrays of a published study are."""
    path = Path(archive)
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.npz")


def place_of(record: Record, cell: str = "") -> str:
    """What the names of a record's arrays begin with in a published study."""
    return f"{cell}/{record.experiment}/{record.name}/" if cell else f"{record.experiment}/{record.name}/"


def _published_arrays(path: Path, record: Record, cell: str) -> dict[str, np.ndarray]:
    place = place_of(record, cell)
    if not record.arrays or not path.is_file():
        raise FileNotFoundError(f"no arrays of {place[:-1]} in {path}: they were not published")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name.removeprefix(place): file[name] for name in file.files if name.startswith(place)}
            if digest_of(found) != record.arrays:
                raise RecordError(f"{path} holds other arrays of {place[:-1]} than its record says")
            shared = {name: file[f"{name}/{x}"] for name, x in found.items() if name.startswith("labels/")}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise RecordError(f"{path} is no whole archive of arrays: {error}") from None
    return found | shared


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256, shortened, of arrays and their names."""
    parts = [f"{name} {x.dtype} {x.shape}".encode() + x.tobytes() for name, x in sorted(arrays.items())]
    return _digest(b"".join(parts)) if parts else ""


def of_first_seed(results: str | Path, experiment: str, arms: Sequence[str]) -> list[Record]:
    """The records of an experiment's arms at its lowest seed, in the order of `arms`.

    Raises FileNotFoundError where there is none.
    """
    found = [r for r in read_all(results, [experiment]) if r.arm in arms]
    if not found:
        raise FileNotFoundError(f"no records of {experiment!r} under {results}: run that experiment first")
    first = [r for r in found if r.seed == min(r.seed for r in found)]
    return sorted(first, key=lambda r: arms.index(r.arm))


def load(results: str | Path, *, needs: Sequence[str] = ()):
    """One tidy pandas table: a row per metric, with experiment, arm, seed, metric, value and stand_in; empty where
    there is no record.

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
    metric = next((m for end in HEADLINES for m in record.metrics if m.endswith(end)), next(iter(record.metrics), None))
    value = f"{metric} {record.metrics[metric]:.3f}" if metric else "no metric"
    return f"{record.experiment:<12} {record.name:<22} {value:<32} {record.provenance.get('seconds', 0):6.1f} s"
