"""Run records: one JSON file per run, written atomically at the end of the run, and one tidy table of all records.

    table = load("results/smoke")        # experiment, arm, seed, metric, value, stand_in
    table = load("results/h200.jsonl")   # the same from an archive

A working folder holds <experiment>/<arm>-seed<seed>.json, and next to it the run's .npz, .jsonl and .safetensors. An
archive is a published study: all records in one .jsonl file, all arrays in one .npz file (d3d/study/archive.py). An arm
is a network, ensemble or variant that a study compares, such as `rgb` or `d3d`.
"""

import io
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from d3d import documents
from d3d.files import sha256, write_atomic
from d3d.messages import printable, shown
from d3d.npz import NpzFile
from d3d.study.arrays import check_answers, digest, open_npz, read_array, short_sha256
from d3d.study.fields import Record, RecordError, check, check_cell, to_record, where_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("torch", "torchvision", "triton", "numpy", "scipy", "scikit-learn", "captum"),
    *("av", "opencv-contrib-python-headless", "safetensors", "papermill"),
)
# Arrays that an archive stores once for all networks tested on the same clips.
SHARED = ("labels/", "groups/", "videos/", "sources/")
# Suffixes of metric names, in order of preference for the one-line summary of a record.
HEADLINE_METRICS = (
    *("iid/top1", "/test/top1", "/val/top1", "iid/agreement", "/test/agreement", "/val/agreement"),
    *("Mixed_4b/target_epe", "motion_part/frozen", "boxes/frame_map", "ava/frame_map"),
)


def write(results: str | Path, record: Record, arrays: Mapping[str, np.ndarray] | None = None) -> Path:
    """Writes the arrays, if any, to <arm>-seed<seed>.npz in <results>/<experiment>, then the record to the .json.

    Returns:
        The path of the JSON file.

    Raises:
        RecordError: for a value that a record may not hold, naming it.
        OSError: for a file that cannot be written, naming it.
    """
    check(record, where_of(record))
    path = Path(results) / record.experiment / f"{record.name}.json"
    contents: dict[Path, bytes] = {}
    if arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        contents[path.with_suffix(".npz")] = buffer.getvalue()
        record = replace(record, arrays=short_sha256(buffer.getvalue()))
    contents[path] = (json.dumps(asdict(record), indent=1, sort_keys=True) + "\n").encode()
    write_atomic(contents)
    return path


def read(path: str | Path) -> Record:
    """Reads one record from its JSON file.

    Raises:
        RecordError: for a file that is truncated, renamed, of another schema or not a record, naming it.
        OSError: for a file that cannot be read.
    """
    path = Path(path)
    where = printable(path)
    record = to_record(_parse(_content(path), where), where)
    if path.stem != record.name or path.parent.name != record.experiment:
        raise RecordError(f"{where} holds the record of {record.experiment}/{record.name}: it was moved or renamed")
    return record


def _content(path: Path) -> bytes:
    try:
        return documents.read_bytes(path)
    except documents.DocumentError as error:
        raise RecordError(str(error)) from None


def _parse(content: bytes, where: str) -> dict[str, Any]:
    """Reads the fields of a record from its JSON; `where` names the source in errors."""
    try:
        fields = documents.parse_json(content, where)
    except documents.DocumentError as error:
        raise RecordError(f"{error}; if a run wrote it, delete it and repeat the run") from None
    if not isinstance(fields, dict) or "schema" not in fields:
        raise RecordError(f"{where} is not a run record: it has no field 'schema'")
    return fields


def is_archive(results: str | Path) -> bool:
    """Whether `results` is an archive, a .jsonl file, rather than a working folder."""
    return Path(results).suffix == ".jsonl"


def read_cells(results: str | Path) -> dict[str, list[Record]]:
    """Reads the records of an archive, grouped by cell.

    An archive packed from several folders of records, such as the cells of a grid of parameters, has one cell per
    folder.

    Returns:
        Records by the name of their cell; the name is empty if the archive was packed from a single folder.

    Raises:
        RecordError: for a line that is not a record, naming it.
    """
    cells: dict[str, list[Record]] = {}
    path = Path(results)
    for number, line in enumerate(_content(path).splitlines() if path.exists() else [], 1):
        where = f"line {number} of {printable(path)}"
        fields = _parse(line, where)
        cell = fields.pop("cell", "")
        if cell != "":
            check_cell(cell, where)
        cells.setdefault(cell, []).append(to_record(fields, where))
    return cells


