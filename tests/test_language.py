"""Plain English of the field: words that the project no longer uses, and how docstrings are laid out."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from d3d.study.records import ROOT

CODE = sorted(p for folder in ("d3d", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
PACKAGE = [path for path in CODE if path.is_relative_to(ROOT / "d3d")]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*/*.ipynb"))
# The plan is frozen, and the changelog tells what was said then.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for p in (ROOT / "book").glob("*.md") if p.stem != "plan")]
# Locals and parameters that say nothing of what they hold.
EMPTY_NAMES = {"found", "told", "said", "apart", "rises", "held", "spent", "mine", "asks", "asked"}
COUNTED = (
    "clips?|frames?|pixels?|px|pairs?|steps?|rows?|lines?|dots?|records?|ms|milliseconds|runs?|processes|threads?|"
    "values?|videos?|files?"
)
PER = "second|minute|frame|step|clip|seed|line|field|epoch|class|arm|run|device|GPU|core|row|panel|pair|side|channel"
UNPLAIN = {
    rf"\b({COUNTED}) an? ({PER})\b": "write 'per': clips per second",
    r"\bgo(es)? on (where|from|with)\b": "write 'resumes'",
    r"\babreast\b": "write 'side by side'",
    r"\bis told of\b|\bare told of\b": "write 'receives' or 'reports'",
}


def texts(path: Path) -> Iterator[str]:
    """Code as it is; the prose and the code of a notebook's cells."""
    if path.suffix == ".ipynb":
        yield from ("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    else:
        yield path.read_text()


@pytest.mark.parametrize("path", [*CODE, *NOTEBOOKS, *PAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_field_s_own_phrases_are_used(path):
    if path == Path(__file__):
        return
    for text in texts(path):
        for pattern, advice in UNPLAIN.items():
            match = re.search(pattern, re.sub(r"\s+", " ", text))
            assert not match, f"{match[0]!r}: {advice}"


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_say_what_they_hold(path):
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert not names & EMPTY_NAMES


def documented(path: Path) -> Iterator[tuple[str, str, set[str]]]:
    """The functions of a module that document parameters: name, docstring and parameters."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and "\nArgs:\n" in (text := ast.get_docstring(node) or ""):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            yield node.name, text, {argument.arg for argument in every if argument}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_documented_parameters_exist(path):
    """One line per parameter, and none that a rename left behind."""
    for name, text, parameters in documented(path):
        section = text.split("\nArgs:\n")[1].split("\n\n")[0]
        listed = re.findall(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*):", section, re.MULTILINE)
        names = {each.strip("* ") for entry in listed for each in entry.split(",")}
        assert names, f"{name}: no parameter under Args"
        assert names <= parameters, f"{name} documents {sorted(names - parameters)}, which it does not take"
