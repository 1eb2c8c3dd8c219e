"""Speed on video files, for benchmarks/bench.py: decoding, reading clips, and flow of a set against TV-L1 alone.

python benchmarks/videos.py [FILE ...]      # a table of decoders, on your own files if you name some
"""

import itertools
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import pandas as pd
import torch
from timing import CUDA, DEVICE
from torch.nn import functional as F

from d3d.data.file_clips import FileClips
from d3d.data.views import FIRST, ViewSpec
from d3d.flow import opencv as tvl1_cpu
from d3d.flow.cache import FlowSpec, summary
from d3d.flow.estimate import tvl1
from d3d.flow.extract import extract
from d3d.video import decode as videos

WARM_UP = 4  # clips per process that are not timed


def bench_decode() -> tuple[dict, dict[str, float]]:
    """Compares decoders on whole files, and reading training clips with PyAV's frames from as many processes.

    Clips have 64 frames, of H.264 videos of 340 x 256 pixels with key frames 250 frames apart. `clips` are cropped
    8-bit clips as the data loader returns them, `batches` are float32 on the device; if this is a CPU, making batches
    and decoding compete for its cores.
    """
    cores = tvl1_cpu.cores()
    work = {"device": DEVICE, "videos": 16, "frames": 64, "size": 224, "cores": cores, "runs": 3, "clips": 8}
    metrics: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        with ThreadPoolExecutor() as pool:
            paths = [Path(folder, f"{i}.mp4") for i in range(work["videos"])]
            table = pd.DataFrame(pool.map(write_texture_video, paths, range(len(paths))))
        view = ViewSpec(frames=64, size=224, fps=25, short_side=256, bound=20)
        for workers in sorted({1, cores}):
            clips = FileClips(table=table, labels=torch.zeros(len(table), device=DEVICE), view=view, workers=workers)
            rows = np.arange((WARM_UP + work["clips"]) * workers) % len(table)
            readers = {"clips": read_clips, "batches": read_batches, "pyav": read_by_pyav}
            seconds: dict[str, list[float]] = {name: [] for name in readers}
            for run in range(work["runs"]):
                for name, reader in readers.items():
                    seconds[name].append(reader(clips, rows, workers, run))
            timed_clips = work["clips"] * workers
            for name, times in seconds.items():
                metrics[f"workers{workers}/{name}/clips_per_second"] = timed_clips / statistics.median(times)
            for name in ("clips", "batches"):
                ratios = [pyav / ours for ours, pyav in zip(seconds[name], seconds["pyav"], strict=True)]
                metrics[f"workers{workers}/{name}/ratio"] = statistics.median(ratios)
        rows, versions = compare_decoders(paths[:4], runs=work["runs"])
    columns = {f"decoding/{name}/{column}": value for name, row in rows.items() for column, value in row.items()}
    return work | versions, metrics | columns


def compare_decoders(paths: Sequence[str | Path], *, runs: int) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Decodes whole files to RGB by each decoder in turn, on one core: PyAV converts in as many threads as cores.

    Args:
        paths: Video files.
        runs: Number of times that each file is decoded and timed, after one that is not.

    Returns:
        By decoder, CPU milliseconds per frame, their ratio to ours, the number of frames, and how many are as ours;
        and the version of each decoder, or that it is not installed.
    """
    decoders, versions = installed_decoders()
    seconds = {name: np.zeros((runs + 1, len(paths))) for name in decoders}
    frames = dict.fromkeys(decoders, 0)
    same = dict.fromkeys(decoders, 0)
    for i, path in enumerate(paths):
        # In step, since all frames of a long film do not fit in memory.
        for images in itertools.zip_longest(*(decode(path) for decode in decoders.values())):
            for name, image in zip(decoders, images, strict=True):
                frames[name] += image is not None
                same[name] += image is not None and np.array_equal(image, images[0])
        with one_core():
            for run in range(runs + 1):
                for name, decode in decoders.items():
                    began = time.process_time()
                    for _ in decode(path):
                        pass
                    seconds[name][run, i] = time.process_time() - began
    ms = {name: 1e3 * np.median(seconds[name][1:], 0).sum() / frames[name] for name in decoders}
    return {
        name: {
            "ms_per_frame": ms[name],
            "ratio": ms[name] / ms["d3d"],
            "frames": float(frames[name]),
            "same": float(same[name]),
        }
        for name in decoders
    }, versions


@contextmanager
def one_core() -> Iterator[None]:
    """Restricts what this thread does, and the threads that it starts, to one core; on Linux alone."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def installed_decoders() -> tuple[dict[str, Callable[[str | Path], Iterator[np.ndarray]]], dict[str, str]]:
    """The decoders to compare, ours first, and their versions; `pip install -e '.[bench]'` installs all."""
    decoders = {"d3d": videos.iter_frames, "pyav": decode_file_by_pyav}
    versions = {"pyav": version("av")}
    optional = {"torchcodec": decode_file_by_torchcodec, "decord": decode_file_by_decord}
    for name, decode in optional.items():
        try:
            __import__(name)
        except ImportError:
            versions[name] = "not installed"
        except (RuntimeError, OSError):
            versions[name] = "not usable: it finds no FFmpeg"
        else:
            decoders[name], versions[name] = decode, version(name)
    return decoders, versions


