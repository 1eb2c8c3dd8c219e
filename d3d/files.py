"""Writes files atomically, waits for a full disk where work would be lost, and shows names and values in messages."""

import errno
import math
import os
import reprlib
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
RETRY_EVERY = 10.0  # seconds between attempts to write
ENOUGH = 2**16  # bytes that a disk must take before work starts
REMIND_EVERY = 600.0  # seconds between reports of a disk that is still full


def printable(path: str | Path) -> str:
    """A path as it can be printed on one line: what is no text, or a control character, is escaped."""
    return "".join(c if c.isprintable() else _escape(c) for c in str(path))


def one_line(text: object, longest: int = 600) -> str:
    """A message as one line for a terminal: what cannot be printed is escaped, and a long middle is left out."""
    line = printable(str(text))
    half = longest // 2
    return line if len(line) <= longest else f"{line[:half]} … {line[-half:]}"


def _escape(character: str) -> str:
    r"""The escape of a character; `\xff` for a byte of a name that is no UTF-8, which Python holds as U+DCFF."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class _Short(reprlib.Repr):
    """Shortens values, also whole numbers of more digits than Python writes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        digits = int(x.bit_length() * math.log10(2)) + 1
        return repr(x) if digits < 30 else f"an integer of about {digits} digits"


def shown(value: Any) -> str:
    """A value as a message shows it: Python's notation, printable and shortened."""
    return printable(_Short().repr(value))


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
            with suppress(OSError):  # its folder may be what is missing
                temporary.unlink()
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
