"""The GPUs that the runs of a graph share: which there are, and which run uses which.

    python -m d3d.study.gpus COUNT COMMAND …     # waits for a place on COUNT of the GPUs and runs the command on them

`d3d.study.graph` sets D3D_GPUS, the GPUs as CUDA names them, and D3D_RUNS_PER_GPU.
"""

import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# Files whose locks are places on GPUs: a lock is free once the processes that hold it have ended, however they did.
PLACES = Path(".snakemake/gpus")
SECONDS_TO_LIST = 60.0
GPU_LINE = re.compile(r"GPU (?P<index>\d+): (?P<name>.+) \(UUID: (?P<uuid>GPU-[^)]+)\)")
MIG_LINE = re.compile(r"\s+MIG (?P<name>\S+)\s+Device\s+\d+: \(UUID: (?P<uuid>MIG-[^)]+)\)")


class Gpu(NamedTuple):
    """A GPU, or a part of one (MIG).

    Attributes:
        device: as CUDA_VISIBLE_DEVICES names it.
        name: of the hardware.
    """

    device: str
    name: str


def find_gpus() -> list[Gpu]:
    """Returns the GPUs that nvidia-smi lists, or those of them that CUDA_VISIBLE_DEVICES does."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, errors="replace", check=True, timeout=SECONDS_TO_LIST
        )
    except (OSError, subprocess.SubprocessError):
        return []
    whole = [Gpu(match["uuid"], match["name"]) for match in map(GPU_LINE.match, done.stdout.splitlines()) if match]
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return list(_listed(visible.split(","), whole)) if whole else []
    return list(_parts(done.stdout.splitlines()))


def _parts(lines: Sequence[str]) -> Iterator[Gpu]:
    """Yields the GPUs of nvidia-smi's list; in place of one that is divided, its parts."""
    gpu = None
    for line in lines:
        if match := GPU_LINE.match(line):
            if gpu:
                yield gpu
            gpu = whole = Gpu(match["uuid"], match["name"])
        elif match := MIG_LINE.match(line):
            yield Gpu(match["uuid"], f"{whole.name} {match['name']}")
            gpu = None
    if gpu:
        yield gpu


def _listed(devices: Sequence[str], whole: Sequence[Gpu]) -> Iterator[Gpu]:
    """Yields the GPUs of CUDA_VISIBLE_DEVICES; as CUDA does, up to the first that there is not."""
    for device in map(str.strip, devices):
        if device.isdecimal():
            same = whole[int(device) : int(device) + 1]
        elif device.startswith("MIG-"):
            same = [Gpu(device, "MIG")]
        else:  # a UUID may be shortened
            same = [gpu for gpu in whole if device.startswith("GPU-") and gpu.device.startswith(device)]
        if len(same) != 1:
            return
        yield Gpu(device, same[0].name)


def lease(devices: Sequence[str], runs_per_gpu: int, count: int, folder: Path = PLACES) -> list[str]:
    """Waits for a place on several GPUs, those with the fewest runs, and takes it in the name of this process.

    The places are free again when this process, and the programs that it becomes or starts with its files, have ended.

    Args:
        devices: all GPUs.
        runs_per_gpu: how many places each has.
        count: on how many GPUs; all, if there are fewer.
        folder: folder of the files that are locked.

    Returns:
        The GPUs, some of `devices`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "queue", "w") as queue:
        fcntl.flock(queue, fcntl.LOCK_EX)  # who waits for several GPUs is not overtaken
        while True:
            free = [
                [fd for place in range(runs_per_gpu) if (fd := _lock(folder / f"{gpu}-{place}")) is not None]
                for gpu in range(len(devices))
            ]
            chosen = sorted(range(len(devices)), key=lambda gpu: -len(free[gpu]))[:count]
            taken = {free[gpu][0] for gpu in chosen} if all(free[gpu] for gpu in chosen) else set()
            for fd in (fd for places in free for fd in places):
                if fd in taken:
                    os.set_inheritable(fd, True)
                else:
                    os.close(fd)
            if taken:
                return [devices[gpu] for gpu in sorted(chosen)]
            time.sleep(0.2)


def _lock(path: Path) -> int | None:
    """Locks a file and returns its descriptor; None if another process has locked it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


if __name__ == "__main__":
    gpus = lease(os.environ["D3D_GPUS"].split(","), int(os.environ["D3D_RUNS_PER_GPU"]), int(sys.argv[1]))
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    os.execvp(sys.argv[2], sys.argv[2:])
