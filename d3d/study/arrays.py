"""Reads the arrays of records from .npz files, whose sizes are checked before anything is unpacked.

with open_npz(Path("results/h200.npz")) as file:
    labels = read_array(file, "labels/iid")
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from d3d.messages import printable, shown
from d3d.npz import NpzError, NpzFile
from d3d.study.fields import RecordError

MAX_BYTES = 2**30  # of one array, unpacked


@contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """Opens the .npz file of a record or an archive; within the `with` block too, errors of it are RecordErrors."""
    try:
        with NpzFile(path) as file:
            yield file
    except NpzError as error:
        raise RecordError(str(error)) from None


def read_array(file: NpzFile, name: str) -> np.ndarray:
    """Reads an array; raises RecordError for one larger than MAX_BYTES."""
    header = file.header(name)
    if math.prod(header.shape) * header.dtype.itemsize > MAX_BYTES:
        raise RecordError(f"{printable(file.path)}: array {shown(name)} is larger than {MAX_BYTES // 2**20} MiB")
    return file.read(name)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the shortened SHA-256 of arrays and their names; empty if there are none."""
    content = [f"{name} {x.dtype} {x.shape}".encode() + x.tobytes() for name, x in sorted(arrays.items())]
    return short_sha256(b"".join(content)) if content else ""


def short_sha256(content: bytes) -> str:
    """Returns the first 16 hex digits of the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def check_answers(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Checks the arrays of a network on its test splits and its training curves, if there are any.

    Args:
        arrays: `labels/<split>` (N,); `logits/<split>` (N, K), or in an archive `prediction/<split>`,
            `choice/<split>`, `margin/<split>` and `sibling/<split>` (N,); `siblings` (K,); `curve/<name>` (E,).
        where: what they belong to, printable, for errors.

    Raises:
        RecordError: for arrays of different lengths, labels that are no class, and logits that are not finite.
    """
    curves = {x.shape for name, x in arrays.items() if name.startswith("curve/")}
    if len(curves) > 1 or any(len(shape) != 1 for shape in curves):
        raise RecordError(f"{where}: the training curves must have one value per epoch")
    for name, x in arrays.items():
        kind, _, split = name.partition("/")
        if kind not in ("logits", "prediction", "choice", "margin", "sibling"):
            continue
        labels = arrays.get(f"labels/{split}")
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0:
            raise RecordError(f"{where}: {shown(name)} needs whole numbers labels/<split> (N,) beside it")
        if x.shape[:1] != labels.shape or x.ndim != (2 if kind == "logits" else 1) or x.dtype.kind not in "iuf":
            raise RecordError(
                f"{where}: {shown(name)} must hold numbers for {len(labels)} clips, as its labels do, not {x.dtype} of "
                f"shape {x.shape}"
            )
        if kind == "logits" and not (labels.min() >= 0 and labels.max() < x.shape[1]):
            raise RecordError(f"{where}: labels of {shown(split)} must lie from 0 to {x.shape[1] - 1}")
        siblings = arrays.get("siblings")
        if kind == "logits" and siblings is not None and not _are_classes(siblings, x.shape[1]):
            raise RecordError(f"{where}: siblings must be a class or -1 for each of {x.shape[1]} classes")
        if kind == "logits" and not np.isfinite(x).all():
            raise RecordError(f"{where}: {shown(name)} must be finite, but holds nan or an infinite number")


def _are_classes(siblings: np.ndarray, classes: int) -> bool:
    is_whole = siblings.shape == (classes,) and siblings.dtype.kind == "i"
    return is_whole and siblings.min() >= -1 and siblings.max() < classes
