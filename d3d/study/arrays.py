"""Reads the arrays of records from .npz files, whose sizes are checked before anything is unpacked.

with open_npz(path, "results/h200.npz") as npz:
    labels = npz["labels/iid"]
"""

import hashlib
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from d3d.files import shown
from d3d.study.fields import RecordError

MAX_BYTES = 2**30  # of one array, unpacked


class Npz:
    """The arrays of an open .npz file.

    Args:
        archive: the file.
        where: its name, printable, for errors.

    Attributes:
        names: names of the arrays, in the order of the file.
    """

    def __init__(self, archive: zipfile.ZipFile, where: str) -> None:
        self.archive, self.where = archive, where
        self.names = [name.removesuffix(".npy") for name in archive.namelist()]
        if len(set(self.names)) < len(self.names):
            raise RecordError(f"{where} holds two arrays of one name")

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads an array.

        Raises:
            RecordError: for an array of Python objects, one larger than MAX_BYTES, and one whose shape and type do not
                match its size.
        """
        info = self.archive.getinfo(f"{name}.npy")
        if info.file_size > MAX_BYTES:
            raise RecordError(f"{self.where}: array {shown(name)} is larger than {MAX_BYTES // 2**20} MiB")
        with self.archive.open(info) as file:
            version = npy.read_magic(file)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read_header(file)
            if dtype.hasobject:
                raise RecordError(f"{self.where}: array {shown(name)} holds Python objects, not numbers or text")
            if file.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
                raise RecordError(f"{self.where}: array {shown(name)} is not of the size that its header names")
        with self.archive.open(info) as file:
            return npy.read_array(file, allow_pickle=False)


@contextmanager
def open_npz(source: Path | BinaryIO, where: str) -> Iterator[Npz]:
    """Opens an .npz file.

    Args:
        source: the file.
        where: its name, printable, for errors.

    Raises:
        RecordError: within the `with` block too, for a file that is damaged, or no .npz file.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            yield Npz(archive, where)
    except RecordError:
        raise
    # Encrypted members are a RuntimeError, unknown methods of compression a NotImplementedError, which is one too.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise RecordError(f"{where} is not a complete archive of arrays: {shown(reason, 100)}") from None
    except MemoryError:
        raise RecordError(f"{where} holds arrays that need more memory than there is") from None


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
            `margin/<split>` and `sibling/<split>` (N,); `siblings` (K,); `curve/<name>` (E,).
        where: what they belong to, printable, for errors.

    Raises:
        RecordError: for arrays of different lengths, labels that are no class, and logits that are not finite.
    """
    curves = {x.shape for name, x in arrays.items() if name.startswith("curve/")}
    if len(curves) > 1 or any(len(shape) != 1 for shape in curves):
        raise RecordError(f"{where}: the training curves must have one value per epoch")
    for name, x in arrays.items():
        kind, _, split = name.partition("/")
        if kind not in ("logits", "prediction", "margin", "sibling"):
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
