"""The book's API reference: every room with its public names and modules, from docstrings; nothing is imported."""

import ast
from pathlib import Path

from d3d.report.markdown import text

ROOMS = ("s3dg", "flow", "video", "data", "train", "probing", "detection", "study", "report")
# Modules whose functions draw the figures of the chapters; figures link to them.
DRAWING = ("plots", "endpoints", "regimes", "beds", "kinds", "selection", "attention", "network", "run_figures")
FIGURES = (*(f"report.{name}" for name in DRAWING), "pictures", "films")
HEAD = """# API reference

The package by its rooms, which are the folders of `d3d`. Public names can be imported from their room:
`from d3d.s3dg import s3dg`. Each entry links to its source.
"""


def page(package: Path) -> str:
    """Returns the page in MyST Markdown, whose directives Sphinx fills from the docstrings.

    Args:
        package: the folder of the package.
    """
    blocks = [HEAD]
    for room in ROOMS:
        blocks += [_room(package / room), ""]
    blocks += ["## Figures", "", "The functions that draw the figures of the chapters.", ""]
    blocks += [_directive(f"automodule:: d3d.{module}", "members", "member-order: bysource") for module in FIGURES]
    return "\n".join(blocks) + "\n"


def _room(folder: Path) -> str:
    room = folder.name
    tree = ast.parse((folder / "__init__.py").read_text())
    lines = [f"## d3d.{room}", "", text(_first_sentences(tree)), ""]
    for name, module in _public(tree).items():
        kind = _kind(folder / f"{module}.py", name)
        options = ["members"] if kind == "autoclass" else []
        lines += [_directive(f"{kind}:: d3d.{room}.{module}.{name}", *options), ""]
    lines += ["| module | what it holds |", "|---|---|"]
    for path in sorted(folder.glob("[a-z]*.py")):
        lines.append(f"| `d3d.{room}.{path.stem}` | {text(_first_sentences(ast.parse(path.read_text())))} |")
    return "\n".join(lines)


def _public(tree: ast.Module) -> dict[str, str]:
    """A room's public names and the module of each."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PUBLIC":
            return ast.literal_eval(node.value)
    return {}


def _kind(path: Path, name: str) -> str:
    """The directive that documents a name of a module."""
    for node in ast.parse(path.read_text()).body:
        if getattr(node, "name", "") == name:
            return "autoclass" if isinstance(node, ast.ClassDef) else "autofunction"
    return "py:data"


def _first_sentences(tree: ast.Module) -> str:
    """The first paragraph of a docstring in one line."""
    return " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())


def _directive(line: str, *options: str) -> str:
    return "\n".join(["```{eval-rst}", f".. {line}", *(f"   :{o if ':' in o else o + ':'}" for o in options), "```"])
