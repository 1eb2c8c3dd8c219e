"""Names, values and errors as messages and tables show them: on one line, printable in a terminal, and shortened."""

import math
import re
import reprlib
from pathlib import Path
from typing import Any

LONGEST_PATH, LONGEST_LINE = 240, 600  # characters
FORMULA = re.compile(r"'*[=+\-@\t\r\n]")  # what a spreadsheet takes for one


class _Short(reprlib.Repr):
    """Shortens values, also whole numbers of more digits than Python writes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        digits = int(x.bit_length() * math.log10(2)) + 1
        return repr(x) if digits < 30 else f"an integer of about {digits} digits"


def printable(path: str | Path) -> str:
    """A path, or another text of the user: what is no text, or a control character, is escaped."""
    return _shortened(_escaped(str(path)), LONGEST_PATH)


def shown(value: Any) -> str:
    """A value, in Python's notation."""
    return _escaped(_Short().repr(value))


def one_line(message: object, longest: int = LONGEST_LINE) -> str:
    """A whole message, or an error without the number that Python puts before the system's words.

    Args:
        message: the message or the exception.
        longest: characters after which the middle is left out.
    """
    if isinstance(message, OSError) and message.strerror:
        name = f"{message.filename}: " if message.filename is not None else ""
        message = f"{name}{message.strerror}"
    return _shortened(_escaped(str(message)), longest)


def _shortened(text: str, length: int) -> str:
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    r"""The escape of a character; `\xff` for a byte of a name that is no UTF-8, which Python holds as U+DCFF."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def escape_cell(cell: Any) -> Any:
    """A cell of a CSV file: text that a spreadsheet would take for a formula gets a leading apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell
