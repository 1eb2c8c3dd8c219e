"""Training at the study's scale: the step, the curves, several runs on one device, and the way to the first step."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import yaml
from torch.nn import functional as F

from d3d.data.load import load
from d3d.progress import read_metrics
from d3d.s3dg import ops as s3dg_ops
from d3d.study.experiments import make_config
from d3d.study.parameters import TrainConfig
from d3d.train.evaluate import predict
from d3d.train.loop import fit
from d3d.train.networks import build
from d3d.train.objective import Objective
from d3d.train.step import Step

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
STUDY = {"frames": 16, "size": 64, "rho": 0.8, "amplitude": 0.75, "camera": 0.5, "noise": 0.04}
STUDY |= {"train_clips": 6000, "test_clips": 1024, "epochs": 10, "batch_size": 128, "width": 1.0}
TOY = {"frames": 8, "size": 32, "train_clips": 64, "test_clips": 32, "epochs": 2, "batch_size": 16, "width": 0.25}
SCALE = STUDY if CUDA else TOY


def bench_training(interleaved: Callable) -> tuple[dict, dict[str, float]]:
    """The engine's step against a plain eager loop of the same network, and how alike the losses come out."""
    config = make_config("train", SCALE | {"learning_rate": 0.1})  # the study's
    work = {"device": DEVICE, "runs": 20, "curve_steps": 40 if CUDA else 4, **SCALE}
    data = load(config.data, seed=0, device=DEVICE)
    order = np.random.default_rng(0)
    rows = [
        order.choice(config.data.train_clips, config.optimiser.batch_size, False) for _ in range(work["curve_steps"])
    ]
    makers = {"plain": plain, "plain_fused": lambda *a: plain(*a, fused=True), "eager": engine}
    makers |= {"captured": lambda *a: engine(*a, capture=True)} if CUDA else {}
    steps, losses = {}, {}
    for name, maker in {**makers, "again": makers["captured" if CUDA else "eager"]}.items():
        step = maker(config, data)
        losses[name] = np.array([step(i, r, rate=rises(i, config)) for i, r in enumerate(rows)])
        steps[name] = step
    del steps["again"]
    last = work["curve_steps"]
    timed = {name: (lambda s=s: s(last, rows[0], rate=0.01, wait=False)) for name, s in steps.items()}
    seconds = interleaved(timed, runs=work["runs"])
    metrics = {f"{name}/ms_per_step": 1e3 * value for name, value in seconds.items()}
    metrics |= {f"{name}/ratio": seconds["plain"] / value for name, value in seconds.items()}
    ours = "captured" if CUDA else "eager"
    for name in ("plain", "eager", "again"):
        metrics[f"loss_apart/{ours}_and_{name}"] = np.abs(losses[ours] - losses[name]).max()
    # What rounding alone does: one loop, with kernels that round otherwise.
    metrics["loss_apart/plain_and_plain_fused"] = np.abs(losses["plain"] - losses["plain_fused"]).max()
    return work, metrics | in_float32(config, data, rows) | two_runs(config, data)


