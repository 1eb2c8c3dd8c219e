"""From video files to decisions, for benchmarks/bench.py: one network against two streams with TV-L1.

`one_network` is an RGB network or D3D, which cost the same; `two_streams` adds a flow network that reads our TV-L1,
computed on the GPU; `two_streams_opencv` reads OpenCV's, computed on every core. Weights are random. Files are H.264 of
340 x 256 pixels; TV-L1 sees only the pixels that the network sees, which is less than is usual.
"""

import ctypes
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from timing import CUDA, DEVICE
from torch import Tensor, nn
from videos import write_texture_video

from d3d.data.file_clips import FileClips
from d3d.data.views import ViewSpec
from d3d.flow.estimate import tvl1_clip
from d3d.flow.opencv import cores
from d3d.s3dg import fold, s3dg
from d3d.video.decode import read_frames, to_clip

BOUND = 20.0  # pixels per frame
# Batches that are timed by arm, after some that are not.
BATCHES = {"one_network": 60, "two_streams": 25, "two_streams_opencv": 1}
WARM_UP = {"one_network": 8, "two_streams": 4, "two_streams_opencv": 1}


def bench_end_to_end() -> tuple[dict, dict[str, float]]:
    """Clips per second with all cores decoding for one GPU, and milliseconds for one video at a time, by stage.

    `alone` is the rate of a stage that need not wait for the others, at the same batch. `share` divides the time of one
    video, decoded by one core, among its stages.
    """
    frames, size, batch = (64, 224, 8) if CUDA else (8, 64, 2)
    work = {"device": DEVICE, "frames": frames, "size": size, "batch": batch, "cores": cores()}
    work["videos"] = 8 if CUDA else 2
    networks = {stream: build(channels) for stream, channels in (("rgb", 3), ("flow", 2))}
    # On a CPU our TV-L1 is OpenCV's.
    arms = [arm for arm in BATCHES if CUDA or arm != "two_streams"]
    metrics: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.inference_mode(),
        torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA),
    ):
        paths = [Path(folder, f"{i}.mp4") for i in range(work["videos"])]
        with ThreadPoolExecutor() as pool:
            table = pd.DataFrame(pool.map(partial(write_texture_video, frames=frames + 16), paths, range(len(paths))))
        view = ViewSpec(frames=frames, size=size, fps=25, short_side=size, bound=BOUND)
        clips = FileClips(table=table, labels=torch.zeros(len(table), device=DEVICE), view=view, workers=work["cores"])
        for arm in arms:
            # OpenCV takes seconds per clip, whatever the batch.
            size_of_batch = 2 if arm == "two_streams_opencv" else batch
            metrics |= {f"{arm}/{name}": v for name, v in throughput(clips, networks, arm, size_of_batch).items()}
            metrics |= {f"{arm}/{name}": value for name, value in latency(paths, networks, arm, view).items()}
        metrics |= {f"alone/{name}": value for name, value in stages_alone(clips, networks, batch).items()}
    for arm in arms[1:]:
        times = metrics["one_network/clips_per_second"] / metrics[f"{arm}/clips_per_second"]
        metrics[f"one_network/times_{arm}"] = times
    return work, metrics


def build(channels: int) -> nn.Module:
    return fold(s3dg(400, in_channels=channels).to(DEVICE), capture=True)


def flow_of(rgb: Tensor, arm: str) -> Tensor:
    """The flow stream's input for clips (B, 3, T, H, W)."""
    flow = tvl1_clip(rgb.cpu()).to(DEVICE) if arm == "two_streams_opencv" else tvl1_clip(rgb)
    return flow.clamp_(-BOUND, BOUND).div_(BOUND)


def decide(networks: dict[str, nn.Module], inputs: dict[str, Tensor]) -> list[int]:
    """The most probable class of each clip by the mean of the streams' probabilities."""
    return sum(networks[name](x).float().softmax(1) for name, x in inputs.items()).argmax(1).tolist()


def batches_of(clips: FileClips, count: int, batch: int) -> Iterable[Tensor]:
    rows = np.arange(count * batch).reshape(count, batch) % len(clips.table)
    return (each.inputs["rgb"] for each in clips.batches([(part, ()) for part in rows], ("rgb",)))