def read_all(results: str | Path, experiments: Sequence[str] = ("*",)) -> list[Record]:
    """Reads the records of a working folder or an archive.

    Args:
        results: the working folder or the archive.
        experiments: names of the experiments to read; ("*",): all.

    Returns:
        The records; empty if there are none.

    Raises:
        RecordError: for an invalid record, or for records that fail `check_comparable`.
    """
    if is_archive(results):
        cells = list(read_cells(results).values())
    else:
        cells = [[read(path) for name in experiments for path in sorted(Path(results).glob(f"{name}/*.json"))]]
    for cell in cells:
        check_comparable(cell, results)
    return [record for cell in cells for record in cell if set(experiments) & {"*", record.experiment}]


def check_comparable(records: Sequence[Record], results: str | Path) -> None:
    """Checks that no run is recorded twice and that all seeds of an arm have the same parameters.

    Raises:
        RecordError: otherwise, naming the records and `results`, where they come from.
    """
    counts = Counter((record.experiment, record.name) for record in records)
    if duplicates := [f"{experiment}/{name}" for (experiment, name), count in counts.items() if count > 1]:
        raise RecordError(f"{printable(results)} holds {duplicates[0]} more than once: keep one of them")
    first_of_arm: dict[tuple[str, str], Record] = {}
    for record in records:
        first = first_of_arm.setdefault((record.experiment, record.arm), record)
        params, first_params = _common_params(record), _common_params(first)
        if differing := [name for name in params if params[name] != first_params.get(name)]:
            raise RecordError(
                f"{where_of(record)} and {first.name} under {printable(results)} were made with different "
                f"{', '.join(map(printable, differing[:5]))}: delete the one that does not belong there"
            )


def _common_params(record: Record) -> dict[str, Any]:
    """The parameters that must be the same for all seeds of an arm."""
    varying = {"seed", "results", "teacher", "second_teacher", "student", "weights", "pictures"}
    return {name: value for name, value in record.params.items() if name not in varying}


def read_arrays(results: str | Path, record: Record, *, cell: str = "") -> dict[str, np.ndarray]:
    """Reads the arrays that belong to a record.

    Args:
        results: the working folder or archive from which the record was read.
        record: the record.
        cell: cell of the record, in an archive that has several.

    Raises:
        FileNotFoundError: if the record has no arrays.
        RecordError: if the file is truncated or does not match the checksum in the record.
    """
    if is_archive(results):
        return _read_archived_arrays(arrays_path(results), record, cell)
    path = Path(results) / record.experiment / f"{record.name}.npz"
    where = printable(path)
    if not path.is_file():
        raise FileNotFoundError(f"{where} is missing, although its record exists: run {record.experiment!r} again")
    if sha256(path)[:16] != record.arrays:
        raise RecordError(f"{where} does not match the checksum in its record: run {record.experiment!r} again")
    with open_npz(path) as file:
        arrays = {name: read_array(file, name) for name in file.names}
    check_answers(arrays, where)
    return arrays


def arrays_path(archive: str | Path) -> Path:
    """Returns the path of the .npz file of an archive."""
    path = Path(archive)
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.npz")


def array_prefix(record: Record, cell: str = "") -> str:
    """Returns the prefix of the names of a record's arrays in an archive."""
    return f"{cell}/{record.experiment}/{record.name}/" if cell else f"{record.experiment}/{record.name}/"


def _read_archived_arrays(path: Path, record: Record, cell: str) -> dict[str, np.ndarray]:
    prefix, where = array_prefix(record, cell), printable(path)
    if not record.arrays or not path.is_file():
        raise FileNotFoundError(f"no arrays of {prefix[:-1]} in {where}: they were not published")
    with open_npz(path) as file:
        names = [name for name in file.names if name.startswith(prefix)]
        arrays = {name.removeprefix(prefix): read_array(file, name) for name in names}
        if digest(arrays) != record.arrays:
            raise RecordError(f"the arrays of {prefix[:-1]} in {where} do not match the checksum in the record")
        arrays |= _shared_arrays(file, arrays)
    check_answers(arrays, f"{prefix[:-1]} in {where}")
    return arrays


