"""Writes files atomically, waits for a full disk where work would be lost, and identifies the content of files."""

import errno
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from d3d.messages import printable

T = TypeVar("T")
RETRY_EVERY = 10.0  # seconds between attempts to write
REMIND_EVERY = 600.0  # seconds between reports of a disk that is still full
ENOUGH = 2**16  # bytes that a disk must take before work starts
# Bytes at the start, in the middle and at the end of a file that identify its content.
SPAN = 2**16


def fingerprint(path: str | Path) -> str:
    """Identifies the content of a file by its size and its first, middle and last 64 KiB, as a shortened SHA-256.

    It costs the same for a file of any size. Of a file above 192 KiB, a change of other bytes that keeps the size goes
    unnoticed.

    Raises:
        OSError: The file cannot be read or is not a regular file; a FIFO or device is not waited for.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
        return fingerprint_of(
            _require_regular(file, path), lambda start, length: os.pread(file.fileno(), length, start)
        )


def fingerprint_of(size: int, read: Callable[[int, int], bytes]) -> str:
    """`fingerprint` of content of `size` bytes, of which `read` returns the part at a start of a length."""
    digest = hashlib.sha256(str(size).encode())
    for start in sorted({0, max(0, (size - SPAN) // 2), max(0, size - SPAN)}):
        digest.update(read(start, SPAN))
    return digest.hexdigest()[:32]


def sha256(path: str | Path) -> str:
    """The SHA-256 of a whole file, which is read in pieces; raises OSError as `fingerprint` does."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
        _require_regular(file, path)
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_to(path: str | Path) -> BinaryIO:
    """Opens a file for appending, unbuffered, and makes it if it does not exist; never follows a link.

    Raises:
        OSError: The path is a link, or not a regular file, or cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _not_regular(path) from None
        raise
    file = open(descriptor, "ab", buffering=0)  # noqa: SIM115 - the caller closes it
    try:
        _require_regular(file, path)
    except OSError:
        file.close()
        raise
    return file


def _require_regular(file: BinaryIO, path: str | Path) -> int:
    """Returns the size of an open file in bytes; raises OSError if it is not a regular file."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise _not_regular(path)
    return status.st_size


def _not_regular(path: str | Path) -> OSError:
    return OSError(errno.EINVAL, f"{printable(path)} is a link or not a regular file: delete it, or use another folder")


def write_atomic(contents: Mapping[Path, bytes], *, check: Callable[[], None] = lambda: None) -> None:
    """Writes files atomically: all to temporary files, flushed to disk, then renamed in order.

    Args:
        contents: Content of each file; missing folders are created.
        check: Called before the first is renamed; if it raises, all previous files are untouched.

    Raises:
        OSError: A file cannot be written; the message names it.
    """
    staged = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, temporary in staged.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        check()
        for path, temporary in staged.items():
            os.replace(temporary, path)
    except BaseException as error:
        for temporary in staged.values():
            with suppress(OSError):  # its folder may be what is missing
                temporary.unlink()
        if not isinstance(error, OSError):
            raise
        reason = f"{printable(path)} could not be written and any previous file is untouched: {error.strerror}"
        raise OSError(error.errno, reason) from None


def write_patiently(write: Callable[[], T], report: Callable[[str], None]) -> T:
    """Calls `write` again until it succeeds: for results of long work, which a full disk must not lose.

    Args:
        write: Writes files, or raises OSError and leaves none.
        report: Receives a line at the first failure, every ten minutes, and at the end of the wait.

    Returns:
        What `write` returns.
    """
    started, reported = time.monotonic(), None
    while True:
        try:
            result = write()
            break
        except OSError as error:
            if reported is None or time.monotonic() - reported >= REMIND_EVERY:
                reported = time.monotonic()
                report(
                    f"{error.strerror or error}; the results are kept in memory and writing is tried again every "
                    f"{RETRY_EVERY:g} s: free space on that disk, or make the folder writable"
                )
            time.sleep(RETRY_EVERY)
    if reported is not None:
        report(f"the results are written, after {time.monotonic() - started:.0f} s of waiting")
    return result


def check_folder(folder: str | Path) -> None:
    """Raises NotADirectoryError if a file or a link to nothing stands where a folder is or will be.

    Args:
        folder: a folder that may be missing.
    """
    for path in (Path(folder), *Path(folder).parents):
        if os.path.lexists(path) and not path.is_dir():
            kind = "a file" if path.exists() else "a link to nothing"
            raise NotADirectoryError(errno.ENOTDIR, f"{printable(path)} is {kind}, but it must be a folder")


def check_file(path: str | Path) -> None:
    """Raises IsADirectoryError if a folder stands where a file is or will be."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, f"{printable(path)} is a folder, but it must be a file")


def check_writable(folder: str | Path) -> None:
    """Raises OSError naming the folder if no file can be written in it; for use before hours of computation."""
    try:
        check_folder(folder)
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ENOUGH))
    except OSError as error:
        reason = f"results cannot be written to {printable(folder)}: {error.strerror}"
        raise OSError(error.errno, reason) from None
