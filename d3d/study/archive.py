"""Archives: a finished folder of records packed for publication, from which all results can be recomputed.

    d3d records pack results/h200                  # writes results/h200.jsonl and results/h200.npz
    d3d records pack results/search --only-metrics # writes results/search.jsonl
    d3d records merge a.jsonl b.jsonl --out results/mine      # of runs that were packed on several machines

The .jsonl file has one record per line, with a field `cell` if the archive was packed from several folders. The .npz
file has arrays `<experiment>/<arm>-seed<seed>/<array>` in small types. For each test split of a network these are:

- `prediction/<split>`: the predicted class of each clip,
- `choice/<split>`: the sign of the logit of its true class minus that of the other class of its pair,
- `labels/<split>` and `groups/<split>`: the digests of the clips' true classes and groups; of video files also
  `videos/<split>` and `sources/<split>`, the names of the clips and of the films that they were cut from. Of networks
  that were tested on the same clips they are stored once, as `labels/<split>/<digest>`.

A trained network also has, for the split that it is judged on, in quarters of a logit (`quarters`):

- `margin/<split>`: the logit of a clip's true class minus the highest other logit,
- `sibling/<split>`: the logit of its true class minus that of the other class of its pair.

`curve/<name>` are training curves over epochs. Other experiments publish all their arrays unchanged.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from d3d.documents import DocumentError
from d3d.files import write_atomic
from d3d.messages import one_line, printable
from d3d.progress import read_metrics
from d3d.study import records
from d3d.study.arrays import digest
from d3d.study.fields import Record, RecordError, check_cell
from d3d.study.plan import TESTED, main_split

GIVE_FOLDER = "give a folder that a study has written, such as results/smoke"
MAX_BYTES = 16 * 2**20  # of all archives together
MAX_MARGIN = 8.0  # logits; beyond it a decision is as good as certain
WITHOUT_SIBLING = -128  # in choices and margins of clips whose class has no pair


def pack(folder: str | Path, out: str | Path = "", *, only_metrics: bool = False) -> Path:
    """Writes a folder of records, or a folder of several such folders, as <out>.jsonl and <out>.npz.

    Args:
        folder: the folder to publish.
        out: path of the files without suffix; empty: that of the folder.
        only_metrics: whether to leave out all arrays.

    Returns:
        The path of the .jsonl file.

    Raises:
        RecordError: if there is no such folder, or it has no records, or invalid ones, or ones that fail
            `records.check_comparable`; if a file that is no archive would be overwritten; or if all archives together
            would exceed MAX_BYTES.
    """
    if not Path(folder).is_dir():
        what = "is a file" if Path(folder).exists() else "does not exist"
        raise RecordError(f"{printable(folder)} {what}: {GIVE_FOLDER}")
    folder = Path(folder).resolve()
    path = _output_path(Path(out or folder))
    cells = [folder] if any(folder.glob("*/*.json")) else sorted(p for p in folder.glob("*") if p.is_dir())
    archive = _Archive()
    for cell in cells:
        cell_name = cell.name if cell != folder else ""
        cell_records = records.read_all(cell)
        if cell_name and cell_records:
            check_cell(cell_name, printable(folder))
        for record in cell_records:
            archive.add(record, {} if only_metrics else dict(_arrays_to_publish(cell, record)), cell_name)
    if not archive.lines:
        raise RecordError(f"{printable(folder)} holds no records: {GIVE_FOLDER}")
    archive.write(path)
    return path


def merge(parts: Sequence[str | Path], out: str | Path, *, as_cells: bool = False) -> Path:
    """Joins archives of single folders into one.

    Args:
        parts: .jsonl files, such as those of some seeds each.
        out: path of the files to write, without suffix.
        as_cells: whether each part becomes a cell, with the name of its file.

    Returns:
        The path of the .jsonl file.

    Raises:
        RecordError: for a part that has no records, or cells of its own; for parts that hold a run twice or other
            parameters for an arm (`records.check_comparable`); and as `pack` does.
    """
    path, archive = _output_path(Path(out)), _Archive()
    joined: dict[str, list[Record]] = {}
    for part in map(Path, parts):
        cells = records.read_cells(part)
        if list(cells) != [""]:
            what = "has cells of its own" if cells else "holds no records"
            raise RecordError(f"{printable(part)} {what}: give archives of single folders")
        name = part.stem if as_cells else ""
        if as_cells:
            check_cell(name, printable(part))
        joined.setdefault(name, []).extend(cells[""])
        for record in cells[""]:
            archive.add(record, records.read_arrays(part, record) if record.arrays else {}, name)
    for cell_records in joined.values():
        records.check_comparable(cell_records, path)
    archive.write(path)
    return path


class _Archive:
    """The contents of an archive: lines of its .jsonl file, and arrays of its .npz file."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, record: Record, arrays: Mapping[str, np.ndarray], cell: str) -> None:
        """Adds a record; those of its arrays that networks share are stored once, and their digest in their place."""
        own: dict[str, np.ndarray] = {}
        for name, x in arrays.items():
            if name.startswith(records.SHARED):
                shared_digest = digest({name: x})
                self.arrays[f"{name}/{shared_digest}"] = x
                x = np.array(shared_digest)
            own[name] = x
        self.arrays |= {f"{records.array_prefix(record, cell)}{name}": x for name, x in own.items()}
        fields = asdict(replace(record, arrays=digest(own)))
        self.lines.append(json.dumps(fields | ({"cell": cell} if cell else {}), sort_keys=True) + "\n")

    def write(self, path: Path) -> None:
        contents = {path: "".join(self.lines).encode()}
        if self.arrays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **self.arrays)
            contents = {records.arrays_path(path): buffer.getvalue()} | contents
        _check_size(path.parent, contents)
        write_atomic(contents)