def decode_file_by_pyav(path: str | Path) -> Iterator[np.ndarray]:
    """Decodes a file as PyAV's documentation recommends."""
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def decode_file_by_torchcodec(path: str | Path) -> Iterator[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    for i in range(len(decoder)):
        try:
            frame = decoder[i]
        except RuntimeError:  # it does not find the last frame of some AVI files
            return
        yield frame.numpy()


def decode_file_by_decord(path: str | Path) -> Iterator[np.ndarray]:
    from decord import VideoReader

    reader = VideoReader(str(path), num_threads=1)
    for i in range(len(reader)):
        yield reader[i].asnumpy()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = sys.argv[1:] or [str(Path(folder, f"{i}.mp4")) for i in range(4)]
        for i, path in enumerate(paths if not sys.argv[1:] else ()):
            write_texture_video(Path(path), i)
        rows, versions = compare_decoders(paths, runs=5)
    print(", ".join(f"{name} {text}" for name, text in versions.items()))
    print(pd.DataFrame.from_dict(rows, orient="index").to_string(float_format="{:.4g}".format))


def write_texture_video(path: Path, seed: int, *, frames: int = 250, size: tuple[int, int] = (256, 340)) -> dict:
    """Writes a camera panning over a smooth random texture at 25 frames per second; returns its row of the table."""
    rng, (height, width) = np.random.default_rng(seed), size
    canvas = height + frames // 2 + 20, width + 2 * frames
    coarse = rng.random((1, 3, canvas[0] // 10, canvas[1] // 17), np.float32)
    texture = F.interpolate(torch.from_numpy(coarse), canvas, mode="bicubic")[0]
    texture = (texture + 0.1 * torch.from_numpy(rng.random(texture.shape, np.float32))).clamp(0, 1)
    texture = (texture * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    film = np.stack([texture[i // 2 : i // 2 + height, 2 * i : 2 * i + width] for i in range(frames)])
    path.write_bytes(videos.encode(film, fps=25))
    row = {"path": str(path), "start": 0.0, "end": math.nan, "seconds": frames / 25}
    return row | {"height": height, "width": width}


def time_items(items: Iterator, warm_up: int) -> float:
    """Seconds to take all items but the first `warm_up`."""
    for _ in range(warm_up):
        next(items)
    started = time.perf_counter()
    for _ in items:
        pass
    return time.perf_counter() - started


def read_clips(clips: FileClips, rows: np.ndarray, workers: int, run: int) -> float:
    return time_items(clips._read(clips._read_keys((rows, (run,)), ("rgb",))), WARM_UP * workers)


def read_batches(clips: FileClips, rows: np.ndarray, workers: int, run: int) -> float:
    steps = [(rows[i : i + workers], (run,)) for i in range(0, len(rows), workers)]
    return time_items(clips.batches(steps, ("rgb",)), WARM_UP)


def read_by_pyav(clips: FileClips, rows: np.ndarray, workers: int, run: int) -> float:
    """Decodes the same frames in a pool of processes that do nothing else."""
    paths = clips.table["path"].to_numpy()
    starts = clips.draw(rows, (run,))[:, FIRST].tolist()
    items = [(paths[row], start) for row, start in zip(rows, starts, strict=True)]
    with multiprocessing.get_context("forkserver").Pool(workers) as pool:
        seconds = time_items(pool.imap(decode_by_pyav, items), WARM_UP * workers)
        # Workers of this package's server of processes ignore SIGTERM, by which leaving the block would end them.
        pool.close()
        pool.join()
    return seconds


def decode_by_pyav(item: tuple[str, int]) -> int:
    """Decodes 64 RGB frames from frame `start` on, as PyAV's documentation recommends; returns their number."""
    path, start = item
    with av.open(path) as container:
        stream = container.streams.video[0]
        container.seek(int(start / 25 / stream.time_base), stream=stream)
        frames = (frame for frame in container.decode(stream) if frame.time >= start / 25 - 1e-6)
        return len([frame.to_ndarray(format="rgb24") for frame in itertools.islice(frames, 64)])


def bench_flow_set() -> tuple[dict, dict[str, float]]:
    """Compares `d3d flow` on ten-second videos, from decoding to writing, with TV-L1 alone on 250 frames at once."""
    count = 32 if CUDA else 1
    work = {"device": DEVICE, "videos": count, "fps": 25.0, "short_side": 256 if CUDA else 48, "runs": 2}
    spec = FlowSpec(fps=25, short_side=work["short_side"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(count):
            if i < 8:
                write_texture_video(folder / f"{i}.mp4", i)
            else:
                shutil.copy(folder / f"{i % 8}.mp4", folder / f"{i}.mp4")
        paths = [str(folder / f"{i}.mp4") for i in range(count)]
        frames = videos.resize(videos.read_frames(paths[0], frames=250), work["short_side"]).to(DEVICE).float() / 255
        extract(paths[:1], folder, folder / "warm", spec, device=DEVICE, report=lambda line: None)
        tvl1_rates, set_rates = [], []
        for run in range(work["runs"]):
            started = time.perf_counter()
            for _ in range(2 if CUDA else 1):
                tvl1(frames[:-1], frames[1:])
            if CUDA:
                torch.cuda.synchronize()
            tvl1_rates.append((2 if CUDA else 1) * 249 / (time.perf_counter() - started))
            started = time.perf_counter()
            extract(paths, folder, folder / f"{run}", spec, device=DEVICE, report=lambda line: None)
            set_rates.append(249 * count / (time.perf_counter() - started))
        total = summary(folder / "0")
    metrics = {
        "set/fields_per_second": statistics.median(set_rates),
        "tvl1_alone/fields_per_second": statistics.median(tvl1_rates),
    }
    metrics["ratio"] = metrics["set/fields_per_second"] / metrics["tvl1_alone/fields_per_second"]
    metrics |= {name: total[name] for name in ("rms_px", "max_px", "clipped")}
    return work, metrics | {"bytes_per_field": total["bytes"] / total["fields"]}


if __name__ == "__main__":
    main()
