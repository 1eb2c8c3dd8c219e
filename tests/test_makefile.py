"""The Makefile's variables reach their commands as they are, and nothing in them runs."""

import os
import shutil
import subprocess

import pytest

from d3d.study.records import ROOT

# Whatever of these runs makes a file.
RUNS_SOMETHING = [
    "smoke; touch ran",
    "it's $(touch ran)",
    "`touch ran`",
    '"; touch ran; "',
    "' ; touch ran; '",
    "$(shell touch ran)",
    "$$(touch ran)",
    "\\'; touch ran",
    "smoke & touch ran",
    "smoke | touch ran",
    "smoke > ran",
    "smoke\ntouch ran",
    "$(eval $(shell touch ran))",
]


@pytest.fixture
def checkout(tmp_path):
    """The Makefile, with a d3d.study.graph that writes its arguments to the file `arguments`."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    program = tmp_path / ".venv/bin/python"
    program.write_text(
        '#!/bin/bash\nif [ "$2" = d3d.study.graph ]; then printf "%s\\0" "${@:3}" > arguments; else cat; fi\n'
    )
    program.chmod(0o755)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    lock = tmp_path / ".venv/lock"
    lock.touch()
    os.utime(lock, (2**32, 2**32))
    return tmp_path


def make(checkout, *arguments: str, **variables: str) -> list[str]:
    """Runs make with variables of its environment; returns the arguments that d3d.study.graph received, if it ran."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | variables
    subprocess.run(["make", *arguments], cwd=checkout, env=environment, capture_output=True, check=False)
    received = checkout / "arguments"
    return received.read_bytes().decode().split("\0")[:-1] if received.exists() else []


@pytest.mark.parametrize("value", RUNS_SOMETHING)
@pytest.mark.parametrize("name", ["PROFILE", "SEEDS", "CORES", "RUNS_PER_GPU", "CLUSTER"])
@pytest.mark.parametrize("given", ["as an argument", "in the environment"])
def test_a_variable_is_one_argument_and_runs_nothing(checkout, name, value, given):
    profile = {} if name == "PROFILE" else {"PROFILE": "h200"}
    if given == "as an argument":
        arguments = make(checkout, "study", *(f"{k}={v}" for k, v in ({name: value} | profile).items()))
    else:
        arguments = make(checkout, "study", **{name: value}, **profile)
    assert not (checkout / "ran").exists()
    # A recipe has one line, so make stops at a value of two.
    if "\n" not in value:
        shown = {"PROFILE": f"profile={value}", "SEEDS": f"seeds={value}"}
        shown |= {"CORES": f"--cores={value}", "RUNS_PER_GPU": f"--runs-per-gpu={value}"}
        shown["CLUSTER"] = f"--cluster={value}"
        assert shown[name] in arguments


def test_the_graph_gets_what_the_help_says(checkout):
    arguments = make(checkout, "study", "PROFILE=h200", "SEEDS=0 1", "CORES=4", "RUNS_PER_GPU=2")
    assert arguments[:4] == ["--cores=4", "--runs-per-gpu=2", "--", ".venv/bin/snakemake"]
    assert arguments[-5:] == ["--config", "profile=h200", "seeds=0 1", "--", "study"]
    arguments = make(checkout, "study")
    assert arguments[:2] == ["--cores=all", "--runs-per-gpu="]
    assert arguments[-4:] == ["--config", "profile=smoke", "--", "study"]
    arguments = make(checkout, "study", "CLUSTER=slurm")
    assert arguments[:4] == ["--cores=all", "--runs-per-gpu=", "--cluster=slurm", "--"]
    # The last --quiet counts: what Snakemake says about jobs elsewhere is needed.
    assert arguments[-7:-4] == ["--quiet", "host", "reason"]
    assert make(checkout, "book", "PROFILE=h200", "CLUSTER=slurm")[-4:] == ["--config", "profile=smoke", "--", "book"]
