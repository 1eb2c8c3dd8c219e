"""Published studies: a finished folder of records as one file, so that anyone can recompute what follows from them.

    d3d records pack results/h200       # writes results/h200.jsonl and results/h200.npz

The .jsonl has a record per line, with its `cell` where the study is of several folders of records. The .npz has
`<experiment>/<arm>-seed<seed>/<array>`, small types: of a network, by test split, `prediction/<split>` the class,
`margin/<split>` the logit of the clip's class minus the highest other, `sibling/<split>` minus that of the other class
of its pair (nan where it has none); `curve/<name>` over epochs; what other experiments kept, as they kept it.
Labels are stored once, as `labels/<split>/<digest>`; a run's `labels/<split>` is the digest.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from d3d.files import write_atomic
from d3d.progress import read_metrics
from d3d.study import records
from d3d.study.plan import TRAINED
from d3d.study.records import Record, RecordError

LARGEST = 16 * 2**20  # bytes that all published studies may take together


def pack(folder: str | Path, out: str | Path = "") -> Path:
    """Writes a finished folder of records, or of folders of them, as <out>.jsonl and <out>.npz.

    out: the path without its ending; empty: beside the folder, with its name.
    Raises RecordError where the folder has no record, or one that is not whole or not comparable with the others, and
    where all that is published there would take more than LARGEST.
    """
    folder = Path(folder).resolve()
    path = Path(out or folder)
    path = path.with_name(f"{path.name.removesuffix('.jsonl')}.jsonl")
    cells = [folder] if any(folder.glob("*/*.json")) else sorted(p for p in folder.glob("*") if p.is_dir())
    lines: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    for cell in cells:
        name = cell.name if cell != folder else ""
        for record in records.read_all(cell):
            own: dict[str, np.ndarray] = {}
            for key, x in _arrays(cell, record):
                own[key], shared = _pointer(key, x) if key.startswith("labels/") else (x, {})
                arrays |= shared
            arrays |= {f"{records.place_of(record, name)}{key}": x for key, x in own.items()}
            fields = asdict(replace(record, arrays=records.digest_of(own)))
            lines.append(json.dumps(fields | ({"cell": name} if name else {}), sort_keys=True) + "\n")
    if not lines:
        raise RecordError(f"{folder} holds no records: give a folder that a study has written, such as results/smoke")
    contents = {path: "".join(lines).encode()}
    if arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        contents = {records.arrays_of(path): buffer.getvalue()} | contents
    _keep_small(path.parent, contents)
    write_atomic(contents)
    return path


def _pointer(key: str, labels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels that many networks share are stored once, by their digest, which stands in their place."""
    digest = records.digest_of({key: labels})
    return np.array(digest), {f"{key}/{digest}": labels}


def _keep_small(folder: Path, contents: Mapping[Path, bytes]) -> None:
    beside = [p for ending in ("jsonl", "npz") for p in folder.glob(f"*.{ending}") if p not in contents]
    total = sum(p.stat().st_size for p in beside) + sum(map(len, contents.values()))
    if total > LARGEST:
        raise RecordError(
            f"all that is published in {folder} would take {total / 2**20:.1f} MiB, over {LARGEST // 2**20}: "
            "pack fewer runs, or move what is old elsewhere"
        )


def _arrays(folder: Path, record: Record) -> Iterator[tuple[str, np.ndarray]]:
    """What is published of a record's arrays, and of its curves."""
    try:
        found = records.read_arrays(folder, record)
    except FileNotFoundError:  # not copied along with the record
        found = {}
    siblings = found.pop("siblings", None)
    for name, x in found.items():
        kind, _, split = name.partition("/")
        if kind == "logits":
            labels = found[f"labels/{split}"]
            yield f"prediction/{split}", x.argmax(1).astype(np.uint8 if x.shape[1] <= 256 else np.uint16)
            yield f"margin/{split}", margins(x, labels).astype(np.float16)
            if siblings is not None:
                yield f"sibling/{split}", sibling_margins(x, labels, siblings).astype(np.float16)
            yield f"labels/{split}", labels.astype(np.uint16)
        elif kind == "curve":
            yield name, x.astype(np.float32)
        elif kind not in ("labels", "groups"):
            yield name, x
    if not any(name.startswith("curve/") for name in found):
        yield from curves(read_metrics(folder / record.experiment / f"{record.name}.jsonl")).items()


def curves(rows: Iterable[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Training curves `curve/<name>`, float32, from the rows at each epoch's end of a run's metrics file."""
    ends = [row for row in rows if "loss" in row and row["epoch"] == int(row["epoch"])]
    names = [name for name in (ends[0] if ends else {}) if name not in ("time", "step", "event")]
    return {f"curve/{name}": np.array([row[name] for row in ends], np.float32) for name in names}


def read_curves(results: str | Path, record: Record) -> list[dict[str, float]]:
    """A row per epoch of a run's training, from its metrics file or a published study; empty where none is kept."""
    if records.is_archive(results):
        try:
            found = records.read_arrays(results, record)
        except FileNotFoundError:
            found = {}
        found = {name: x for name, x in found.items() if name.startswith("curve/")}
    else:
        found = curves(read_metrics(Path(results) / record.experiment / f"{record.name}.jsonl"))
    names = [name.removeprefix("curve/") for name in found]
    return [dict(zip(names, map(float, row), strict=True)) for row in zip(*found.values(), strict=True)]


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The logit of each clip's class minus the highest of the others (N,), from logits (N, K)."""
    own = logits[np.arange(len(labels)), labels]
    others = logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return own - others.max(1)


def sibling_margins(logits: np.ndarray, labels: np.ndarray, siblings: np.ndarray) -> np.ndarray:
    """The logit of each clip's class minus that of the other class of its pair (N,); nan where it has none.

    siblings (K,): the other class of each, -1 for none.
    """
    other = siblings[labels]
    rows = np.arange(len(labels))
    return np.where(other >= 0, logits[rows, labels] - logits[rows, other], np.nan)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="d3d records", description="Records of runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="one line: a run and its first metric of interest")
    show.add_argument("record", type=Path, help="a record's JSON file")
    packed = commands.add_parser("pack", help="a finished folder as one published file")
    packed.add_argument("folder", type=Path, help="a folder of records, or of folders of them")
    packed.add_argument("--out", default="", help="the file to write (default: beside the folder, with its name)")
    given = parser.parse_args(argv)
    try:
        if given.command == "show":
            print(records.headline(records.read(given.record)))
            return
        path = pack(given.folder, given.out)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    files = [p for p in (path, records.arrays_of(path)) if p.is_file()]
    found = [r for cell in records.read_cells(path).values() for r in cell]
    size = sum(p.stat().st_size for p in files)
    print(f"{len(found)} records -> {', '.join(map(str, files))}, {size / 2**20:.2f} MiB")
    bare = [r for r in found if r.experiment in (*TRAINED, "fuse") and not _predicts(path, r)]
    if bare:
        print(f"{len(bare)} networks have no predictions beside their records: only their metrics are published")


def _predicts(path: Path, record: Record) -> bool:
    try:
        return any(name.startswith("prediction/") for name in records.read_arrays(path, record))
    except FileNotFoundError:
        return False
