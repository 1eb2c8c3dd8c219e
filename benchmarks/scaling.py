"""Training on several GPUs, for benchmarks/bench.py: clips per second of d3d.train's step by number of processes.

torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py study        # one case, as the bench starts it
"""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from timing import CUDA, DEVICE

from d3d.data.clips import Clips, Data
from d3d.study.experiments import make_config
from d3d.train.networks import build_network
from d3d.train.objective import Objective
from d3d.train.step import TrainStep
from d3d.train.team import Team, join_team

INTERVALS, WARM_UP = 3, 4  # the first step of a process runs without a graph, the second records it


class Case(NamedTuple):
    """Clips of frames x size x size, per process or divided over the processes; `steps` are timed at once."""

    clips: int
    per_process: bool
    frames: int
    size: int
    steps: int

    def __str__(self) -> str:
        of = "per process" if self.per_process else "divided over the processes"
        return f"{self.clips} clips of {self.frames} × {self.size} × {self.size} {of}"


CASES = {
    "study": Case(128, True, 16, 64, 40),
    "large_clips": Case(32, True, 64, 224, 8),
    "study_divided": Case(512, False, 16, 64, 20),
}
TOY = {"study": Case(16, True, 4, 32, 2), "study_divided": Case(32, False, 4, 32, 2)}


def bench_scaling() -> tuple[dict, dict[str, float]]:
    """Runs every case on 1, 2, 4 and 8 GPUs, as far as there are so many; on a CPU in one and two processes."""
    available = torch.cuda.device_count() if CUDA else 2
    counts = [n for n in (1, 2, 4, 8) if n <= available]
    cases = CASES if CUDA else TOY
    work = {"device": DEVICE, "processes": ", ".join(map(str, counts)), "intervals": INTERVALS}
    work |= {name: str(case) for name, case in cases.items()}
    metrics: dict[str, float] = {}
    if len(counts) == 1:
        return work, metrics
    for name in cases:
        for count in counts:
            result = run(name, count)
            prefix = f"{name}/processes{count}"
            metrics[f"{prefix}/clips_per_second"] = result["clips"] / result["seconds"]
            metrics[f"{prefix}/ms_per_step"] = 1e3 * result["seconds"]
            one = metrics[f"{name}/processes1/clips_per_second"]
            metrics[f"{prefix}/ratio"] = metrics[f"{prefix}/clips_per_second"] / one
    return work, metrics


def run(name: str, count: int) -> dict[str, float]:
    """Runs one case in `count` processes; returns the clips and the seconds of a step."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run([*command, name], env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Measures one case as a member of a team; the first process prints the result."""
    case = (CASES if CUDA else TOY)[sys.argv[1]]
    with join_team() as team:
        total = case.clips * (team.size if case.per_process else 1)
        seconds = seconds_per_step(case, total, team)
        if team.is_main:
            print(json.dumps({"clips": total, "seconds": seconds}), flush=True)


def seconds_per_step(case: Case, total: int, team: Team) -> float:
    """Returns the median seconds of a step on `total` clips, between moments at which all processes have arrived."""
    step = make_step(total, case.frames, case.size, team)
    times = []
    for interval in range(1 + INTERVALS):
        wait_for_all(team)
        began = time.perf_counter()
        for i in range(case.steps if interval else WARM_UP):
            step(i, np.arange(total), view_seeds=(), learning_rate=1e-3)
        step.drain()
        wait_for_all(team)
        times.append((time.perf_counter() - began) / case.steps)
    return statistics.median(times[1:])


def make_step(count: int, frames: int, size: int, team: Team) -> TrainStep:
    """Returns d3d.train's step on `count` random clips, for all of them at once."""
    parameters = {"frames": frames, "size": size, "train_clips": count, "batch_size": count}
    config = make_config("train", parameters | {"width": 1.0 if CUDA else 0.25, "epochs": 1})
    clips = random_clips((count, 3, frames, size, size), team.device)
    network = build_network(config, Data(("a", "b"), {"train": clips}), team.device)
    return TrainStep(network, config, clips, Objective(config), team=team)


def wait_for_all(team: Team) -> None:
    """Waits until all processes and their GPUs are here."""
    team.all_reduce_(torch.zeros(1, device=team.device)).item()


def random_clips(shape: tuple[int, ...], device: str) -> Clips:
    labels = torch.arange(shape[0], device=device) % 2
    table = pd.DataFrame({"label": labels.cpu().numpy(), "group": "random"})
    rgb = torch.randint(256, shape, dtype=torch.uint8, device=device)
    return Clips(rgb, None, None, None, labels, table, bound=1.0)


if __name__ == "__main__":
    main()
