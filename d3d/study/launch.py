"""Training from a notebook, in one or several processes whose log and curves the notebook shows while they run.

    record = launch.train("distill", globals())
    record = launch.train("evaluate", globals())          # tests given weights, in the same way, without training

The notebook's kernel neither imports torch nor uses a GPU.
"""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from d3d import files
from d3d.progress import read_metrics
from d3d.study import plan, records
from d3d.study.experiments import from_namespace, make_config
from d3d.study.machine import check_processes
from d3d.study.records import Record

MODULE = "d3d.train"
ERROR_PREFIX = "d3d train: "  # of the line in which training reports its error
SECONDS_BETWEEN_PLOTS = 2.0  # at least; and plots take at most this share of the time, which training needs
SHARE_OF_PLOTS = 0.03


class TrainingError(RuntimeError):
    """The training process failed; the message is the error that it printed."""


def train(experiment: str, namespace: Mapping[str, Any]) -> Record:
    """Runs `d3d.train` with a notebook's parameters, through torchrun if it has several processes.

    If this process is interrupted or ends, the training processes save their state and stop.

    Args:
        experiment: train, distill or evaluate.
        namespace: the globals of the notebook.

    Returns:
        The record of the run.

    Raises:
        ParameterError: for an unknown parameter or a value of the wrong type.
        ValueError: for a value out of range, naming the parameter.
        OSError: if the results cannot be written.
        TrainingError: if training failed, with the error that it printed.
    """
    params = from_namespace(experiment, namespace)
    make_config(experiment, params)
    check_processes(params["processes"])
    path = plan.run_path(experiment, params)
    files.check_writable(path.parent)
    config = Path(f"{path}.yaml")
    files.write_atomic({config: yaml.safe_dump({"experiment": experiment} | params, sort_keys=False).encode()})
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "D3D_FOLLOWER": str(os.getpid())}
    if params["processes"] != 1:
        environment.setdefault("OMP_NUM_THREADS", "1")  # torchrun would set it too, with a warning
    child = subprocess.Popen(
        command(params["processes"], config),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    curves = LiveCurves(Path(f"{path}.jsonl"))
    output: list[str] = []
    try:
        for line in child.stdout:
            print(line, end="", flush=True)
            output.append(line.strip())
            curves.update()
    except BaseException as error:
        child.send_signal(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
        print(*child.stdout, sep="", end="")
        raise
    finally:
        child.wait()
        child.stdout.close()
    curves.update(last=True)
    if child.returncode:
        raise TrainingError(_error_of(output, child.returncode))
    return records.read(f"{path}.json")


def _error_of(output: list[str], code: int) -> str:
    """The sentence that says why training failed.

    Args:
        output: its lines.
        code: its exit status; of a process that a signal killed, the negative number of the signal.
    """
    # Of several processes torchrun reports those that failed, before it ends the others by SIGTERM. One that was killed
    # counts, whichever was noticed first: the others fail because they lose a connection.
    reported = re.findall(r"^ *exitcode +: (-?\d+) ", "\n".join(output), re.MULTILINE)
    code = next((number for number in map(int, reported) if number < 0 and number != -signal.SIGTERM), code)
    if code < 0:
        return f"a training process was killed by {signal.Signals(-code).name}; run the notebook again to resume"
    message = next((line.removeprefix(ERROR_PREFIX) for line in output if line.startswith(ERROR_PREFIX)), None)
    return message or next((line for line in reversed(output) if line.strip("=-")), f"exit {code}")


def command(processes: int, config: Path) -> list[str]:
    """Returns the command that trains in this many processes; 0: one per GPU."""
    module = ["-m", MODULE, "--config", str(config)]
    if processes == 1:
        return [sys.executable, *module]
    count = str(processes) if processes else "gpu"
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, *module]


class LiveCurves:
    """The training curves of a run in progress, updated in place in the notebook.

    Args:
        path: the metrics file of the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.output = None  # handle of the notebook's output
        self.next_plot = time.monotonic() + SECONDS_BETWEEN_PLOTS

    def update(self, *, last: bool = False) -> None:
        """Plots the metrics so far, unless the previous plot is recent or took long; always if it is the last."""
        began = time.monotonic()
        if not last and began < self.next_plot:
            return
        self.next_plot = began + SECONDS_BETWEEN_PLOTS
        rows = [row for row in read_metrics(self.path) if "loss" in row]
        if not rows:
            return
        from IPython.display import Image, display

        # As a PNG, because a notebook displays figures by itself only after pyplot was imported.
        buffer = io.BytesIO()
        plot_curves(rows).savefig(buffer, format="png", dpi=144)
        image = Image(buffer.getvalue(), width=800, alt="Training loss, top-1 and learning rate over epochs.")
        if self.output:
            self.output.update(image)
        else:
            self.output = display(image, display_id=True)
        ended = time.monotonic()
        self.next_plot = ended + max(SECONDS_BETWEEN_PLOTS, (ended - began) / SHARE_OF_PLOTS)


def plot_curves(rows: list[dict[str, float]]):
    """Plots training loss, training top-1 and learning rate over epochs; of a student, both terms of its loss too.

    Args:
        rows: rows of a run's metrics file, each with epoch, loss, cross_entropy, distance and top1, and at the end of
            an epoch also learning_rate.

    Returns:
        A matplotlib figure with three axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.6), layout="constrained")
    losses, top1, learning_rate = figure.subplots(1, 3)
    names = ["loss", *(name for name in ("cross_entropy", "distance") if any(row["distance"] for row in rows))]
    epochs = [row["epoch"] for row in rows]
    for name in names:
        losses.plot(epochs, [row[name] for row in rows], marker=".", label=name.replace("_", "-"))
    losses.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    if names[1:]:
        losses.legend(frameon=False)
    top1.plot(epochs, [row["top1"] for row in rows], marker=".")
    top1.set(xlabel="epoch", ylabel="training top-1", ylim=(0, 1))
    ends = [row for row in rows if "learning_rate" in row]
    learning_rate.plot([row["epoch"] for row in ends], [row["learning_rate"] for row in ends], marker=".")
    learning_rate.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    for axis in (losses, top1, learning_rate):
        axis.spines[["top", "right"]].set_visible(False)
    return figure
