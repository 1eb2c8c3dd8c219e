"""Speed of training on video files, for benchmarks/bench.py: clips in memory against decoding them in every epoch."""

import math
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from timing import CUDA, DEVICE
from videos import write_texture_video

from d3d.data.load import load
from d3d.data.views import FIRST
from d3d.flow.cache import FlowSpec
from d3d.flow.extract import extract
from d3d.flow.opencv import cores
from d3d.study.experiments import make_config
from d3d.study.schema import changed
from d3d.train.networks import build_network
from d3d.train.objective import Objective
from d3d.train.step import TrainStep

# Clips as those of JHMDB: 40 frames at 25 per second, of which a view takes 16 at 12.5 per second.
WORK = {"frames": 16, "size": 112, "short_side": 128, "fps": 12.5, "width": 1.0, "batch_size": 32}
TOY = {"frames": 8, "size": 32, "short_side": 40, "fps": 12.5, "width": 0.25, "batch_size": 8}
CLIP_FRAMES, CLIP_SIZE = 40, (128, 170)


def bench_memory() -> tuple[dict, dict[str, float]]:
    """Training steps on a set of videos that is kept in memory against the same set decoded in every epoch.

    Both use all cores of the machine where they decode, draw the same views and take turns.
    """
    scale, videos, epochs, runs = (WORK, 128, 3, 2) if CUDA else (TOY, 16, 2, 1)
    work = {"device": DEVICE, "cores": cores(), "videos": videos, "epochs": epochs, "runs": runs, **scale}
    metrics: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        root, cache = Path(name, "videos"), Path(name, "flow")
        paths = [root / f"class{i % 4}" / f"{i}.mp4" for i in range(videos)]
        for path in paths[:4]:
            path.parent.mkdir(parents=True)
        with ThreadPoolExecutor() as pool:
            list(
                pool.map(lambda i: write_texture_video(paths[i], i, frames=CLIP_FRAMES, size=CLIP_SIZE), range(videos))
            )
        spec = FlowSpec(fps=scale["fps"], short_side=scale["short_side"], bound=10)
        extract(sorted(map(str, paths)), root, cache, spec, device=DEVICE, report=lambda line: None)
        files = {"dataset": "folder", "root": str(root), "bound": 10.0, "epochs": epochs}
        for stream in ("rgb", "flow"):
            config = make_config("train", scale | files | {"stream": stream, "flow_cache": str(cache), "memory": "yes"})
            started = time.perf_counter()
            trainers = {"memory": _trainer(config), "decoded": _trainer(changed(config, memory="no"))}
            metrics[f"{stream}/start/seconds"] = time.perf_counter() - started
            _require_equal_views(trainers["memory"][1], trainers["decoded"][1], stream)
            rates: dict[str, list[float]] = {name: [] for name in trainers}
            for _ in range(runs):
                for contestant, (train_step, clips) in trainers.items():
                    rates[contestant].append(_rate(train_step, clips, config.optimiser.batch_size, epochs))
            for contestant, values in rates.items():
                metrics[f"{stream}/{contestant}/clips_per_second"] = statistics.median(values)
            ratios = [a / b for a, b in zip(rates["memory"], rates["decoded"], strict=True)]
            metrics[f"{stream}/ratio"] = statistics.median(ratios)
    return work, metrics


def _trainer(config):
    data = load(config.data, seed=0, streams=(config.network.stream,), device=DEVICE, workers=0)
    clips = data.splits["train"]
    step = TrainStep(build_network(config, data, DEVICE), config, clips, Objective(config))
    return step, clips


def _require_equal_views(a, b, stream: str) -> None:
    request = (np.arange(8), (0, 0, 0))
    x, y = (next(clips.batches([request], (stream,))).inputs[stream] for clips in (a, b))
    assert torch.equal(x, y)
    assert a.draw(*request)[:, FIRST].max() > 0


def _rate(train_step: TrainStep, clips, batch_size: int, epochs: int) -> float:
    """Returns the clips per second of some epochs after a first one, which is not timed."""
    order = np.random.default_rng(0)
    steps = [
        (rows, (0, 0, epoch))
        for epoch in range(1 + epochs)
        for rows in np.array_split(order.permutation(len(clips)), math.ceil(len(clips) / batch_size))
    ]
    per_epoch = len(steps) // (1 + epochs)
    batches = None if clips.in_memory else clips.batches(steps, train_step.objective.streams)
    for i, (rows, seeds) in enumerate(steps):
        if i == per_epoch:
            train_step.drain()
            started = time.perf_counter()
        batch = next(batches) if batches else None
        train_step(i, rows, view_seeds=seeds, learning_rate=1e-3, batch=batch)
    train_step.drain()
    return epochs * len(clips) / (time.perf_counter() - started)