def _output_path(path: Path) -> Path:
    """The .jsonl file to write; refuses one that would overwrite other files than an archive."""
    name = path.name.removesuffix(".jsonl")
    if name in ("", ".."):
        raise RecordError(f"{printable(path)} names no file to write: give --out a path such as results/mine.jsonl")
    path = path.with_name(f"{name}.jsonl")
    try:
        is_archive = any(records.read_cells(path).values())
    except (RecordError, OSError):
        is_archive = False
    for existing in (path, records.arrays_path(path)):
        if existing.exists() and not is_archive:
            what = f"{printable(existing)} would be overwritten, but belongs to no archive of records"
            raise RecordError(f"{what}: choose another --out")
    return path


def _check_size(folder: Path, contents: Mapping[Path, bytes]) -> None:
    published = [p for ending in ("jsonl", "npz") for p in folder.glob(f"*.{ending}") if p not in contents]
    total = sum(p.stat().st_size for p in published) + sum(map(len, contents.values()))
    if total > MAX_BYTES:
        raise RecordError(
            f"all published studies in {printable(folder)} would take {total / 2**20:.1f} MiB, more than "
            f"{MAX_BYTES // 2**20}: pack fewer runs, or move old studies elsewhere"
        )


def _arrays_to_publish(folder: Path, record: Record) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and arrays of a record, reduced for publication, and its training curves."""
    try:
        arrays = records.read_arrays(folder, record)
    except FileNotFoundError:  # not copied along with the record
        arrays = {}
    siblings = arrays.pop("siblings", None)
    judged_on = main_split([name.removeprefix("logits/") for name in arrays if name.startswith("logits/")] or [""])
    for name, x in arrays.items():
        kind, _, split = name.partition("/")
        if kind == "logits":
            labels = arrays[f"labels/{split}"]
            yield f"labels/{split}", labels.astype(np.uint16)
            for shared in ("groups", "videos", "sources"):
                if f"{shared}/{split}" in arrays:
                    yield f"{shared}/{split}", arrays[f"{shared}/{split}"]
            yield f"prediction/{split}", x.argmax(1).astype(np.uint8 if x.shape[1] <= 256 else np.uint16)
            over_sibling = None if siblings is None else sibling_margins(x, labels, siblings)
            if over_sibling is not None:
                yield f"choice/{split}", _to_int8(np.sign(over_sibling))
            if record.experiment in TESTED and split == judged_on:
                yield f"margin/{split}", quarters(margins(x, labels))
                if over_sibling is not None:
                    yield f"sibling/{split}", quarters(over_sibling)
        elif kind == "curve":
            yield name, x.astype(np.float32)
        elif kind not in ("labels", "groups", "videos", "sources", "classes", "examples"):
            yield name, x
    if not any(name.startswith("curve/") for name in arrays):
        yield from _curves_of_run(folder, record).items()


def _curves_of_run(folder: Path, record: Record) -> dict[str, np.ndarray]:
    """The training curves of a run's metrics file; raises RecordError for a damaged file, naming it."""
    path = folder / record.experiment / f"{record.name}.jsonl"
    try:
        return curve_arrays(read_metrics(path))
    except DocumentError as error:
        raise RecordError(str(error)) from None
    except (KeyError, TypeError, ValueError):
        reason = "every row at the end of an epoch must have the same metrics, as numbers"
        raise RecordError(f"{printable(path)} does not hold the curves of a run: {reason}") from None


