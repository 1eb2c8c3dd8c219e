"""The command `d3d`, in the repository and from an installed wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from d3d.__main__ import COMMANDS
from d3d.study import records
from d3d.study.experiments import EXPERIMENTS, make_config
from d3d.study.records import ROOT
from d3d.train.command import read_config
from tests.study.test_records import PROVENANCE

TINY = {"frames": 4, "size": 16, "train_clips": 64, "test_clips": 32, "epochs": 1, "batch_size": 8, "width": 0.1}


def d3d(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "d3d", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


def test_it_lists_its_subcommands():
    for arguments in ((), ("--help",)):
        done = d3d(*arguments)
        assert done.returncode == 0
        assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == list(COMMANDS)


def test_an_unknown_subcommand_is_named():
    done = d3d("trian")
    assert done.returncode == 1
    assert done.stderr.startswith("no command 'trian', but train, data, ")


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_subcommand_has_a_help_text(name):
    done = d3d(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: d3d {name} ")


def test_claims_are_judged_on_a_readers_own_records(tmp_path):
    """With three networks per split of UCF101, far above what row B1 claims, and none for row B4."""
    for split in (1, 2, 3):
        for seed in range(3):
            record = records.Record(
                "distill", f"d3d_k400_s{split}", seed, {"split": split}, {"ucf101/test/top1": 0.98 + seed / 1000},
                False, PROVENANCE,
            )  # fmt: skip
            records.write(tmp_path, record)
    done = d3d("report", "claims", "--results", str(tmp_path), cwd=ROOT)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert lines["B1"].split()[1] == "supported"
    assert "0.981 [0.979, 0.983], must be > 0.96" in lines["B1"]
    assert done.stdout.startswith(f"From 9 records of 3 seeds in {tmp_path}.")
    assert lines["B4"].split()[1:3] == ["needs", "data"]


def test_outside_of_the_repository_claims_end_in_a_sentence(tmp_path):
    done = d3d("report", "claims", "--results", str(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "no ledger of claims at book/claims.yaml: run this at the root of the repository\n",
    )


@pytest.mark.slow
def test_a_wheel_trains_in_an_empty_folder(tmp_path):
    """Without the repository's notebooks, profiles and history."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "d3d", copy / "d3d", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(copy)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("d3d-*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
        (scripts,) = (name for name in file.namelist() if name.endswith("entry_points.txt"))
        assert b"d3d = d3d.__main__:main" in file.read(scripts)
    empty.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    lines = [f"{name}: {value}" for name, value in (TINY | {"results": "results/mine", "flow": "exact"}).items()]
    (empty / "run.yaml").write_text("\n".join(lines))
    done = d3d("train", "--config", "run.yaml", cwd=empty, env=environment)
    assert done.returncode == 0, done.stderr
    record = records.read(empty / "results/mine/train/rgb-seed0.json")
    assert len(record.provenance["source"]) == 16
    done = d3d("records", "show", "results/mine/train/rgb-seed0.json", cwd=empty, env=environment)
    assert done.stdout.startswith("train        rgb-seed0")
    imported = subprocess.run(
        [sys.executable, "-c", "import d3d; print(d3d.__file__)"], cwd=empty, env=environment, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert Path(imported.stdout.strip()).is_relative_to(site)


def test_training_has_a_flag_per_parameter(tmp_path):
    """Flags override the file, which overrides the schema's defaults."""
    path = tmp_path / "run.yaml"
    path.write_text("experiment: distill\nlambda_: 0.0\nepochs: 3\nseed: 1\n")
    experiment, config = read_config(path, None, {"epochs": 5, "sync_norm": True})
    assert (experiment, config.optimiser.epochs, config.run.seed) == ("distill", 5, 1)
    assert config.optimiser.sync_norm
    assert read_config("notebooks/params/portable.yaml")[1].network.width == 0.14
    assert read_config(None, "train", {"stream": "flow"}) == ("train", make_config("train", {"stream": "flow"}))
    help = d3d("train", "--help").stdout
    for name in (*EXPERIMENTS["train"].names, *EXPERIMENTS["distill"].names):
        assert f"--{name.strip('_').replace('_', '-')} " in help


@pytest.mark.parametrize("name", ["absent", "empty", "README.md", "cut"])
def test_claims_without_records_end_in_one_sentence(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("# no records")
    (tmp_path / "cut" / "train").mkdir(parents=True)
    (tmp_path / "cut" / "train" / "rgb-seed0.json").write_text('{"schema": 1, ')
    done = d3d("report", "claims", "--results", str(tmp_path / name), cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert name in done.stderr
