"""Training at the study's scale: speed of a step, agreement of losses, several runs on one device, start-up time."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from unittest.mock import patch

import numpy as np
import torch
import yaml
from timing import CUDA, DEVICE, interleaved
from torch.nn import functional as F

from d3d.data.load import load
from d3d.progress import read_metrics
from d3d.s3dg import ops as s3dg_ops
from d3d.study import mps
from d3d.study.experiments import make_config
from d3d.study.gpus import find_gpus
from d3d.study.parameters import TrainConfig
from d3d.train.evaluate import predict
from d3d.train.loop import fit
from d3d.train.networks import build_network
from d3d.train.objective import Objective
from d3d.train.step import TrainStep

STUDY = {"frames": 16, "size": 64, "rho": 0.8, "amplitude": 0.75, "camera": 0.5, "noise": 0.04}
STUDY |= {"train_clips": 6000, "test_clips": 1024, "epochs": 10, "batch_size": 128, "width": 1.0}
TOY = {"frames": 8, "size": 32, "train_clips": 64, "test_clips": 32, "epochs": 2, "batch_size": 16, "width": 0.25}
SCALE = STUDY if CUDA else TOY


def bench_training() -> tuple[dict, dict[str, float]]:
    """Our training step against a plain eager loop with the same network: time, and differences of the losses."""
    config = make_config("train", SCALE | {"learning_rate": 0.1})  # the study's rate
    work = {"device": DEVICE, "runs": 10, "curve_steps": 20 if CUDA else 4, **SCALE}
    data = load(config.data, seed=0, device=DEVICE)
    rng = np.random.default_rng(0)
    rows = [rng.choice(config.data.train_clips, config.optimiser.batch_size, False) for _ in range(work["curve_steps"])]
    makers = {"plain": plain_step, "plain_fused": lambda *a: plain_step(*a, fused=True), "eager": our_step}
    makers |= {"captured": lambda *a: our_step(*a, capture=True)} if CUDA else {}
    steps, losses = {}, {}
    for name, maker in {**makers, "again": makers["captured" if CUDA else "eager"]}.items():
        step = maker(config, data)
        losses[name] = np.array([step(i, r, learning_rate=warmup_rate(i, config)) for i, r in enumerate(rows)])
        steps[name] = step
    del steps["again"]
    next_index = work["curve_steps"]
    timed = {name: (lambda s=s: s(next_index, rows[0], learning_rate=0.01, wait=False)) for name, s in steps.items()}
    seconds = interleaved(timed, runs=work["runs"])
    metrics = {f"{name}/ms_per_step": 1e3 * value for name, value in seconds.items()}
    metrics |= {f"{name}/ratio": seconds["plain"] / value for name, value in seconds.items()}
    ours = "captured" if CUDA else "eager"
    for name in ("plain", "eager", "again"):
        metrics[f"loss_apart/{ours}_and_{name}"] = np.abs(losses[ours] - losses[name]).max()
    # The effect of rounding alone: the same loop with kernels that round differently.
    metrics["loss_apart/plain_and_plain_fused"] = np.abs(losses["plain"] - losses["plain_fused"]).max()
    return work, metrics | in_float32(config, data, rows) | two_runs(config, data)


def warmup_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of a step during the warm-up of the study's runs."""
    optimiser = config.optimiser
    steps_per_epoch = -(-config.data.train_clips // optimiser.batch_size)
    return optimiser.learning_rate * (step + 1) / (optimiser.warmup * optimiser.epochs * steps_per_epoch)


def in_float32(config: TrainConfig, data, rows: list[np.ndarray]) -> dict[str, float]:
    """The largest differences of the losses in float32, without bfloat16 or TF32."""
    no_tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with patch("torch.autocast", lambda *args, **kwargs: nullcontext()), no_tf32:
        steps = plain_step(config, data), our_step(config, data, capture=CUDA), plain_step(config, data, fused=True)
        losses = [
            np.array([step(i, r, learning_rate=warmup_rate(i, config)) for i, r in enumerate(rows)]) for step in steps
        ]
    ours = "captured" if CUDA else "eager"
    return {
        f"loss_apart/float32/{ours}_and_plain": np.abs(losses[0] - losses[1]).max(),
        "loss_apart/float32/plain_and_plain_fused": np.abs(losses[0] - losses[2]).max(),
    }


def plain_step(config: TrainConfig, data, *, fused: bool = False) -> Callable:
    """A step as one would write it: PyTorch's optimiser, no graph, with or without this network's fused kernels."""
    model, clips = build_network(config, data, DEVICE).train(), data.splits["train"]
    parameters = [p for p in model.parameters() if p.requires_grad]
    sgd = config.optimiser
    optimiser = torch.optim.SGD(parameters, lr=sgd.learning_rate, momentum=sgd.momentum, weight_decay=sgd.weight_decay)
    mask_source = TrainStep(build_network(config, data, DEVICE), config, clips, Objective(config))

    def step(index: int, rows: np.ndarray, *, learning_rate: float, wait: bool = True) -> float:
        can_fuse = s3dg_ops.kernels_support
        s3dg_ops.kernels_support = can_fuse if fused else lambda x: False
        batch = clips.batch(clips.draw(rows, ()).to(DEVICE), ("rgb",))
        mask = mask_source._dropout_mask(index, rows).to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            logits = model.classify(model.pooled(batch.inputs["rgb"]) * mask / (1 - config.network.dropout)).float()
        loss = F.cross_entropy(logits, batch.labels)
        optimiser.param_groups[0]["lr"] = learning_rate
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        s3dg_ops.kernels_support = can_fuse
        return loss.item() if wait else 0.0

    return step


def our_step(config: TrainConfig, data, *, capture: bool = False) -> Callable:
    """The step of d3d.train."""
    model = build_network(config, data, DEVICE)
    train_step = TrainStep(model, config, data.splits["train"], Objective(config), capture=capture)

    def step(index: int, rows: np.ndarray, *, learning_rate: float, wait: bool = True) -> float:
        metrics = train_step(index, rows, view_seeds=(), learning_rate=learning_rate) + (
            train_step.drain() if wait else []
        )
        return metrics[-1].values["loss"] if wait else 0.0

    return step


def two_runs(config: TrainConfig, data) -> dict[str, float]:
    """How much two runs of one seed differ on this device, trained as in the study; and their clips per second."""
    logits, seconds = [], []
    for _ in range(2):
        model = build_network(config, data, DEVICE)
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
    """The total clips per second of several runs on this device, while all of them train: in turns, and through MPS."""
    scale = SCALE | {"epochs": 8 if CUDA else 20, "test_clips": 16}
    ways: dict[str, tuple[int, dict[str, str]]] = {"runs1": (1, {}), "runs4": (4, {})}
    if CUDA:
        try:
            devices = [gpu.device for gpu in find_gpus()]
            through_mps = mps.start(devices) | {"CUDA_VISIBLE_DEVICES": devices[0]}
            ways |= {f"mps{count}": (count, through_mps) for count in (2, 4, 8)}
        except mps.MpsError as error:
            print(f"  no row through MPS: {error}", flush=True)
    work = {"device": DEVICE, "processes": ", ".join(ways), **scale}
    metrics: dict[str, float] = {}
    for name, (count, environment) in ways.items():
        rate, together = rate_together(count, scale, environment)
        metrics |= {f"{name}/clips_per_second": rate, f"{name}/seconds_together": together}
        metrics[f"{name}/ratio"] = rate / metrics["runs1/clips_per_second"]
    return work, metrics


def rate_together(count: int, scale: dict, environment: dict[str, str]) -> tuple[float, float]:
    """Returns the clips per second of some runs while all of them train, and for how many seconds they did."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [start(scale | {"seed": seed, "results": folder}, environment) for seed in range(count)]
        for run in runs:
            run.wait()
        rows = [read_metrics(Path(folder) / f"train/rgb-seed{seed}.jsonl") for seed in range(count)]
        if any(run.returncode for run in runs):
            raise RuntimeError(f"{count} runs at once: exit {[run.returncode for run in runs]}")
    epoch_ends = [[(row["time"], row["step"]) for row in r if "clips_per_second" in row] for r in rows]
    began, ended = max(e[0][0] for e in epoch_ends), min(e[-1][0] for e in epoch_ends)
    if ended <= began:
        raise RuntimeError(f"{count} runs did not train at the same time")
    clips_per_step = scale["train_clips"] / np.ceil(scale["train_clips"] / scale["batch_size"])
    clips_per_second = 0.0
    for run_ends in epoch_ends:
        times, steps = np.array(run_ends).T
        clips_per_second += np.diff(np.interp([began, ended], times, steps))[0] * clips_per_step / (ended - began)
    return clips_per_second, ended - began


def start(parameters: dict, environment: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen:
    """Starts `d3d train` with these parameters and environment variables."""
    config = Path(parameters["results"], f"seed{parameters.get('seed', 0)}.yaml")
    config.write_text(yaml.safe_dump(parameters))
    command = [sys.executable, "-m", "d3d.train", "--config", str(config)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, stdout=subprocess.DEVNULL)


def bench_start() -> tuple[dict, dict[str, float]]:
    """Seconds from the start of a process to its training loop, first step and end, and of imports; medians of two.

    The first run, which also compiles kernels and reads torch from the disk, is reported separately.
    """
    scale = SCALE | {"epochs": 1, "test_clips": 16}
    work = {"device": DEVICE, "runs": 2, **scale}
    metrics: dict[str, float] = {}
    delays = []
    for _ in range(1 + work["runs"]):
        with tempfile.TemporaryDirectory() as folder:
            began = time.time()
            run = start(scale | {"results": folder})
            run.wait()
            rows = read_metrics(Path(folder) / "train/rgb-seed0.jsonl")
        times = {row.get("event"): row["time"] - began for row in rows}
        delays.append({"loop": times["start"], "first_step": times["first step"], "process": time.time() - began})
    for name, code in {
        "torch": "import torch",
        "torch_gpu": "import torch; torch.zeros(1, device='cuda')",
        "package": "import d3d.train",
    }.items():
        if CUDA or name != "torch_gpu":
            seconds = []
            for _ in range(work["runs"]):
                began = time.time()
                subprocess.run([sys.executable, "-c", code], check=True)
                seconds.append(time.time() - began)
            metrics[f"import/{name}/seconds"] = float(np.median(seconds))
    first_run, *other_runs = delays
    for name in first_run:
        metrics[f"to_{name}/seconds"] = float(np.median([run[name] for run in other_runs]))
        metrics[f"first_run/to_{name}/seconds"] = first_run[name]
    return work, metrics
