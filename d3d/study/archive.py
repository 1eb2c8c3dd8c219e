"""Published studies: a finished folder of records as one file, so that anyone can recompute what follows from them.

    d3d records pack results/h200       # writes results/h200.jsonl and results/h200.npz

The .jsonl has a record per line, with its `cell` where the study is of several folders of records. The .npz has
`<experiment>/<arm>-seed<seed>/<array>`, small types: of a network, by test split, `prediction/<split>` the class,
`margin/<split>` the logit of the clip's class minus the highest other, `sibling/<split>` minus that of the other class
of its pair (nan where it has none); `curve/<name>` over epochs; what other experiments kept, as they kept it.
`labels/<split>` stand once for all networks.
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
from d3d.study.records import Record, RecordError

LARGEST = 16 * 2**20  # bytes that all published studies may take together


def pack(folder: str | Path, out: str | Path = "") -> Path:
    """Writes a finished folder of records as <out>.jsonl and <out>.npz, beside the folder unless said otherwise.

    Raises RecordError where the folder has no record, or one that is not whole or not comparable with the others.
    """
    folder = Path(folder)
    path = Path(out or folder).with_suffix(".jsonl")
    cells = [folder] if any(folder.glob("*/*.json")) else sorted(p for p in folder.glob("*") if p.is_dir())
    lines: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    for cell in cells:
        for record in records.read_all(cell):
            own = dict(_arrays(cell, record)) if cell == folder else {}
            labels = {name: own.pop(name) for name in list(own) if name.startswith("labels/")}
            _share(arrays, labels, record)
            arrays |= {f"{record.experiment}/{record.name}/{name}": x for name, x in own.items()}
            fields = asdict(replace(record, arrays=records.digest_of(own)))
            fields |= {"cell": cell.name} if cell != folder else {}
            lines.append(json.dumps(fields, sort_keys=True) + "\n")
    if not lines:
        raise RecordError(f"{folder} holds no records: give a folder that a study has written, such as results/smoke")
    contents = {path: "".join(lines).encode()}
    if arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        contents = {path.with_suffix(".npz"): buffer.getvalue()} | contents
    write_atomic(contents)
    return path


def _share(arrays: dict[str, np.ndarray], labels: Mapping[str, np.ndarray], record: Record) -> None:
    for name, x in labels.items():
        if not np.array_equal(arrays.setdefault(name, x), x):
            raise RecordError(
                f"{record.experiment}/{record.name} was tested on other clips than the networks before it"
            )


def _arrays(folder: Path, record: Record) -> Iterator[tuple[str, np.ndarray]]:
    """What is published of a record's arrays, and of its curves."""
    try:
        found = records.read_arrays(folder, record)
    except FileNotFoundError:  # left where they were made
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
        elif kind not in ("labels", "groups", "curve"):
            yield name, x
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
    files = [p for p in (path, path.with_suffix(".npz")) if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    count = sum(map(len, records.read_cells(path).values()))
    names = ", ".join(map(str, files))
    print(f"{count} records -> {names}, {size / 2**20:.2f} MiB of {LARGEST // 2**20} for all that is published")
