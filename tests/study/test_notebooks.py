"""Notebooks: short, without outputs, explained, their figures described."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import nbformat
import pytest

from d3d.study import archive, records
from d3d.study.experiments import EXPERIMENTS
from d3d.study.plan import JHMDB, arms_of
from d3d.study.profiles import read_profile
from d3d.study.records import ROOT
from tests.study.test_records import record

ALL = sorted((ROOT / "notebooks").glob("*/*.ipynb"))
CHAPTERS = [path for path in ALL if path.parent.name in ("chapters", "second")]
# Modules whose functions draw figures; a film is no image, and carries its own label.
DRAWING = ("plots", "endpoints", "pictures")
FILMS = ("video_html", "scene_html")


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def draws(source):
    """Whether code calls a function that draws a figure."""
    calls = [n.func for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    names = [f for f in calls if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name)]
    return any(f.attr == "draw" or (f.value.id in DRAWING and f.attr not in FILMS) for f in names)


def test_every_experiment_has_a_notebook():
    assert {p.stem for p in ALL if p.parent.name == "experiments"} == set(EXPERIMENTS)


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_notebooks_are_short_stripped_and_explained(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    code = code_cells(path)
    assert not any(c.outputs or c.execution_count for c in code)
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all("  # " in line or line.startswith("# ") for line in tagged[0].source.splitlines() if line)
    for cell in code:
        assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.walk(ast.parse(cell.source)))
        # One line per parameter is a list, not code.
        assert len(cell.source.splitlines()) <= 32 or cell in tagged


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_figure_of_a_chapter_has_an_alternative_text(path):
    visible = [cell for cell in code_cells(path) if "hide-input" in cell.metadata.get("tags", [])]
    figures = [cell for cell in visible if draws(cell.source)]
    assert figures
    for cell in figures:
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        assert alt.endswith("."), cell.source
        assert len(alt.split()) >= 10, alt
        # A number that is typed would not follow the records; names such as top-1 and H1 have digits too.
        assert not re.search(r"(?<![\w.-])\d+(\.\d+)?(?!\w)", alt), alt


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_what_a_notebook_uses_of_the_package_exists(path):
    """A chapter runs only when the book is built, long after the tests."""
    tree = ast.parse("\n".join(cell.source for cell in code_cells(path)))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("d3d"):
            for alias in node.names:
                if find_spec(node.module).submodule_search_locations is None:
                    assert hasattr(import_module(node.module), alias.name), f"{node.module} has no {alias.name}"
                else:
                    modules[alias.asname or alias.name] = import_module(f"{node.module}.{alias.name}")
    used = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    missing = [ast.unparse(n) for n in used if n.value.id in modules and not hasattr(modules[n.value.id], n.attr)]
    assert not missing


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_an_experiment_computes_in_the_package(name):
    """The hash of an experiment is that of the package's code, in a notebook or without one."""
    code = code_cells(ROOT / f"notebooks/experiments/{name}.ipynb")
    sources = [c.source for c in code if "parameters" not in c.metadata.get("tags", [])]
    statements = [node for source in sources for node in ast.parse(source).body]
    assert not [n for n in statements if isinstance(n, ast.For | ast.With | ast.If | ast.While)]
    calls = [ast.unparse(n) for n in statements if not isinstance(n, ast.ImportFrom)]
    assert len([call for call in calls if not call.startswith("run_figures.")]) == 1


def write_transfer(folder):
    """The archive of a study of transfer, without predictions."""
    profile = read_profile("notebooks/params/transfer.yaml")
    for experiment in ("train", "distill", "fuse"):
        for k, arm in enumerate(arms_of(experiment, profile)):
            for seed in profile["seeds"]:
                metrics = {"jhmdb/test/top1": 0.2 + 0.01 * k + 0.01 * seed, "jhmdb/test/top1_gain": 0.01 * seed}
                records.write(folder, record(experiment=experiment, arm=arm, seed=seed, metrics=metrics))
    return archive.pack(folder)


@pytest.mark.slow
def test_the_chapters_of_the_second_study_run_on_the_smoke_study(tmp_path):
    """Its records are still to come, and its chapters must not fail when they are there."""
    smoke = ROOT / "results/smoke"
    if not list(smoke.glob("compare/*.json")):
        pytest.skip("the smoke study has not been run")
    cells = [archive.pack(smoke, tmp_path / name) for name in ("sprites", "sprites-rho0.5", "sprites-clips1000")]
    merged = archive.merge(cells[1:], tmp_path / "cells", as_cells=True)
    pilot = ["-p", "results", str(JHMDB), "-y", "splits: [keep-split1, keep-split2, keep-split3]"]
    pilot += ["-p", "sprites", str(cells[0]), "-p", "cells", str(merged)]
    others = {"real_video": pilot, "transfer": ["-p", "results", str(write_transfer(tmp_path / "transfer"))]}
    for path in (ROOT / "notebooks/second").glob("*.ipynb"):
        parameters = others.get(path.stem, ["-p", "results", str(cells[0])])
        parameters += ["-p", "cells", str(merged)] if path.stem == "regimes" else []
        command = ["-m", "papermill", "--no-progress-bar", str(path), str(tmp_path / path.name), *parameters]
        run = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
