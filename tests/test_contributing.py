"""CONTRIBUTING.md: its recipes work as written, and its picture shows the rooms as they are."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from d3d.study import records
from d3d.study.records import ROOT
from d3d.video.decode import encode
from tests.recipes import apply, recipes
from tests.test_rooms import TOOLS, imported_rooms, modules, room_of


def test_the_picture_shows_which_room_imports_which():
    """Without the arrows that follow from others."""
    direct: dict[str, set[str]] = {}
    for path in modules():
        direct.setdefault(room_of(path), set()).update(set(imported_rooms(path)) - TOOLS - {room_of(path)})

    def below(room):
        return direct[room].union(*map(below, direct[room]))

    needed = {
        (room, other)
        for room, others in direct.items()
        for other in others
        if not any(other in below(between) for between in others - {other})
    }
    drawn = re.findall(r"^  (\w+) --> (\w+)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == needed


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository that shares this environment."""
    root = tmp_path / "copy"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if not name.startswith(("book/_extra", "results/")) and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    (root / ".venv").symlink_to(ROOT / ".venv")
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(root / name, (0, 0))  # or `make` would install the copy into the environment that it shares
    return root


def follow(heading: str, root: Path) -> str:
    """Makes the changes of a recipe and runs its commands; returns what they print."""
    recipe = recipes()[heading]
    apply(recipe, root)
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euc", recipe.commands], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_loss(copy):
    follow("Add a loss", copy)
    record = records.read(copy / "results/try/distill/d3d-seed0.json")
    assert record.params["distance"] == "cosine"
    # A cosine distance lies between 0 and 2; the default, the squared error of logits, does not.
    (distance,) = records.read_arrays(copy / "results/try", record)["curve/distance"]
    assert 0 < distance < 2


@pytest.mark.slow
def test_a_probe(copy):
    follow("Add a probe", copy)
    metrics = records.read(copy / "results/try/probe/random-seed0.json").metrics
    assert {"Mixed_4f/radius/r2", "Mixed_4f/radius/selectivity"} <= set(metrics)


@pytest.mark.slow
def test_a_data_set_of_files(copy):
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    (copy / "VIDEOS").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (copy / "VIDEOS" / name).write_bytes(encode(frames, fps=8))
    (copy / "VIDEOS/train.txt").write_text("a.mp4 wave\nb.mp4 swim\n")
    (copy / "VIDEOS/test.txt").write_text("c.mp4 swim\nabsent.mp4 wave\n")
    out = follow("Add a data set of video files", copy)
    assert "4 listed, 3 found, 1 missing" in out
    assert "missing: wave/absent.mp4" in out
    assert "train 2 clips, test 1 clips; 2 classes" in out


@pytest.mark.slow
def test_a_rendered_data_set(copy):
    follow("Add a rendered data set", copy)
    record = records.read(copy / "results/try/train/flow-seed0.json")
    assert record.params["dataset"] == "gratings"
    assert "test/top1" in record.metrics
    arrays = records.read_arrays(copy / "results/try", record)
    assert arrays["classes"].tolist() == ["right", "left", "down", "up"]
    assert arrays["examples/frames"].shape == (6, 4, 32, 32, 3)
