"""The environment: every dependency is locked and used, and the README and paths in texts are current."""

import ast
import json
import re
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from d3d.report import pages as report
from d3d.study.records import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
IMPORT_NAMES = {
    "opencv-contrib-python-headless": "cv2",
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "ipython": "IPython",
}
# Packages that no code imports, and a file that uses each.
USED_IN = {
    "papermill": "Snakefile",
    "snakemake": "Makefile",
    "jupyter-book": "Snakefile",
    "ruff": "Makefile",
    "nbstripout": "Makefile",
    "pre-commit": ".pre-commit-config.yaml",
    "pytest-mpl": "pyproject.toml",
    "pytest-xdist": "Makefile",
    "ipykernel": "notebooks/experiments/train.ipynb",
    "tabulate": "d3d/report/pages.py",
}
# What to find in that file, if not the package's name.
USAGE = {"pytest-mpl": "--mpl", "pytest-xdist": "--numprocesses", "ipykernel": '"python3"', "tabulate": "to_markdown"}


def dependencies() -> dict[str, str]:
    """The requirement of every direct dependency, by name."""
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    return {re.match(r"[\w-]+", line)[0]: line for line in requirements}


def imported() -> set[str]:
    """The top-level modules that code, tests and notebooks import."""
    modules = set()
    sources = [path.read_text() for folder in ("d3d", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    for path in (ROOT / "notebooks").glob("*/*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        sources += ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    return modules


@pytest.mark.parametrize("name", list(dependencies()))
def test_every_dependency_is_locked_and_used(name):
    pins = re.findall(rf"^{re.escape(name)}==([^\s;]+)", LOCK, re.M)
    assert pins, f"{name} is not in requirements.lock"
    assert all(Requirement(dependencies()[name]).specifier.contains(pin) for pin in pins)
    if name in USED_IN:
        assert USAGE.get(name, name) in (ROOT / USED_IN[name]).read_text()
    else:
        assert IMPORT_NAMES.get(name, name).replace("-", "_") in imported()


def test_every_import_is_a_dependency():
    declared = {IMPORT_NAMES.get(name, name).replace("-", "_") for name in dependencies()}
    internal = {"d3d", "tests", *(path.stem for path in (ROOT / "benchmarks").glob("*.py"))}
    optional = [PROJECT["optional-dependencies"][extra] for extra in ("tensorflow", "bench")]
    extras = {re.match(r"\w+", line)[0] for lines in optional for line in lines}
    # papermill depends on nbformat.
    assert imported() - declared - internal - extras - {"nbformat"} <= set(sys.stdlib_module_names)


def test_the_lock_pins_every_package_with_hashes():
    pins = re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.M)
    assert len(pins) > 100
    blocks = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.M)[1:]
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in LOCK
    versions = dict(pins)
    assert (versions["torch"], versions["torchvision"]) == ("2.11.0", "0.26.0")
    assert all("sys_platform == 'linux'" in block for block in blocks)


def test_conda_installs_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python="))
    low, high = re.match(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    assert int(low) <= int(python.removeprefix("python=3.")) < int(high)
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    # pip refuses an editable package in a list with hashes, so a separate command installs this one.
    assert pip == ["--requirement requirements.lock"]
    assert "pip install --no-deps --no-build-isolation -e ." in (ROOT / "environment.yml").read_text()
    assert len([d for d in environment["dependencies"] if isinstance(d, str)]) == 2


def test_the_readme_states_the_current_verdicts():
    assert (ROOT / "README.md").read_text() == report.readme_text(), "README.md is stale: run `make readme`"


def test_paths_in_texts_exist():
    """In scripts, Markdown, code and docstrings."""
    texts = [ROOT / ".ci/run", ROOT / "Makefile", ROOT / "Snakefile", *ROOT.glob("*.md"), *(ROOT / "book").glob("*.md")]
    texts += [p for folder in ("d3d", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    pattern = re.compile(r"(?<![\w/.])((?:d3d|tests|benchmarks)/[\w/]+\.py)\b")
    missing = {(p.name, path) for p in texts for path in pattern.findall(p.read_text()) if not (ROOT / path).is_file()}
    assert {m for m in missing if m[0] not in ("test_staleness.py", "test_graph.py")} == set()
