"""What the environment promises: one list of packages, each used, and a README that tells today's truth."""

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
# Packages whose import has another name, or that are used as commands or through another package.
IMPORTED_AS = {
    "opencv-contrib-python-headless": "cv2",
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "ipython": "IPython",
}
COMMANDS = {
    "papermill": "Snakefile",
    "snakemake": "Makefile",
    "jupyter-book": "Snakefile",
    "ruff": "Makefile",
    "nbstripout": "Makefile",
    "pre-commit": ".pre-commit-config.yaml",
    "pytest-mpl": "pyproject.toml",
    "ipykernel": "notebooks/experiments/train.ipynb",
    "tabulate": "d3d/report/pages.py",
}
SIGN_OF_USE = {"pytest-mpl": "--mpl", "ipykernel": '"python3"', "tabulate": "to_markdown"}


def direct() -> dict[str, str]:
    """Name and range of every direct dependency."""
    listed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    return {re.match(r"[\w-]+", line)[0]: line for line in listed}


def imported() -> set[str]:
    """Top-level names that code, tests and notebooks import."""
    found = set()
    code = [path.read_text() for folder in ("d3d", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    for path in (ROOT / "notebooks").glob("*/*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code += ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    for source in code:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", list(direct()))
def test_every_dependency_is_locked_and_used(name):
    pins = re.findall(rf"^{re.escape(name)}==([^\s;]+)", LOCK, re.M)
    assert pins, f"{name} is not in requirements.lock"
    assert all(Requirement(direct()[name]).specifier.contains(pin) for pin in pins)
    if name in COMMANDS:
        assert SIGN_OF_USE.get(name, name) in (ROOT / COMMANDS[name]).read_text()
    else:
        assert IMPORTED_AS.get(name, name).replace("-", "_") in imported()


def test_what_is_imported_is_a_dependency():
    known = {IMPORTED_AS.get(name, name).replace("-", "_") for name in direct()}
    ours = {"d3d", "tests", "training", "videos"}
    extras = {re.match(r"\w+", line)[0] for line in PROJECT["optional-dependencies"]["tensorflow"]}
    # papermill brings the format of notebooks along.
    assert imported() - known - ours - extras - {"nbformat"} <= set(sys.stdlib_module_names)


def test_the_lock_pins_everything_with_hashes():
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
    # pip refuses an editable package beside hashes, so the package itself comes in a command of its own.
    assert pip == ["--requirement requirements.lock"]
    assert "pip install --no-deps --no-build-isolation -e ." in (ROOT / "environment.yml").read_text()
    assert len([d for d in environment["dependencies"] if isinstance(d, str)]) == 2


def test_the_readme_tells_todays_verdicts():
    assert (ROOT / "README.md").read_text() == report.readme_text(), "README.md is stale: run `make readme`"


def test_paths_that_texts_name_are_there():
    """In scripts, docs and docstrings."""
    texts = [ROOT / ".ci/run", ROOT / "Makefile", ROOT / "Snakefile", *ROOT.glob("*.md"), *(ROOT / "book").glob("*.md")]
    texts += [p for folder in ("d3d", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    named = re.compile(r"(?<![\w/.])((?:d3d|tests|benchmarks)/[\w/]+\.py)\b")
    missing = {(p.name, path) for p in texts for path in named.findall(p.read_text()) if not (ROOT / path).is_file()}
    assert {m for m in missing if m[0] not in ("test_staleness.py", "test_graph.py")} == set()
