"""Writes files atomically, identifies their content, and names them in messages."""

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

# Bytes at the start, in the middle and at the end of a file that identify its content.
SPAN = 2**16
# Characters of a path or a value in a message.
MAX_PATH, MAX_VALUE = 240, 120


def printable(path: str | Path) -> str:
    """A path as it can be printed on one line: what is no text, or a control character, is escaped; long ones are cut
    in the middle."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return _shortened("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text), MAX_PATH)


def quoted(value: object) -> str:
    """A value as it can be quoted in a message: its `repr`, cut in the middle if it is long."""
    return _shortened(repr(value), MAX_VALUE)


def _shortened(text: str, length: int) -> str:
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def fingerprint(path: str | Path) -> str:
    """Identifies the content of a file by its size and its first, middle and last 64 KiB, as a shortened SHA-256.

    It costs the same for a file of any size. Of a file above 192 KiB, a change of other bytes that keeps the size goes
    unnoticed.

    Raises:
        OSError: The file cannot be read or is not a regular file; a FIFO or device is not waited for.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
        size = _require_regular(file, path)
        digest = hashlib.sha256(str(size).encode())
        for start in sorted({0, max(0, (size - SPAN) // 2), max(0, size - SPAN)}):
            file.seek(start)
            digest.update(file.read(SPAN))
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


def write_atomic(contents: Mapping[Path, bytes]) -> None:
    """Writes files atomically: all to temporary files, flushed to disk, then renamed in order.

    Args:
        contents: Content of each file; missing folders are created.

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
        for path, temporary in staged.items():
            os.replace(temporary, path)
    except OSError as error:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
        reason = f"{printable(path)} could not be written and any previous file is untouched: {error.strerror}"
        raise OSError(error.errno, reason) from None


def check_writable(folder: str | Path) -> None:
    """Raises OSError naming the folder if no file can be written in it; for use before hours of computation."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"results cannot be written to {printable(folder)}: {error.strerror}") from None
