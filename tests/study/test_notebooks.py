"""Notebooks hold little code, have no outputs and start with an explanation."""

import ast

import nbformat
import pytest

from d3d.study.experiments import EXPERIMENTS
from d3d.study.records import ROOT

ALL = sorted((ROOT / "notebooks").glob("*/*.ipynb"))


def test_every_experiment_has_a_notebook():
    assert {p.stem for p in ALL if p.parent.name == "experiments"} == set(EXPERIMENTS)


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_a_notebook_is_short_stripped_and_explained(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    code = [c for c in cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in code)
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all("  # " in line or line.startswith("# ") for line in tagged[0].source.splitlines())
    for cell in code:
        assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.walk(ast.parse(cell.source)))
        # Only the list of parameters may be longer.
        assert len(cell.source.splitlines()) <= 32 or cell in tagged


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_an_experiment_computes_in_the_package(name):
    """Its hash is made of the package's code only, so the notebook must not compute anything itself."""
    cells = nbformat.read(ROOT / f"notebooks/experiments/{name}.ipynb", as_version=4).cells
    code = [c.source for c in cells if c.cell_type == "code" and "parameters" not in c.metadata.get("tags", [])]
    statements = [node for source in code for node in ast.parse(source).body]
    assert not [n for n in statements if isinstance(n, ast.For | ast.With | ast.If | ast.While)]
    assert len([n for n in statements if not isinstance(n, ast.ImportFrom)]) <= 2