def _shared_arrays(file: NpzFile, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The SHARED arrays of a record: its own array is their digest, they are stored once, under its name."""
    shared = {name: f"{name}/{x}" for name, x in arrays.items() if name.startswith(SHARED)}
    if missing := set(shared.values()) - set(file.names):
        raise RecordError(f"{printable(file.path)} has no array {shown(min(missing))}, which a record needs")
    return {name: read_array(file, stored) for name, stored in shared.items()}


def of_first_seed(results: str | Path, experiment: str, arms: Sequence[str]) -> list[Record]:
    """Reads the records of the lowest seed that any of the arms has, in the order of `arms`.

    Arms without a record of that seed are left out.

    Raises:
        FileNotFoundError: if no arm has a record.
    """
    records = [record for record in read_all(results, [experiment]) if record.arm in arms]
    if not records:
        raise FileNotFoundError(f"no records of {experiment!r} under {printable(results)}: run that experiment first")
    lowest = min(record.seed for record in records)
    return sorted((record for record in records if record.seed == lowest), key=lambda record: arms.index(record.arm))


def load(results: str | Path, *, needs: Sequence[str] = ()):
    """Reads all records into one tidy pandas table with one row per metric; empty if there are none.

    Args:
        results: the working folder or the archive.
        needs: experiments that must have records.

    Returns:
        A data frame with the columns experiment, arm, seed, metric, value and stand_in.

    Raises:
        FileNotFoundError: for an experiment of `needs` without records, naming it.
    """
    table = _table(read_all(results))
    if missing := [name for name in needs if name not in set(table["experiment"])]:
        raise FileNotFoundError(f"no records of {missing[0]!r} under {printable(results)}: run that experiment first")
    return table


def load_cells(results: str | Path) -> dict[str, Any]:
    """Reads an archive of several cells: by the name of the cell, a table as `load` returns it."""
    return {cell: _table(cell_records) for cell, cell_records in read_cells(results).items()}


def _table(records: Sequence[Record]):
    import pandas as pd

    rows = [
        (record.experiment, record.arm, record.seed, metric, value, record.stand_in)
        for record in records
        for metric, value in record.metrics.items()
    ]
    return pd.DataFrame(rows, columns=["experiment", "arm", "seed", "metric", "value", "stand_in"])


def provenance(*, source: str, notebook: str, device: str) -> dict[str, Any]:
    """Returns the origin of a run: its code, packages, device and starting time; call it when the run starts.

    The environment variables D3D_COMMIT and D3D_DIRTY override commit and dirty, for copies without git history.

    Args:
        source: hash of the code that computes the run.
        notebook: path of the notebook.
        device: name of the device.

    Returns:
        commit, dirty (whether the code differs from the commit), source, notebook, packages (versions by name), device
        and started (UTC, ISO 8601).
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
    """Returns the seconds since `started`, a time in the format of `provenance`."""
    return round((datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds(), 1)


def _git(*arguments: str) -> str:
    try:
        process = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""


def _dirty() -> bool:
    """Whether code or parameters differ from the commit, or the commit is unknown; ignores what runs write."""
    sources = ("d3d", "notebooks", "Snakefile", "requirements.lock")
    return not _git("rev-parse", "HEAD") or bool(_git("status", "--porcelain", "--", *sources))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def headline(record: Record) -> str:
    """Returns one line: the run, its main metric and its duration."""
    ranked = (name for suffix in HEADLINE_METRICS for name in record.metrics if name.endswith(suffix))
    metric = next(ranked, next(iter(record.metrics), None))
    value = f"{printable(metric)} {record.metrics[metric]:.3f}" if metric else "no metric"
    return f"{record.experiment:<12} {record.name:<22} {value:<32} {record.provenance['seconds']:6.1f} s"
