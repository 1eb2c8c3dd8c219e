"""Writes files atomically, and names files and values in messages."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def printable(text: str | Path) -> str:
    """A path or another text as it can be printed on one line: bytes that are no text, and control characters, are
    escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    # Python keeps a byte of a path that is no text as one of these surrogates.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def shown(value: Any, longest: int = 60) -> str:
    """A value as a message shows it: Python's notation, printable, cut after `longest` characters."""
    # A long text is cut first: its notation may be many times as long.
    text = repr(value[:longest] if isinstance(value, str) else value)
    return text if len(text) <= longest else f"{text[:longest]}…"


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
        reason = f"{path} could not be written and any previous file is untouched: {error.strerror}"
        raise OSError(error.errno, reason) from None


def check_writable(folder: str | Path) -> None:
    """Raises OSError naming the folder if no file can be written in it; for use before hours of computation."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"results cannot be written to {folder}: {error.strerror}") from None
