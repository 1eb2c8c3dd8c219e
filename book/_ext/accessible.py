"""Mends what the theme writes for readers who use a keyboard or a screen reader."""

import re
from pathlib import Path

MENDED = {
    # The arrows that unfold a part of the list of pages have no name.
    r'<summary><span class="toctree-toggle" role="presentation">': (
        '<summary aria-label="Pages below this one"><span class="toctree-toggle" role="presentation">'
    ),
    # A list holds list items.
    r'(<div class="citation"[^>]*) role="doc-biblioentry"': r'\1 role="listitem"',
    # The code of a cell is named by the words that are shown: "Show code cell source".
    r'<summary aria-label="Toggle hidden content">': "<summary>",
}


def mend(app, exception):
    """Rewrites the pages once all are written."""
    if exception or app.builder.name != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" not in path.parts:
            text = path.read_text()
            for pattern, replacement in MENDED.items():
                text = re.sub(pattern, replacement, text)
            path.write_text(text)


def setup(app):
    app.connect("build-finished", mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
