"""Computes TV-L1 flow of all videos of a data set and writes it to a flow cache.

    d3d flow --dataset … --root … --out …     # the same command resumes a killed run

--shard divides the videos among machines; on one machine, they are divided among one process per GPU.
"""

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np
import torch

from d3d.files import append_to, sha256
from d3d.flow.cache import (
    CacheError,
    FieldsWriter,
    FlowSpec,
    dequantise,
    fields_path,
    mismatches,
    open_cache,
    quantise,
    summary,
)
from d3d.flow.estimate import CHUNK_PIXELS, tvl1
from d3d.messages import one_line, printable, shown
from d3d.progress import Progress
from d3d.video import annotations
from d3d.video.decode import VideoError, iter_frames, resize
from d3d.video.shards import fingerprint

MAX_WORKERS = 1000


def extract(
    videos: Sequence[str | Path],
    root: str | Path,
    cache: str | Path,
    spec: FlowSpec,
    *,
    shard: tuple[int, int] = (1, 1),
    device: str = "cpu",
    workers: int | None = None,
    damaged: str = "skip",
    report: Callable[[str], None] = print,
) -> None:
    """Computes the flow of one shard of the videos and writes it to a cache; skips videos whose flow is in the cache.

    Threads decode and encode while the device computes. Each file appears complete or not at all. The flow of a video
    that has changed since, and files that are not what was written, are replaced.

    Args:
        videos: All videos of the set, below `root`.
        root: Folder of the videos; the cache has the same subfolders.
        cache: Folder of the cache, created if it does not exist.
        spec: Parameters of the flow.
        shard: (i, n) takes every n-th video from the i-th on, counted from 1.
        device: Device that computes the flow.
        workers: Number of threads; None: 8 for a GPU, 2 for a CPU.
        damaged: "skip" records and reports unreadable videos, "raise" raises VideoError.
        report: Receives one line per message.

    Raises:
        CacheError: As `open_cache` and `mismatches` do, and if a folder of the cache is a link that leads out of it.
        OSError: If the cache cannot be written.
        VideoError: For an unreadable video if damaged is "raise".
    """
    assigned = list(videos)[shard[0] - 1 :: shard[1]]
    paths = {video: fields_path(cache, root, video) for video in assigned}
    if os.path.realpath(cache) == os.path.realpath(root):
        raise CacheError(f"the flow cache {printable(cache)} must be another folder than the root of the videos")
    open_cache(cache, spec, create=True)
    _require_inside(cache, {path.parent for path in paths.values()})
    changed = mismatches(cache, root, assigned)
    for reason in changed.values():
        report(f"computed again: {reason}")
    remaining = [video for video, path in paths.items() if video in changed or not path.is_file()]
    report(f"{len(assigned)} videos, {len(assigned) - len(remaining)} of them already done; on {device}")
    log = Path(cache, f"videos-{shard[0]}-of-{shard[1]}.jsonl")
    # Two videos share a GPU: it computes one while the other waits for its convergence test.
    lock, slots = Lock(), BoundedSemaphore(2 if device.startswith("cuda") else 1)

    def append_to_log(entry: dict[str, Any]) -> None:
        try:
            with lock, append_to(log) as file:
                # A killed process may have left half a line, which must not swallow this one.
                file.write(f"\n{json.dumps(entry)}\n".encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, f"{printable(log)} could not be written: {error.strerror}") from None

    def process(video: str | Path) -> None:
        name, num_fields = os.path.relpath(video, root), 0
        try:
            num_fields = _extract_video(
                video, fields_path(cache, root, video), spec, device, slots,
                lambda entry: append_to_log({"video": name} | entry),
            )  # fmt: skip
        except BlockingIOError:
            report(f"skipped, another process is computing it: {printable(name)}")
        except VideoError as error:
            if damaged == "raise":
                raise
            append_to_log({"video": name, "refused": str(error)})
            report(f"unreadable video skipped: {error}")
        except OSError as error:
            if error.strerror != os.strerror(error.errno):
                raise
            reason = f"the flow of {printable(video)} could not be written to {printable(cache)}: {error.strerror}"
            raise OSError(error.errno, reason) from None
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            reason = f"the flow of {printable(video)} could not be computed: {type(error).__name__}: {error}"
            raise RuntimeError(reason) from error
        with lock:
            progress.update(fields=num_fields)

    with (
        Progress(len(remaining), "videos", report, summary=True) as progress,
        ThreadPoolExecutor(workers or (8 if device != "cpu" else 2)) as pool,
    ):
        futures = [pool.submit(process, video) for video in remaining]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _require_inside(cache: str | Path, folders: set[Path]) -> None:
    """Raises CacheError if a folder of a cache is a file, or a link that leads out of the cache or nowhere."""
    inside = os.path.realpath(cache)
    for folder in sorted(folders):
        if os.path.lexists(folder) and not folder.is_dir():
            raise CacheError(f"{printable(folder)} must be a folder of the flow cache: delete it")
        if os.path.commonpath([inside, os.path.realpath(folder)]) != inside:
            raise CacheError(f"{printable(folder)} leads out of the flow cache {printable(cache)}: delete this link")