def throughput(clips: FileClips, networks: dict[str, nn.Module], arm: str, batch: int) -> dict[str, float]:
    """Clips per second from files to decisions; on a GPU its peak memory, and its joules per clip if it counts them."""
    count, warm_up = (BATCHES[arm], WARM_UP[arm]) if CUDA else (2, 1)
    joules = energy_counter()

    def run(inputs: Iterable[Tensor]) -> None:
        for rgb in inputs:
            decide(networks, {"rgb": rgb} if arm == "one_network" else {"rgb": rgb, "flow": flow_of(rgb, arm)})

    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    inputs = iter(batches_of(clips, warm_up + count, batch))
    run(islice(inputs, warm_up))
    began, before = time.perf_counter(), joules() if joules else 0.0
    run(inputs)
    metrics = {"clips_per_second": count * batch / (time.perf_counter() - began)}
    if joules:
        metrics["joules_per_clip"] = (joules() - before) / (count * batch)
    if CUDA:
        metrics["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return metrics


def latency(paths: list[Path], networks: dict[str, nn.Module], arm: str, view: ViewSpec) -> dict[str, float]:
    """Milliseconds from one file to its decision, and the share of each stage."""
    seconds = dict.fromkeys(("decode", "preprocess", "flow", "network"), 0.0)
    began = 0.0

    def ended(stage: str) -> None:
        nonlocal began
        if CUDA:
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds[stage] += now - began
        began = now

    timed = paths[1:2] if arm == "two_streams_opencv" or not CUDA else paths[1:]
    for path in (paths[0], *timed):
        if path == timed[0]:
            seconds = dict.fromkeys(seconds, 0.0)  # the first was a warm-up
        began = time.perf_counter()
        images = read_frames(path, frames=view.frames)
        ended("decode")
        rgb = to_clip(images, frames=view.frames, short_side=view.short_side, crop=view.size)[None].to(DEVICE)
        ended("preprocess")
        inputs = {"rgb": rgb}
        if arm != "one_network":
            inputs["flow"] = flow_of(rgb, arm)
            ended("flow")
        decide(networks, inputs)
        ended("network")
    total = sum(seconds.values())
    shares = {f"one_video/share/{stage}": value / total for stage, value in seconds.items() if value}
    return {"one_video/ms": 1e3 * total / len(timed)} | shares


def stages_alone(clips: FileClips, networks: dict[str, nn.Module], batch: int) -> dict[str, float]:
    """Clips per second of decoding with transfer, of one network, and of our TV-L1 on a GPU."""
    count, warm_up = (BATCHES["one_network"], WARM_UP["one_network"]) if CUDA else (2, 1)
    inputs = iter(batches_of(clips, warm_up + count, batch))
    for _ in range(warm_up):
        rgb = next(inputs)
    rates = {"decode": rate(lambda: next(inputs), count, batch)}
    rates["network"] = rate(lambda: decide(networks, {"rgb": rgb}), 10 if CUDA else 1, batch)
    if CUDA:
        rates["flow"] = rate(lambda: flow_of(rgb, "two_streams"), 10, batch)
    return {f"{stage}/clips_per_second": value for stage, value in rates.items()}


def rate(stage: Callable[[], object], count: int, batch: int) -> float:
    if CUDA:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        stage()
    if CUDA:
        torch.cuda.synchronize()
    return count * batch / (time.perf_counter() - began)


def energy_counter() -> Callable[[], float] | None:
    """Returns what reads the joules that the GPU has used so far; None if its driver does not tell."""
    if not CUDA:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}".encode()
    try:
        driver = ctypes.CDLL("libnvidia-ml.so.1")
        count = partial(driver.nvmlDeviceGetTotalEnergyConsumption, handle, ctypes.byref(millijoules))
        failed = driver.nvmlInit_v2() or driver.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) or count()
    except (OSError, AttributeError):
        return None

    def read() -> float:
        count()
        return millijoules.value / 1e3

    return None if failed else read
