"""Reads the arrays of an .npz file, headers first: no array is unpacked before its name, type and size are known.

with NpzFile("weights.npz") as file:
    if file.header("x").shape == (3,):
        x = file.read("x")
"""

import io
import math
import warnings
import zipfile
from pathlib import Path
from typing import IO, NamedTuple, Self

import numpy as np

from d3d.messages import one_line

# NumPy reads no header longer than 10,000 bytes; the magic string and the length come before it.
MAX_HEADER = 10_012
# Deflate packs at most this many bytes into one.
MAX_DEFLATION = 1032
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpzError(ValueError):
    """The file is damaged, or holds something else than arrays of numbers and text; the message names it."""


class ArrayHeader(NamedTuple):
    """The type and the shape of an array, known before it is unpacked."""

    dtype: np.dtype
    shape: tuple[int, ...]


class NpzFile:
    """An open .npz file; opening it reads the names of the arrays.

    What that and a header take is bounded by the size of the file. An array may be a thousand times larger than its
    packed bytes: compare its header with what is needed before reading it.

    Args:
        path: File written by `numpy.savez` or `numpy.savez_compressed`.

    Attributes:
        names: The names of the arrays.

    Raises:
        FileNotFoundError: There is no file at `path`.
        NpzError: The file is damaged, or has members that are no arrays or have the same name.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise NpzError(f"{one_line(path)} is a folder: give the path of an .npz file")
        if not self.path.is_file():
            raise FileNotFoundError(f"no file {one_line(path)}")
        self._handle = self.path.open("rb")
        try:
            self._members = self._read_directory()
            self.names = tuple(self._members)
        except BaseException:
            self._handle.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def header(self, name: str) -> ArrayHeader:
        """Reads the header of an array.

        Args:
            name: One of `names`.

        Raises:
            NpzError: The array is damaged or encrypted, holds Python objects, or claims to be larger than what the file
                can hold.
        """
        info = self._members[name]
        if info.flag_bits & 1:
            raise self._error(f"{_shown(name)} is encrypted")
        if info.compress_type not in METHODS:
            raise self._error(f"{_shown(name)} is packed by method {info.compress_type}, which NumPy does not write")
        try:
            with self._zip.open(info) as member:
                header, start = _parse_header(member)
        except Exception:
            raise self._error(f"the header of {_shown(name)} is damaged") from None
        if header.dtype.hasobject:
            raise self._error(f"{_shown(name)} holds Python objects, which could run code when they are read")
        size = start + math.prod(header.shape) * header.dtype.itemsize
        packed = min(info.compress_size, self.path.stat().st_size)
        if size != info.file_size or size > packed * (MAX_DEFLATION if info.compress_type else 1):
            raise self._error(f"{_shown(name)} has another size than its shape {one_line(header.shape, 100)} needs")
        return header

    def read(self, name: str) -> np.ndarray:
        """Unpacks an array and verifies its checksum.

        Args:
            name: One of `names`.

        Raises:
            NpzError: The array is damaged or does not fit into memory, or as `header` does.
        """
        self.header(name)
        info = self._members[name]
        try:
            with self._zip.open(info) as member, warnings.catch_warnings(action="ignore"):
                return np.lib.format.read_array(member, allow_pickle=False)
        except MemoryError:
            raise NpzError(
                f"{one_line(self.path)}: {_shown(name)} needs {info.file_size} bytes of memory, more than there are"
            ) from None
        except Exception:
            raise self._error(f"{_shown(name)} is damaged") from None

    def _read_directory(self) -> dict[str, zipfile.ZipInfo]:
        """Reads the directory of the zip archive; returns the entry of each array, by the array's name."""
        try:
            self._zip = zipfile.ZipFile(self._handle)
        # zipfile, zlib and NumPy's parser of headers raise a dozen types of errors for damaged bytes.
        except Exception:
            raise self._error("it is no zip archive, or its end is missing or damaged") from None
        members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename or any(part in ("", ".", "..") for part in name.split("/")):
                raise self._error(f"{_shown(info.filename)} is no name of an array")
            if name in members:
                raise self._error(f"{_shown(name)} is in it twice")
            members[name] = info
        return members

    def _error(self, reason: str) -> NpzError:
        return NpzError(f"{one_line(self.path)} is not a complete .npz file of arrays: {reason}")


def _parse_header(member: IO[bytes]) -> tuple[ArrayHeader, int]:
    """Reads no more than the longest header; returns the header and its length in bytes."""
    start = io.BytesIO(member.read(MAX_HEADER))
    with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
        shape, _, dtype = READ_HEADER[np.lib.format.read_magic(start)](start)
    if min(shape, default=0) < 0:
        raise ValueError("negative shape")
    return ArrayHeader(dtype, shape), start.tell()


def _shown(name: str) -> str:
    return one_line(repr(name), 100)
