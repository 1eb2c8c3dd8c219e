"""Training from a notebook: in a process of its own, or several, whose log and metrics the notebook shows as they come.

    record = launch.train("distill", globals())

The kernel itself never imports torch nor touches a GPU.
"""

import io
import os
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
from d3d.study.experiments import from_namespace
from d3d.study.records import Record

MODULE = "d3d.train"
PROG = "d3d train: "
EVERY = 2.0  # seconds between pictures


class TrainingError(RuntimeError):
    """The training process failed; the message is what it said."""


def train(experiment: str, namespace: Mapping[str, Any]) -> Record:
    """Runs `python -m d3d.train`, or torchrun with it, on a notebook's parameters; its record.

    Ctrl-C reaches the training processes, which save first; so does the end of this one. Raises ParameterError as
    `from_namespace`, and TrainingError with the sentence in which training ended.
    """
    params = from_namespace(experiment, namespace)
    path = plan.run_path(experiment, params)
    config = Path(f"{path}.yaml")
    files.write_atomic({config: yaml.safe_dump({"experiment": experiment} | params, sort_keys=False).encode()})
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "D3D_FOLLOWER": str(os.getpid())}
    if params["processes"] != 1:
        environment.setdefault("OMP_NUM_THREADS", "1")  # which torchrun would set, with a warning
    child = subprocess.Popen(
        command(params["processes"], config),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    picture = Picture(Path(f"{path}.jsonl"))
    said: list[str] = []
    try:
        for line in child.stdout:
            print(line, end="", flush=True)
            said.append(line.strip())
            picture.update()
    except BaseException as error:
        child.send_signal(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
        print(*child.stdout, sep="", end="")
        raise
    finally:
        child.wait()
        child.stdout.close()
    picture.update(last=True)
    if child.returncode:
        sentence = next((line.removeprefix(PROG) for line in said if line.startswith(PROG)), None)
        last = next((line for line in reversed(said) if line.strip("=-")), f"exit {child.returncode}")
        raise TrainingError(sentence or last)
    return records.read(f"{path}.json")


def command(processes: int, config: Path) -> list[str]:
    """What trains in this many processes; 0: one for each GPU."""
    run = ["-m", MODULE, "--config", str(config)]
    if processes == 1:
        return [sys.executable, *run]
    count = str(processes) if processes else "gpu"
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, *run]


class Picture:
    """The curves of a run that is under way, drawn anew in the same place of the notebook."""

    def __init__(self, path: Path) -> None:
        self.path, self.shown, self.drawn = path, None, time.monotonic()

    def update(self, *, last: bool = False) -> None:
        """Draws at most every other second, and at last."""
        if not last and time.monotonic() - self.drawn < EVERY:
            return
        self.drawn = time.monotonic()
        rows = [row for row in read_metrics(self.path) if "loss" in row]
        if not rows:
            return
        from IPython.display import Image, display

        # A kernel that has not imported pyplot shows no figure.
        buffer = io.BytesIO()
        draw(rows).savefig(buffer, format="png", dpi=144)
        image = Image(buffer.getvalue(), width=800, alt="Loss and top-1 over the epochs so far.")
        if self.shown:
            self.shown.update(image)
        else:
            self.shown = display(image, display_id=True)


def draw(rows: list[dict[str, float]]):
    """Loss and its terms, and training top-1, over epochs, as a matplotlib figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6), layout="constrained")
    losses, top1 = figure.subplots(1, 2)
    names = ["loss", *(name for name in ("cross_entropy", "distance") if any(row["distance"] for row in rows))]
    epochs = [row["epoch"] for row in rows]
    for name in names:
        losses.plot(epochs, [row[name] for row in rows], marker=".", label=name.replace("_", "-"))
    losses.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    if names[1:]:
        losses.legend(frameon=False)
    top1.plot(epochs, [row["top1"] for row in rows], marker=".")
    top1.set(xlabel="epoch", ylabel="training top-1", ylim=(0, 1))
    for axis in (losses, top1):
        axis.spines[["top", "right"]].set_visible(False)
    return figure
