"""Keeps pages light: MathJax only where a formula is, only the icons that are used, films in files of their own."""

import hashlib
import re
from base64 import b64decode
from functools import partial
from pathlib import Path

from docutils import nodes

# An icon of the theme's FontAwesome: name, then width, height, aliases, code point and path.
ICON = re.compile(r'(?<=[{,])"?([a-z0-9-]+)"?:\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?')
ICON_NAME = re.compile(r"\bfa-([a-z0-9-]+)")
FILM = re.compile(r'src="data:video/mp4;base64,([A-Za-z0-9+/=]+)"')


def drop_unused_mathjax(app, pagename, templatename, context, doctree):
    """Sphinx loads MathJax on every page once a page has needed it."""
    has_formula = doctree is not None and any(
        doctree.findall(lambda node: isinstance(node, (nodes.math, nodes.math_block)))
    )
    if not has_formula:
        context["script_files"] = [s for s in context["script_files"] if "mathjax" not in str(s.filename).lower()]


def lighten(app, exception):
    """Moves films out of the pages, and drops the icons that no page shows, once all files are written."""
    if exception or app.builder.name != "html":
        return
    out = Path(app.outdir)
    pages = [path for path in out.rglob("*.html") if "_static" not in path.parts]
    names: set[str] = set()
    for path in pages:
        text = path.read_text()
        names |= set(ICON_NAME.findall(text))
        if FILM.search(text):
            images = "../" * (len(path.relative_to(out).parts) - 1) + "_images"
            path.write_text(FILM.sub(partial(_write_film, folder=out / "_images", address=images), text))
    scripts = out / "_static" / "scripts"
    for path in (scripts / "pydata-sphinx-theme.js", scripts / "sphinx-book-theme.js"):
        names |= set(ICON_NAME.findall(path.read_text()))
    keep_icons(scripts / "fontawesome.js", names)
    # Source maps are for those who develop the theme.
    for path in (out / "_static").rglob("*.map"):
        path.unlink()


def keep_icons(script: Path, names: set[str]) -> None:
    """Removes every icon but some from the theme's FontAwesome script."""
    kept = ICON.sub(lambda match: match[0] if match[1] in names else "", script.read_text())
    script.write_text(kept)


def _write_film(match: re.Match, *, folder: Path, address: str) -> str:
    """Writes a film into a folder; returns the attribute with its address."""
    content = b64decode(match[1])
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.mp4"
    (folder / name).write_bytes(content)
    return f'src="{address}/{name}"'


def setup(app):
    app.connect("html-page-context", drop_unused_mathjax, priority=900)
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
