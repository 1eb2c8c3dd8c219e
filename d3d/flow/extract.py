"""TV-L1 for a whole set of video files, into a flow cache: `d3d flow --dataset … --root … --out …`.

A killed run goes on where it was; several machines share a set by --shard, the GPUs of one by a process each.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
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

from d3d.flow.cache import FieldsWriter, FlowSpec, dequantise, fields_path, open_cache, quantise, summary
from d3d.flow.estimate import CHUNK_PIXELS, tvl1
from d3d.progress import Progress
from d3d.video import annotations
from d3d.video.decode import VideoError, resize, shown


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
    """Puts the fields of every `shard[1]`-th video, from the `shard[0]`-th on, into the cache; what is there stays.

    Threads decode and encode while the device computes; each file appears whole or not at all.
    Raises CacheError as `open_cache` does, and VideoError for a video that cannot be read where `damaged` is "raise".
    """
    open_cache(cache, spec, create=True)
    mine = list(videos)[shard[0] - 1 :: shard[1]]
    waiting = [video for video in mine if not fields_path(cache, root, video).is_file()]
    report(f"{len(mine)} videos, {len(mine) - len(waiting)} of them done before; on {device}")
    log = Path(cache, f"videos-{shard[0]}-of-{shard[1]}.jsonl")
    # Two at a time: while one waits to hear whether its flow has converged, the GPU computes the other's.
    turn, slots = Lock(), BoundedSemaphore(2 if device.startswith("cuda") else 1)

    def tell(line: dict[str, Any]) -> None:
        with turn, open(log, "a") as file:
            file.write(json.dumps(line) + "\n")

    def one(video: str | Path) -> None:
        name, fields = os.path.relpath(video, root), 0
        try:
            fields = _one(
                video, fields_path(cache, root, video), spec, device, slots, lambda found: tell({"video": name} | found)
            )
        except BlockingIOError:
            report(f"left to another process: {name}")
        except VideoError as error:
            if damaged == "raise":
                raise
            tell({"video": name, "refused": str(error)})
            report(f"refused: {error}")
        with turn:
            progress.update(fields=fields)

    with (
        Progress(len(waiting), "videos", report, summary=True) as progress,
        ThreadPoolExecutor(workers or (8 if device != "cpu" else 2)) as pool,
    ):
        running = [pool.submit(one, video) for video in waiting]
        try:
            for done in running:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(
    video: str | Path,
    path: Path,
    spec: FlowSpec,
    device: str,
    slots: BoundedSemaphore,
    tell: Callable[[dict[str, float]], None],
) -> int:
    """Computes and writes one video's fields and returns their number; `tell` gets what was measured of them.

    Raises BlockingIOError where another process is at it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    errors, clipped = [], 0
    with open(part, "ab") as claim:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            with FieldsWriter(part, spec.fps) as writer:
                for frames in _chunks(video, spec):
                    with slots, torch.no_grad(), _alone_on(device):
                        images = frames.to(device).float() / 255
                        flow = tvl1(images[:-1], images[1:])
                        levels, inside = quantise(flow, spec.bound), flow.clamp(-spec.bound, spec.bound)
                        error = (dequantise(levels, spec.bound) - inside).abs()
                        errors.append((error.square().mean().item(), error.max().item(), error.numel()))
                        clipped += (inside != flow).sum().item()
                        stacked = levels.flatten(1, 2).cpu().numpy()
                    writer.add(stacked)
            if not errors:
                raise VideoError(f"{video} has one frame only, at {spec.fps:g} a second: no motion can be seen")
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            squares, largest, values = map(np.array, zip(*errors, strict=True))
            fields = int(values.sum() // stacked[0].size)
            measured = {"rms_px": float(np.average(squares, weights=values) ** 0.5), "max_px": float(largest.max())}
            measured |= {"clipped": float(clipped / values.sum()), "fields": fields, "bytes": part.stat().st_size}
            # First the line: a file without one would never be told of.
            tell(measured)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return fields


@contextmanager
def _alone_on(device: str) -> Iterator[None]:
    """A stream of its own on the device; Triton launches on the thread's current one, whatever its arguments are on."""
    with ExitStack() as stack:
        if device.startswith("cuda"):
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(torch.cuda.stream(torch.cuda.Stream()))
        yield


def _chunks(video: str | Path, spec: FlowSpec) -> Iterator[torch.Tensor]:
    """The video's frames at the asked rate, resized, uint8 (T, 3, H, W), in runs that fit on a device, each from the
    last of the one before. Of a large video few frames lie in memory as they are."""
    frames = shown(video, fps=spec.fps)
    parts = [resize(group, spec.short_side) for group in [list(islice(frames, 1))] if group]
    size = max(2, CHUNK_PIXELS // parts[0][0, 0].numel()) if parts else 0
    count = 1
    while group := list(islice(frames, min(16, size + 1 - count))):
        parts.append(resize(group, spec.short_side))
        count += len(group)
        if count > size:
            yield torch.cat(parts)
            parts, count = [parts[-1][-1:]], 1
    if count > 1:
        yield torch.cat(parts)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="d3d flow", description="TV-L1 flow of a whole set of videos.")
    parser.add_argument("--dataset", required=True, choices=annotations.DATASETS, help="the layout of root")
    parser.add_argument("--root", required=True, type=Path, help="folder of the videos, or the table's CSV file")
    parser.add_argument("--annotations", default="", help="folder of the set's annotation files (default: root)")
    parser.add_argument("--out", required=True, type=Path, help="folder of the cache; one that is there is continued")
    for name, kind in (("fps", float), ("short_side", int), ("bound", float)):
        default = getattr(FlowSpec(), name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=default, help=f"default {default:g}")
    parser.add_argument("--shard", default="1/1", help="i/n: only every n-th video from the i-th on, for n machines")
    parser.add_argument("--devices", default="", help="such as cuda:0,cuda:1 (default: every GPU, else the CPU)")
    parser.add_argument("--workers", type=int, help="threads a device that decode and encode (default 8)")
    parser.add_argument("--damaged", choices=("skip", "raise"), default="skip", help="what to do with such a video")
    given = parser.parse_args(argv)
    try:
        _run(given, argv)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on where it was")


def _run(given: argparse.Namespace, argv: Sequence[str]) -> None:
    shard = _shard(given.shard)
    spec = FlowSpec(fps=given.fps, short_side=given.short_side, bound=given.bound)
    open_cache(given.out, spec, create=True)
    devices = given.devices.split(",") if given.devices else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if len(devices) > 1:
        _spread(devices, shard, argv)
    else:
        videos = _videos(given)
        root = given.root.parent if given.root.is_file() else given.root
        extract(
            videos, root, given.out, spec, shard=shard, device=devices[0] if devices else "cpu",
            workers=given.workers, damaged=given.damaged, report=partial(print, flush=True),
        )  # fmt: skip
    if shard == (1, 1):
        found = summary(given.out)
        print(
            f"{found['videos']} videos, {found['fields']} fields, {found['bytes'] / 1e6:.1f} MB in {given.out}; "
            f"quantisation error {found['rms_px']:.4f} px root mean square, {found['max_px']:.4f} px at most; "
            f"{100 * found['clipped']:.2f} % of values beyond ± {spec.bound:g} px"
        )


def _videos(given: argparse.Namespace) -> list[str]:
    """Every video of the set, in order: of UCF101 and HMDB51 those of all three splits."""
    found: set[str] = set()
    for split in (1, 2, 3) if given.dataset in annotations.SPLIT else (1,):
        listing = annotations.read(given.dataset, given.root, annotations=given.annotations, split=split)
        found |= set(listing.table["path"])
        of_split = f"split {split}: " if given.dataset in annotations.SPLIT else ""
        print(of_split + ", ".join(f"{count} {name}" for name, count in listing.counts.items()), flush=True)
    return sorted(found)


def _spread(devices: Sequence[str], shard: tuple[int, int], argv: Sequence[str]) -> None:
    """One process a device, each with a part of the shard. Raises ChildProcessError naming those that failed."""
    index, count = shard
    running = {}
    for k, device in enumerate(devices):
        part = f"{index + count * k}/{count * len(devices)}"
        command = [sys.executable, "-m", "d3d", "flow", *argv, "--shard", part, "--devices", device]
        running[device] = subprocess.Popen(command)
    if failed := [device for device, process in running.items() if process.wait()]:
        raise ChildProcessError(f"the flow on {', '.join(failed)} ended early: the same command goes on where it was")


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise ValueError(f"shard must be i/n with i from 1 to n, such as 2/4, not {text!r}")
    return index, count