def rises(position: int, config: TrainConfig) -> float:
    """The learning rate as it rises over the first steps of the study's runs."""
    own = config.optimiser
    epoch = -(-config.data.train_clips // own.batch_size)
    return own.learning_rate * (position + 1) / (own.warmup * own.epochs * epoch)


def in_float32(config: TrainConfig, data, rows: list[np.ndarray]) -> dict[str, float]:
    """The largest differences of the losses where nothing is rounded to bfloat16 or TF32."""
    full = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with patch("torch.autocast", lambda *args, **kwargs: nullcontext()), full:
        steps = plain(config, data), engine(config, data, capture=CUDA), plain(config, data, fused=True)
        losses = [np.array([step(i, r, rate=rises(i, config)) for i, r in enumerate(rows)]) for step in steps]
    ours = "captured" if CUDA else "eager"
    return {
        f"loss_apart/float32/{ours}_and_plain": np.abs(losses[0] - losses[1]).max(),
        "loss_apart/float32/plain_and_plain_fused": np.abs(losses[0] - losses[2]).max(),
    }


def plain(config: TrainConfig, data, *, fused: bool = False) -> Callable:
    """The loop that one writes: PyTorch's optimiser, launch by launch, with or without this network's own kernels."""
    model, clips = build(config, data, DEVICE).train(), data.splits["train"]
    parameters = [p for p in model.parameters() if p.requires_grad]
    own = config.optimiser
    optimiser = torch.optim.SGD(parameters, lr=own.learning_rate, momentum=own.momentum, weight_decay=own.weight_decay)
    dropped = Step(build(config, data, DEVICE), config, clips, Objective(config))  # draws the same masks

    def step(position: int, rows: np.ndarray, *, rate: float, wait: bool = True) -> float:
        was = s3dg_ops.kernels_support
        s3dg_ops.kernels_support = was if fused else lambda x: False
        batch = clips.batch(torch.from_numpy(rows).to(DEVICE), ("rgb",))
        keep = dropped._dropout_mask(position, rows).to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            logits = model.classify(model.pooled(batch.inputs["rgb"]) * keep / (1 - config.network.dropout)).float()
        loss = F.cross_entropy(logits, batch.labels)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        s3dg_ops.kernels_support = was
        return loss.item() if wait else 0.0

    return step


def engine(config: TrainConfig, data, *, capture: bool = False) -> Callable:
    """The step of d3d.train."""
    run = Step(build(config, data, DEVICE), config, data.splits["train"], Objective(config), capture=capture)

    def step(position: int, rows: np.ndarray, *, rate: float, wait: bool = True) -> float:
        told = run(position, rows, rate=rate) + (run.drain() if wait else [])
        return told[-1].values["loss"] if wait else 0.0

    return step


def two_runs(config: TrainConfig, data) -> dict[str, float]:
    """How far two runs of one seed come apart on this device, trained as the study trains; and their rate."""
    logits, seconds = [], []
    for _ in range(2):
        model = build(config, data, DEVICE)
        began = time.perf_counter()
        fit(model, config, data, report=lambda line: None)
        seconds.append(time.perf_counter() - began)
        logits.append(predict(model, data.splits["iid"], "rgb"))
    labels = data.splits["iid"].labels.cpu().numpy()
    top1 = [(x.argmax(1) == labels).mean() for x in logits]
    return {
        "two_runs/largest_logit_difference": float(np.abs(logits[0] - logits[1]).max()),
        "two_runs/other_predictions": float((logits[0].argmax(1) != logits[1].argmax(1)).mean()),
        "two_runs/top1_difference": float(abs(top1[0] - top1[1])),
        "two_runs/top1": float(np.mean(top1)),
        "fit/clips_per_second": config.optimiser.epochs * config.data.train_clips / min(seconds),
    }


def bench_sharing() -> tuple[dict, dict[str, float]]:
    """Clips a second of 1, 2 and 4 runs that share this device, together, while all of them train."""
    scale = SCALE | {"epochs": 16 if CUDA else 4, "test_clips": 16}
    work = {"device": DEVICE, "processes": "1, 2, 4", **scale}
    metrics = {}
    for count in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            runs = [start(scale | {"seed": seed, "results": folder}) for seed in range(count)]
            for run in runs:
                run.wait()
            rows = [read_metrics(Path(folder) / f"train/rgb-seed{seed}.jsonl") for seed in range(count)]
            if any(run.returncode for run in runs):
                raise RuntimeError(f"{count} runs at once: exit {[run.returncode for run in runs]}")
        ends = [[(row["time"], row["step"]) for row in r if "clips_per_second" in row] for r in rows]
        since, until = max(e[0][0] for e in ends), min(e[-1][0] for e in ends)
        per_step = scale["train_clips"] / np.ceil(scale["train_clips"] / scale["batch_size"])
        together = 0.0
        for e in ends:
            times, steps = np.array(e).T
            together += np.diff(np.interp([since, until], times, steps))[0] * per_step / (until - since)
        metrics |= {f"runs{count}/clips_per_second": together, f"runs{count}/seconds_together": until - since}
    return work, metrics | {
        f"runs{n}/ratio": metrics[f"runs{n}/clips_per_second"] / metrics["runs1/clips_per_second"] for n in (1, 2, 4)
    }


def start(given: dict) -> subprocess.Popen:
    """`d3d train` with these parameters."""
    config = Path(given["results"], f"seed{given.get('seed', 0)}.yaml")
    config.write_text(yaml.safe_dump(given))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "d3d.train", "--config", str(config)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def bench_start() -> tuple[dict, dict[str, float]]:
    """Seconds from the start of a process to its loop, its first step and its end, and of imports; medians of three.

    The first run of a machine also compiles kernels and reads torch from the disk; it is told on its own.
    """
    scale = SCALE | {"epochs": 1, "test_clips": 16}
    work = {"device": DEVICE, "runs": 3, **scale}
    metrics: dict[str, float] = {}
    found = []
    for _ in range(4):
        with tempfile.TemporaryDirectory() as folder:
            began = time.time()
            run = start(scale | {"results": folder})
            run.wait()
            rows = read_metrics(Path(folder) / "train/rgb-seed0.jsonl")
        times = {row.get("event"): row["time"] - began for row in rows}
        found.append({"loop": times["start"], "first_step": times["first step"], "process": time.time() - began})
    for name, code in {
        "torch": "import torch",
        "torch_gpu": "import torch; torch.zeros(1, device='cuda')",
        "package": "import d3d.train",
    }.items():
        if CUDA or name != "torch_gpu":
            took = []
            for _ in range(3):
                began = time.time()
                subprocess.run([sys.executable, "-c", code], check=True)
                took.append(time.time() - began)
            metrics[f"import/{name}/seconds"] = float(np.median(took))
    for name in found[0]:
        metrics[f"to_{name}/seconds"] = float(np.median([f[name] for f in found[1:]]))
        metrics[f"first_run/to_{name}/seconds"] = found[0][name]
    return work, metrics
