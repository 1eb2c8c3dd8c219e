"""Docstrings are written as Markdown: `name` is code, and a trailing underscore is part of a name."""

import re


def to_rst(app, what, name, obj, options, lines):
    """Changes the lines of a docstring in place."""
    text = "\n".join(lines)
    text = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", text)
    # Outside code.
    parts = re.split(r"(``[^`]+``)", text)
    parts[::2] = [re.sub(r"(?<=\w)_(?=[\s,.:;)]|$)", r"\\_", part).replace("|", "\\|") for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app):
    # After napoleon, which reads the sections of a docstring.
    app.connect("autodoc-process-docstring", to_rst, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
