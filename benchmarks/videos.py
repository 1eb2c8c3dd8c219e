"""Speed on video files, for benchmarks/bench.py: decoding against PyAV alone, the flow of a set against TV-L1 alone."""

import itertools
import math
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from d3d.data.file_clips import FileClips, ViewSpec
from d3d.flow import opencv as tvl1_cpu
from d3d.flow.cache import FlowSpec, summary
from d3d.flow.estimate import tvl1
from d3d.flow.extract import extract
from d3d.video import decode as videos

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
WARM = 6  # clips a process that do not count


def bench_decode() -> tuple[dict, dict[str, float]]:
    """Training clips from files against PyAV decoding the same frames in as many processes.

    All take 64 frames from the same random times on, of H.264 of 340 x 256 pixels with key frames 250 frames apart.
    `clips` are those of the loader, cut, in 8 bits, as they reach this process; `batches` are float32 on the device,
    for which on a CPU this process competes with its workers. The first clips of each process do not count.
    """
    cores = tvl1_cpu.cores()
    work = {"device": DEVICE, "videos": 16, "frames": 64, "size": 224, "cores": cores, "runs": 3, "clips": 20}
    metrics: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        with ThreadPoolExecutor() as pool:
            paths = [Path(folder, f"{i}.mp4") for i in range(work["videos"])]
            table = pd.DataFrame(pool.map(film_of_texture, paths, range(len(paths))))
        view = ViewSpec(frames=64, size=224, fps=25, short_side=256, bound=20)
        for workers in sorted({1, 2, cores}):
            clips = FileClips(table=table, labels=torch.zeros(len(table), device=DEVICE), view=view, workers=workers)
            rows = np.arange((WARM + work["clips"]) * workers) % len(table)
            contestants = {"clips": read_clips, "batches": read_batches, "pyav": read_by_pyav}
            seconds: dict[str, list[float]] = {name: [] for name in contestants}
            for run in range(work["runs"]):
                for name, contestant in contestants.items():
                    seconds[name].append(contestant(clips, rows, workers, run))
            counted = work["clips"] * workers
            for name, found in seconds.items():
                metrics[f"workers{workers}/{name}/clips_per_second"] = counted / statistics.median(found)
            for name in ("clips", "batches"):
                ratios = [p / o for o, p in zip(seconds[name], seconds["pyav"], strict=True)]
                metrics[f"workers{workers}/{name}/ratio"] = statistics.median(ratios)
    return work, metrics


def film_of_texture(path: Path, seed: int) -> dict:
    """Ten seconds of a camera that pans over a smooth random texture, as a row of a table of videos."""
    rng = np.random.default_rng(seed)
    wall = F.interpolate(torch.from_numpy(rng.random((1, 3, 40, 50), np.float32)), (400, 840), mode="bicubic")[0]
    wall = (wall + 0.1 * torch.from_numpy(rng.random(wall.shape, np.float32))).clamp(0, 1)
    wall = (wall * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    frames = np.stack([wall[i // 2 : i // 2 + 256, 2 * i : 2 * i + 340] for i in range(250)])
    path.write_bytes(videos.encode(frames, fps=25))
    return {"path": str(path), "start": 0.0, "end": math.nan, "seconds": 10.0}


def seconds_after(things: Iterator, warm: int) -> float:
    """Seconds for all but the first `warm` of them."""
    for _ in range(warm):
        next(things)
    began = time.perf_counter()
    for _ in things:
        pass
    return time.perf_counter() - began


def read_clips(clips: FileClips, rows: np.ndarray, workers: int, run: int) -> float:
    return seconds_after(clips._read(clips._view_keys([(rows, (run,))]), ("rgb",)), WARM * workers)


def read_batches(clips: FileClips, rows: np.ndarray, workers: int, run: int) -> float:
    steps = [(rows[i : i + workers], (run,)) for i in range(0, len(rows), workers)]
    return seconds_after(clips.batches(steps, ("rgb",)), WARM)


def read_by_pyav(clips: FileClips, rows: np.ndarray, workers: int, run: int) -> float:
    """The same by a pool of processes that do nothing but decode."""
    paths = clips.table["path"].to_numpy()
    starts = [int(np.random.default_rng((run, row)).integers(250 - 64 + 1)) for row in rows]
    items = [(paths[row], start) for row, start in zip(rows, starts, strict=True)]
    with multiprocessing.get_context("forkserver").Pool(workers) as pool:
        return seconds_after(pool.imap(decode_plainly, items), WARM * workers)


def decode_plainly(item: tuple[str, int]) -> int:
    """64 RGB frames from frame `start` on, as PyAV's documentation has it."""
    path, start = item
    with av.open(path) as container:
        stream = container.streams.video[0]
        container.seek(int(start / 25 / stream.time_base), stream=stream)
        wanted = (frame for frame in container.decode(stream) if frame.time >= start / 25 - 1e-6)
        return len([frame.to_ndarray(format="rgb24") for frame in itertools.islice(wanted, 64)])


def bench_flow_set() -> tuple[dict, dict[str, float]]:
    """Flow of ten-second videos at 25 fps and short side 256, decoded, computed, quantised and written, against TV-L1
    alone on as many frames at once as the command takes."""
    count = 48 if CUDA else 1
    work = {"device": DEVICE, "videos": count, "fps": 25.0, "short_side": 256 if CUDA else 48, "runs": 2}
    spec = FlowSpec(fps=25, short_side=work["short_side"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(count):
            if i < 8:
                film_of_texture(folder / f"{i}.mp4", i)
            else:
                shutil.copy(folder / f"{i % 8}.mp4", folder / f"{i}.mp4")
        paths = [str(folder / f"{i}.mp4") for i in range(count)]
        frames = videos.resize(videos.read_frames(paths[0], frames=250), work["short_side"]).to(DEVICE).float() / 255
        extract(paths[:1], folder, folder / "warm", spec, device=DEVICE, report=lambda line: None)
        alone, whole = [], []
        for run in range(work["runs"]):
            began = time.perf_counter()
            for _ in range(2 if CUDA else 1):
                tvl1(frames[:-1], frames[1:])
            if CUDA:
                torch.cuda.synchronize()
            alone.append((2 if CUDA else 1) * 249 / (time.perf_counter() - began))
            began = time.perf_counter()
            extract(paths, folder, folder / f"{run}", spec, device=DEVICE, report=lambda line: None)
            whole.append(249 * count / (time.perf_counter() - began))
        found = summary(folder / "0")
    metrics = {
        "set/fields_per_second": statistics.median(whole),
        "tvl1_alone/fields_per_second": statistics.median(alone),
    }
    metrics["ratio"] = metrics["set/fields_per_second"] / metrics["tvl1_alone/fields_per_second"]
    metrics |= {name: found[name] for name in ("rms_px", "max_px", "clipped")}
    return work, metrics | {"bytes_per_field": found["bytes"] / found["fields"]}
