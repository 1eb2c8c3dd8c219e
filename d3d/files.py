"""Writes files atomically, and names them in messages."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


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
