"""The fields of a record, and what each may hold.

What is written passes the same checks as what is read: a run that ends has a record that reads.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from typing import Any, get_origin

from d3d.documents import Entry, check_entries, is_number
from d3d.messages import printable, shown
from d3d.study.arms import NAME
from d3d.study.parameters import MAX_SEED

SCHEMA = 1
# A cell is a folder of records.
CELL_NAME = re.compile(r"\w[\w .+=,-]*")
LONGEST_NAME = 100  # characters of the name of a cell
LONGEST_METRIC = 300  # characters of the name of a metric or parameter
DIGEST = re.compile(r"(?:[0-9a-f]{16})?")


class RecordError(ValueError):
    """A file that is not a complete, valid record or does not belong to its folder; the message names it."""


@dataclass(frozen=True)
class Record:
    """The record of one run.

    Attributes:
        experiment: name of the experiment.
        arm: name of the arm, such as `rgb`.
        seed: seed of the run.
        params: all parameters that the experiment's notebook can set: text, numbers and booleans by name.
        metrics: finite values by name, such as `iid/top1`.
        stand_in: whether rendered sprites stand in for the paper's videos.
        provenance: the result of `records.provenance()`, plus `seconds` (duration of the run) and `made_from` (the
            arm's inputs, see d3d/study/plan.py).
        files: for video files, the numbers of clips `listed`, `found`, `missing` and `decoded`, and `refused` (path of
            each unreadable file to the reason), `missing_first` (up to 20 names) and, with flow, `flow`; empty for
            sprites.
        arrays: checksum of the arrays; empty: there are none. The first 16 hex digits of the SHA-256 of the .npz file,
            or in an archive of the record's arrays (`arrays.digest`).
        schema: version of this format.
    """

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
        """File name of the record without its suffix."""
        return f"{self.arm}-seed{self.seed}"


TYPES = {f.name: get_origin(f.type) or f.type for f in fields(Record)}


def to_record(values: Mapping[str, Any], where: str) -> Record:
    """Makes a record from its fields, as JSON has them.

    Args:
        values: the fields by name.
        where: where they come from, printable, for errors.

    Raises:
        RecordError: for a missing or unknown field or a value that it may not hold, naming it.
    """
    if type(values["schema"]) is not int or values["schema"] != SCHEMA:
        raise RecordError(f"{where} has schema {shown(values['schema'])}, this version reads {SCHEMA}: repeat the run")
    declared = fields(Record)
    if unknown := sorted(set(values) - {f.name for f in declared}):
        raise RecordError(f"{where} is not a run record: it has an unknown field {shown(unknown[0])}")
    required = (f.name for f in declared if f.default is MISSING and f.default_factory is MISSING)
    if missing := [name for name in required if name not in values]:
        raise RecordError(f"{where} is not a run record: it has no field {missing[0]!r}")
    record = Record(**values)
    check(record, where)
    return record


def check(record: Record, where: str) -> None:
    """Checks every field of a record.

    Args:
        record: the record.
        where: where it comes from, printable, for errors.

    Raises:
        RecordError: for a value that a field may not hold, naming field and value.
    """
    for name, field_type in TYPES.items():
        value = getattr(record, name)
        if type(value) is not field_type:
            raise RecordError(f"{where}: {name} must be of type {field_type.__name__}, not {shown(value)}")
    for kind, name in {"experiment": record.experiment, "arm": record.arm}.items():
        if not NAME.fullmatch(name):
            raise RecordError(
                f"{where}: {kind} must be a name of lower-case letters, digits and _, such as d3d_kl, not {shown(name)}"
            )
    if not 0 <= record.seed < MAX_SEED:
        raise RecordError(f"{where}: seed must lie from 0 to {MAX_SEED - 1}, not {record.seed}")
    if not DIGEST.fullmatch(record.arrays):
        raise RecordError(f"{where}: arrays must be a checksum of 16 hex digits or empty, not {shown(record.arrays)}")
    for name, value in record.params.items():
        if not (type(value) in (str, bool) or is_number(value)):
            raise RecordError(
                f"{where}: parameter {shown(name)} must be text, true, false or a finite number, not {shown(value)}"
            )
    for name, value in record.metrics.items():
        if not is_number(value):
            raise RecordError(f"{where}: metric {shown(name)} must be a finite number, not {shown(value)}")
    lengths = set(map(len, [*record.params, *record.metrics]))
    if lengths and not 1 <= min(lengths) <= max(lengths) <= LONGEST_METRIC:
        raise RecordError(f"{where}: a metric or parameter must have a name of 1 to {LONGEST_METRIC} characters")
    check_entries(record.provenance, PROVENANCE, where, RecordError, within="provenance")
    check_entries(record.files, FILES, where, RecordError, within="files")


def check_cell(name: Any, where: str) -> None:
    """Raises RecordError for what cannot be the name of a cell; `where` is where it comes from, for errors."""
    if not isinstance(name, str) or not CELL_NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise RecordError(f"{where}: a cell must have a name of letters, digits and _ . + = , - not {shown(name)}")


def _is_text_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


# The pages and tables of the book read those that are not optional.
PROVENANCE = {
    "commit": Entry("text", _is_text, optional=False),
    "dirty": Entry("true or false", lambda value: isinstance(value, bool), optional=False),
    "device": Entry("text", _is_text, optional=False),
    "started": Entry("a time such as 2026-01-31T12:00:00+00:00", _is_time, optional=False),
    "seconds": Entry("a number from 0 on", lambda value: is_number(value) and value >= 0, optional=False),
    "packages": Entry("versions by package", _is_text_by_name, optional=False),
    "host": Entry("text", _is_text),
    "source": Entry("text", _is_text),
    "notebook": Entry("text", _is_text),
    "processes": Entry("a count", _is_count),
    "made_from": Entry("values by name", lambda value: isinstance(value, dict)),
}
FILES = {
    **{name: Entry("a count", _is_count) for name in ("listed", "found", "missing", "decoded")},
    "refused": Entry("reasons by file", _is_text_by_name),
    "missing_first": Entry("a list of names", lambda value: isinstance(value, list) and all(map(_is_text, value))),
}


def where_of(record: Record) -> str:
    """A record by its experiment, arm and seed, printable, for errors."""
    return printable(f"{record.experiment}/{record.name}")
