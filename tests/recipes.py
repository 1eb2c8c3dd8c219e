"""The recipes of CONTRIBUTING.md as a test follows them: their changes, and the commands that they give."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from d3d.study.records import ROOT

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Recipe(NamedTuple):
    """A section of CONTRIBUTING.md.

    Attributes:
        changes: a unified diff.
        commands: shell commands, after the changes.
    """

    changes: str
    commands: str


def recipes() -> dict[str, Recipe]:
    """The recipes by their headings."""
    text = (ROOT / "CONTRIBUTING.md").read_text().split("\n## Recipes\n")[1].split("\n## ")[0]
    sections = {}
    for section in text.split("\n### ")[1:]:
        heading, body = section.split("\n", 1)
        blocks = BLOCK.findall(body)
        sections[heading] = Recipe(
            *("".join(code for kind, code in blocks if kind == wanted) for wanted in ("diff", "sh"))
        )
    return sections


def apply(recipe: Recipe, root: Path) -> None:
    """Makes a recipe's changes in a copy of the repository; fails if they do not fit the files as they are."""
    done = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", "-"],
        input=recipe.changes, cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"a recipe of CONTRIBUTING.md no longer fits the code:\n{done.stderr}"
