"""Text of records and file names in Markdown: it is shown as it is, and does nothing."""

import re

from d3d.messages import printable

# What Markdown, and HTML and MyST within it, take for more than text. Underscores within words are none of it.
SPECIAL = re.compile(r"[\\`|<>\[\]*{}$&~#]")


def text(value: object) -> str:
    """A value as text of a sentence or of a cell of a table."""
    return SPECIAL.sub(lambda match: f"\\{match[0]}", printable(str(value)))


def code(value: object) -> str:
    """A value as code in a sentence or in a cell of a table; backticks become apostrophes."""
    return f"`{printable(str(value)).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