def curve_arrays(rows: Iterable[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Returns training curves as arrays `curve/<name>` (E,), float32, from the rows of a run's metrics file.

    Only the E rows written at the end of an epoch count.
    """
    epoch_ends = [row for row in rows if "loss" in row and row["epoch"] == int(row["epoch"])]
    names = [name for name in (epoch_ends[0] if epoch_ends else {}) if name not in ("time", "step", "event")]
    return {f"curve/{name}": np.array([row[name] for row in epoch_ends], np.float32) for name in names}


def read_curves(results: str | Path, record: Record, *, cell: str = "") -> list[dict[str, float]]:
    """Reads the training curves of a run, from its metrics file or from an archive.

    Args:
        results: the working folder or archive from which the record was read.
        record: the record.
        cell: cell of the record, in an archive that has several.

    Returns:
        One row of metrics per epoch; empty if the curves are missing.
    """
    if records.is_archive(results):
        try:
            arrays = records.read_arrays(results, record, cell=cell)
        except FileNotFoundError:
            arrays = {}
        arrays = {name: x for name, x in arrays.items() if name.startswith("curve/")}
    else:
        arrays = _curves_of_run(Path(results), record)
    names = [name.removeprefix("curve/") for name in arrays]
    return [dict(zip(names, map(float, row), strict=True)) for row in zip(*arrays.values(), strict=True)]


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the logit of each clip's true class minus the highest other logit.

    Args:
        logits: (N, K).
        labels: (N,), the true classes.

    Returns:
        (N,): positive where the prediction is correct.
    """
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    return logits[rows, labels] - others.max(1)


def sibling_margins(logits: np.ndarray, labels: np.ndarray, siblings: np.ndarray) -> np.ndarray:
    """Returns the logit of each clip's true class minus that of the sibling, the other class of its pair.

    Args:
        logits: (N, K).
        labels: (N,), the true classes.
        siblings: (K,), the sibling of each class; -1: none.

    Returns:
        (N,): nan for classes without a sibling.
    """
    sibling = siblings[labels]
    rows = np.arange(len(labels))
    return np.where(sibling >= 0, logits[rows, labels] - logits[rows, sibling], np.nan)


def quarters(margins: np.ndarray) -> np.ndarray:
    """Returns margins (N,) in quarters of a logit, int8: rounded away from zero, and up to MAX_MARGIN.

    nan becomes WITHOUT_SIBLING.
    """
    return _to_int8(np.sign(margins) * np.ceil(4 * np.abs(margins).clip(max=MAX_MARGIN)))


def _to_int8(x: np.ndarray) -> np.ndarray:
    return np.nan_to_num(x, nan=WITHOUT_SIBLING).astype(np.int8)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="d3d records", description="Shows or publishes records of runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    show_parser = commands.add_parser("show", help="print a run, its main metric and its duration in one line")
    show_parser.add_argument("record", type=Path, help="JSON file of a record")
    pack_parser = commands.add_parser("pack", help="pack a finished folder of records into a .jsonl and an .npz file")
    pack_parser.add_argument("folder", type=Path, help="folder of records, or a folder of several such folders")
    pack_parser.add_argument("--out", default="", help=".jsonl file to write (default: FOLDER.jsonl)")
    pack_parser.add_argument("--only-metrics", action="store_true", help="leave out predictions, curves and pictures")
    merge_parser = commands.add_parser("merge", help="join archives, such as those of some seeds each, into one")
    merge_parser.add_argument("parts", nargs="+", type=Path, help=".jsonl files")
    merge_parser.add_argument("--out", required=True, help=".jsonl file to write")
    merge_parser.add_argument("--cells", action="store_true", help="make a cell of each, named after its file")
    args = parser.parse_args(argv)
    try:
        if args.command == "show":
            print(records.headline(records.read(args.record)))
            return
        if args.command == "merge":
            path = merge(args.parts, args.out, as_cells=args.cells)
        else:
            path = pack(args.folder, args.out, only_metrics=args.only_metrics)
    except (ValueError, OSError) as error:
        sys.exit(one_line(error))
    files = [p for p in (path, records.arrays_path(path)) if p.is_file()]
    packed = [(cell, record) for cell, cell_records in records.read_cells(path).items() for record in cell_records]
    size = sum(p.stat().st_size for p in files)
    print(f"{len(packed)} records -> {', '.join(map(printable, files))}, {size / 2**20:.2f} MiB")
    if args.command == "merge" or args.only_metrics:
        return
    networks = [(cell, record) for cell, record in packed if record.experiment in (*TESTED, "fuse")]
    if missing := sum(not _has_predictions(path, record, cell) for cell, record in networks):
        print(f"{missing} networks have no predictions next to their records: only their metrics are published")


def _has_predictions(path: Path, record: Record, cell: str) -> bool:
    try:
        return any(name.startswith("prediction/") for name in records.read_arrays(path, record, cell=cell))
    except FileNotFoundError:
        return False
