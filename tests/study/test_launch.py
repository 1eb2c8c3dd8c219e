"""Training from a notebook: its processes, log, curves and errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from d3d.study import launch, records
from d3d.study.experiments import defaults
from tests.train.test_survival import children

TINY = {"frames": 4, "size": 16, "train_clips": 64, "test_clips": 32, "epochs": 2, "batch_size": 8, "width": 0.1}
TINY |= {"flow": "exact"}
ROWS = [{"epoch": e, "loss": 2 / e, "cross_entropy": 1.5 / e, "distance": 0.5 / e, "top1": e / 9} for e in (1, 2, 3)]


def test_the_kernel_needs_neither_torch_nor_a_gpu():
    code = "import sys; from d3d.study import launch; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_one_process_needs_no_torchrun(tmp_path):
    config = tmp_path / "a.yaml"
    module = ["-m", "d3d.train", "--config", str(config)]
    assert launch.command(1, config) == [sys.executable, *module]
    assert launch.command(4, config)[-7:] == ["--standalone", "--nproc-per-node", "4", *module]
    assert launch.command(0, config)[-5] == "gpu"


def test_the_plot_shows_the_metrics():
    rows = [row | ({"learning_rate": 0.2 / row["epoch"]} if row["epoch"] != 3 else {}) for row in ROWS]
    losses, top1, learning_rate = launch.plot_curves(rows).axes
    assert [line.get_label() for line in losses.lines] == ["loss", "cross-entropy", "distance"]
    assert losses.lines[0].get_xydata().tolist() == [[1, 2], [2, 1], [3, 2 / 3]]
    assert top1.lines[0].get_xydata().tolist() == [[e, e / 9] for e in (1, 2, 3)]
    assert learning_rate.lines[0].get_xydata().tolist() == [[1, 0.2], [2, 0.1]]
    losses, *_ = launch.plot_curves([row | {"distance": 0.0} for row in ROWS]).axes
    assert [line.get_label() for line in losses.lines] == ["loss"]


def test_plots_leave_the_machine_to_training(tmp_path, monkeypatch):
    """A plot that takes 3 seconds is followed by 100 without one, but the last plot is always made."""
    clock, plotted = [0.0], []

    def plot(rows):
        plotted.append(clock[0])
        clock[0] += 3
        return Figure()

    monkeypatch.setattr(launch.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(launch, "plot_curves", plot)
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0] | {"learning_rate": 0.1}) + "\n")
    curves = launch.LiveCurves(tmp_path / "a.jsonl")
    for seconds in (1, 3, 7, 105, 107):
        clock[0] = seconds
        curves.update()
    curves.update(last=True)
    assert plotted == [3, 107, 110]


def test_training_prints_its_log_and_returns_its_record(tmp_path, capsys):
    params = defaults("train") | TINY | {"results": str(tmp_path), "arm": "mine"}
    record = launch.train("train", params)
    assert record == records.read(tmp_path / "train/mine-seed0.json")
    assert record.params == params
    out = capsys.readouterr().out
    assert (
        "64 train, 32 val, 32 iid, 32 decorrelated, 32 shuffled, 24 reversed, 32 frozen clips; 16 classes; on 1 x cpu"
        in out
    )
    assert "epoch   2/2  loss" in out
    assert "Image" in out


def test_the_exception_carries_the_error_of_the_training_process(tmp_path, capsys):
    params = defaults("distill") | TINY | {"results": str(tmp_path), "teacher": "none.safetensors"}
    with pytest.raises(launch.TrainingError, match=r"^no checkpoint at none.safetensors: train that network first"):
        launch.train("distill", params)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_an_interrupted_kernel_lets_the_run_save_its_state(tmp_path):
    params = defaults("train") | TINY | {"results": str(tmp_path), "epochs": 2000}
    code = f"from d3d.study import launch; launch.train('train', {params!r})"
    kernel = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    for line in kernel.stdout:
        if line.startswith("epoch   2/"):
            break
    kernel.send_signal(signal.SIGINT)
    out, err = kernel.communicate()
    assert "stopped by SIGINT after step" in out
    assert "KeyboardInterrupt" in err
    assert list((tmp_path / "train/rgb-seed0.state").glob("step*.safetensors"))


@pytest.mark.slow
def test_a_kernel_trains_with_two_processes(tmp_path, capsys):
    params = defaults("train") | TINY | {"results": str(tmp_path), "processes": 2, "sync_norm": True}
    assert launch.train("train", params).provenance["processes"] == 2
    assert "on 2 x cpu" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "rank"), [(1, None), (2, "0"), (2, "1")])
def test_a_killed_process_ends_the_run_and_is_named(tmp_path, processes, rank):
    """Whichever of the processes it is, the others end too, and within a minute, since they cannot go on."""
    params = defaults("train") | TINY | {"results": str(tmp_path), "epochs": 4000, "processes": processes}
    code = f"from d3d.study import launch; launch.train('train', {params!r})"
    kernel = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in kernel.stdout:
        if line.startswith("epoch   2/"):
            break
    started = children(kernel.pid)
    (victim,) = (pid for parent in started for pid in children(parent) if rank_of(pid) == rank) if rank else started
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    _, err = kernel.communicate()  # ends with the last process
    assert time.monotonic() - began < 60
    assert kernel.returncode == 1
    sentence = "a training process was killed by SIGKILL; run the notebook again to resume"
    assert err.strip().endswith(f"TrainingError: {sentence}")


def rank_of(pid: int) -> str | None:
    """A process's number among those that train together, from torchrun's variable."""
    variables = dict(line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in line)
    return variables.get("RANK")


def test_the_error_is_that_of_the_process_that_was_killed():
    """Both of two processes may have failed when torchrun looks, and either can be called the root cause."""
    killed = "a training process was killed by SIGKILL; run the notebook again to resume"
    for codes, sentence in (
        ((1, None), "one"),
        ((-9, None), killed),
        ((-9, 1), killed),
        ((1, -9), killed),
        ((1, -15), "one"),
    ):
        root, other = (code if code is None else f"  exitcode  : {code} (pid: 7)" for code in codes)
        failures = ["Failures:", other] if other else ["Failures:", "  <NO_OTHER_FAILURES>"]
        report = ["d3d train: one", "two", *failures, "Root Cause (first observed failure):", "[0]:", root, "======"]
        assert launch._error_of(report, 1) == sentence
    assert launch._error_of(["epoch 1", "----"], 1) == "epoch 1"
    assert launch._error_of([], 3) == "exit 3"
