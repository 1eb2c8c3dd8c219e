"""Text of records does nothing in Markdown but stand there."""

import numpy as np
import pytest

from d3d.report import markdown, side_by_side
from d3d.report.side_by_side import NetworkAnswers
from d3d.report.stats import proportion_interval

# The parser of the book, which comes with it.
MarkdownIt = pytest.importorskip("markdown_it").MarkdownIt
HOSTILE = [
    "<script>alert(1)</script>",
    "[x](javascript:alert)",
    "a | b",
    "`code`",
    "**bold**",
    "![x](y)",
    "\\|",
    "{glue:text}`x`",
    "# a",
    "~~x~~",
    "&lt;b&gt;",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(text):
    rows = f"| a | b |\n|---|---|\n| {markdown.text(text)} | 2 |\n"
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(rows)
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 4
    children = cells[2].children
    assert {token.type for token in children} <= {"text", "text_special"}
    assert "".join(token.content for token in children) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_code_stays_in_its_cell(text):
    rows = f"| a | b |\n|---|---|\n| {markdown.code(text)} | 2 |\n"
    cells = [t for t in MarkdownIt("commonmark").enable("table").parse(rows) if t.type == "inline"]
    assert len(cells) == 4
    (code,) = cells[2].children
    assert code.type == "code_inline"


def test_lines_and_escape_sequences_are_visible():
    assert markdown.text("a\nb\x1b[2J") == "a\\\\nb\\\\x1b\\[2J"


def test_a_split_with_markup_does_not_change_the_table(monkeypatch, tmp_path):
    answers = [
        NetworkAnswers(arm, 0, "a|<b>", np.arange(4), np.ones(4, bool), np.arange(4), proportion_interval(4, 4), None)
        for arm in ("rgb", "d3d")
    ]
    monkeypatch.setattr(side_by_side, "network_answers", lambda *_: answers)
    text = side_by_side.compare(tmp_path)
    assert text.count("a\\|\\<b\\>") == 3
    assert "<b>" not in text