def _extract_video(
    video: str | Path,
    path: Path,
    spec: FlowSpec,
    device: str,
    slots: BoundedSemaphore,
    write_log: Callable[[dict[str, Any]], None],
) -> int:
    """Writes one video's flow to `path`, its quantisation error and checksums to the log; returns its fields.

    Raises:
        BlockingIOError: If another process computes the same video.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.part")
    errors, clipped = [], 0  # quantisation error of each chunk, number of clipped values
    try:
        source = fingerprint(video)
    except OSError as error:
        raise VideoError(f"{printable(video)} cannot be opened as a video: {error.strerror}") from None
    with append_to(partial_path) as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            with FieldsWriter(partial_path, spec.fps) as writer:
                for frames in _iter_chunks(video, spec):
                    with slots, torch.no_grad(), _separate_stream(device):
                        images = frames.to(device).float() / 255
                        flow = tvl1(images[:-1], images[1:])
                        quantised, clamped = quantise(flow, spec.bound), flow.clamp(-spec.bound, spec.bound)
                        error = (dequantise(quantised, spec.bound) - clamped).abs()
                        errors.append((error.square().mean().item(), error.max().item(), error.numel()))
                        clipped += (clamped != flow).sum().item()
                        grey_frames = quantised.flatten(1, 2).cpu().numpy()  # x above y
                    writer.add(grey_frames)
            if not errors:
                raise VideoError(
                    f"{printable(video)} has one frame only, at {spec.fps:g} frames per second: flow needs two"
                )
            with open(partial_path, "rb+") as file:
                os.fsync(file.fileno())
            mean_squares, maxima, counts = map(np.array, zip(*errors, strict=True))
            num_fields = int(counts.sum() // grey_frames[0].size)
            statistics = {"rms_px": float(np.average(mean_squares, weights=counts) ** 0.5)}
            statistics |= {"max_px": float(maxima.max()), "clipped": float(clipped / counts.sum())}
            statistics |= {"fields": num_fields, "bytes": partial_path.stat().st_size, "time": time.time()}
            # The log first: a file that exists is in the log.
            write_log(statistics | {"flow": sha256(partial_path), "source": source})
            os.replace(partial_path, path)
        except BaseException:
            partial_path.unlink(missing_ok=True)
            raise
    return num_fields


@contextmanager
def _separate_stream(device: str) -> Iterator[None]:
    """Makes the device and a new CUDA stream current in this thread, as Triton launches kernels on the current one."""
    with ExitStack() as stack:
        if device.startswith("cuda"):
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(torch.cuda.stream(torch.cuda.Stream()))
        yield


def _iter_chunks(video: str | Path, spec: FlowSpec) -> Iterator[torch.Tensor]:
    """Yields a video's frames, resized, uint8 (T, 3, H, W), in chunks that fit on a device.

    Each chunk starts with the last frame of the one before. At most 16 frames are in memory at full size.
    """
    frames = iter_frames(video, fps=spec.fps)
    chunk = [resize(group, spec.short_side) for group in [list(islice(frames, 1))] if group]
    size = max(2, CHUNK_PIXELS // chunk[0][0, 0].numel()) if chunk else 0
    count = 1
    while group := list(islice(frames, min(16, size + 1 - count))):
        chunk.append(resize(group, spec.short_side))
        count += len(group)
        if count > size:
            yield torch.cat(chunk)
            chunk, count = [chunk[-1][-1:]], 1
    if count > 1:
        yield torch.cat(chunk)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="d3d flow",
        description="Computes TV-L1 flow of a data set's videos, for `d3d train --flow-cache`; a killed run resumes.",
    )
    parser.add_argument(
        "--dataset", required=True, choices=annotations.DATASETS, help="data set, which defines the layout of root"
    )
    parser.add_argument("--root", required=True, type=Path, help="folder of the videos; --dataset table: the CSV file")
    parser.add_argument("--annotations", default="", help="folder of the data set's annotation files (default: root)")
    parser.add_argument("--out", required=True, type=Path, help="folder of the cache; an existing one is resumed")
    for name, kind, meaning in (
        ("fps", float, "frame rate at which the videos are sampled, frames per second"),
        ("short_side", int, "pixels to which the frames' short side is resized first, at least 16"),
        ("bound", float, "flow is clipped to ± bound pixels per frame"),
    ):
        default = getattr(FlowSpec(), name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=default, help=f"{meaning} (default {default:g})")
    parser.add_argument(
        "--shard",
        default="1/1",
        help="i/n: every n-th video from the i-th on, for the i-th of n machines (default 1/1)",
    )
    parser.add_argument("--devices", default="", help="such as cuda:0,cuda:1 (default: all GPUs, else the CPU)")
    parser.add_argument("--workers", type=int, help="threads per device that decode and encode (default: 8, CPU: 2)")
    parser.add_argument(
        "--damaged", choices=("skip", "raise"), default="skip",
        help="videos that cannot be decoded: skip and log them, or stop at the first (default skip)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        _run(args, argv)
    except (ValueError, OSError) as error:
        sys.exit(one_line(error))
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to resume")


def _run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    shard = parse_shard(args.shard)
    spec = FlowSpec(fps=args.fps, short_side=args.short_side, bound=args.bound)
    if args.workers is not None and not 1 <= args.workers <= MAX_WORKERS:
        raise ValueError(f"workers must lie in [1, {MAX_WORKERS}], not {shown(args.workers)}")
    devices = args.devices.split(",") if args.devices else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    for device in devices:
        _check_device(device)
    if os.path.lexists(args.out / "manifest.json"):
        open_cache(args.out, spec)
    videos = _list_videos(args, report=(lambda line: None) if len(devices) > 1 else partial(print, flush=True))
    if len(devices) > 1:
        open_cache(args.out, spec, create=True)
        _run_per_device(devices, shard, argv)
    else:
        root = args.root.parent if args.root.is_file() else args.root
        extract(
            videos, root, args.out, spec, shard=shard, device=devices[0] if devices else "cpu",
            workers=args.workers, damaged=args.damaged, report=partial(print, flush=True),
        )  # fmt: skip
    if shard == (1, 1):
        total = summary(args.out)
        print(
            f"{total['videos']} videos, {total['fields']} fields, {total['bytes'] / 1e6:.1f} MB in "
            f"{printable(args.out)}; quantisation error {total['rms_px']:.4f} px root mean square, "
            f"{total['max_px']:.4f} px at most; {100 * total['clipped']:.2f} % of values beyond ± {spec.bound:g} px"
        )


def _check_device(name: str) -> None:
    """Raises ValueError if this machine has no such device."""
    count = torch.cuda.device_count()
    if name != "cpu" and name not in {f"cuda:{i}" for i in range(count)}:
        raise ValueError(f"devices must be cpu or cuda:0, cuda:1 …, not {shown(name)}: this machine has {count} GPUs")


def _list_videos(args: argparse.Namespace, report: Callable[[str], None]) -> list[str]:
    """The videos of the set, of all three splits for UCF101 and HMDB51, sorted."""
    videos: set[str] = set()
    has_splits = args.dataset in annotations.SETS_WITH_SPLITS
    for split in (1, 2, 3) if has_splits else (1,):
        listing = annotations.read(args.dataset, args.root, annotations=args.annotations, split=split)
        videos |= set(listing.table["path"])
        prefix = f"split {split}: " if has_splits else ""
        report(prefix + ", ".join(f"{count} {name}" for name, count in listing.counts.items()))
    return sorted(videos)


def _run_per_device(devices: Sequence[str], shard: tuple[int, int], argv: Sequence[str]) -> None:
    """Divides a shard among one process per device.

    Raises:
        ChildProcessError: If processes failed, naming their devices.
    """
    index, count = shard
    processes = {}
    for k, device in enumerate(devices):
        subshard = f"{index + count * k}/{count * len(devices)}"
        command = [sys.executable, "-m", "d3d", "flow", *argv, "--shard", subshard, "--devices", device]
        processes[device] = subprocess.Popen(command)
    if failed := [device for device, process in processes.items() if process.wait()]:
        raise ChildProcessError(f"the flow on {', '.join(failed)} failed: run the same command again to resume")


def parse_shard(text: str) -> tuple[int, int]:
    """Reads i/n, the i-th of n parts, counted from 1; raises ValueError if it is none."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise ValueError(f"shard must be i/n with i from 1 to n, such as 2/4, not {shown(text)}")
    return index, count
