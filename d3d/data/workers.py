"""Worker processes that read files: they end with the process that started them, and every error names its file.

    in_progress = track_progress(workers)                     # the readers write to it, through `begin`
    for result in read_in_workers(reader, keys, workers, in_progress, paths): ...

Workers are forked from a server that has imported what they need: they inherit no threads and no GPU.
"""

import atexit
import multiprocessing
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, forkserver, queues, resource_tracker
from threading import Thread
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

# Where Linux keeps shared memory; docker gives a container 64 MB of it.
SHARED_MEMORY = "/dev/shm"
# Clips that each worker decodes ahead.
AHEAD = 4


@dataclass(frozen=True)
class Failure:
    """An unexpected error of a worker.

    Attributes:
        message: One sentence that names the file.
        traceback: The traceback, as text: an exception itself may not survive the way between processes.
    """

    message: str
    traceback: str


class WorkerTraceback(Exception):
    """Shows a worker's traceback as the cause of the error that its process raises."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def track_progress(workers: int) -> Tensor:
    """Returns a shared table with a line per worker, its process id and the row that it reads, -1 at first.

    Raises:
        OSError: If the shared memory is full.
    """
    table = torch.full((max(1, workers), 2), -1)
    try:
        return table.share_memory_() if workers else table
    except RuntimeError as error:
        _raise_if_full(error)
        raise


def begin(in_progress: Tensor, row: int) -> None:
    """Notes in the table of `track_progress` that this worker reads a row."""
    if worker := get_worker_info():
        in_progress[worker.id] = torch.tensor([os.getpid(), row])


def failure(path: str) -> Failure:
    """Describes the exception that is being handled, which the file at `path` caused."""
    error = sys.exc_info()[1]
    return Failure(f"{path} could not be read: {type(error).__name__}: {error}", traceback.format_exc())


def pack(tensors: dict[str, Tensor]) -> dict[str, Tensor | np.ndarray]:
    """Readies a worker's tensors for the way to its parent process.

    They are moved to shared memory while half of it stays free, for other processes need some too; else they become
    arrays, which are copied through a pipe: for views of 10 MB this takes the parent three times as long.
    """
    if not get_worker_info() or not tensors:
        return tensors
    try:
        size = os.statvfs(SHARED_MEMORY)
        free = size.f_bavail * size.f_frsize - sum(x.nbytes for x in tensors.values())
        if free >= size.f_blocks * size.f_frsize / 2:
            return {name: x.contiguous().share_memory_() for name, x in tensors.items()}
    except (RuntimeError, OSError):  # none on this system, or another process was faster
        pass
    return {name: x.numpy() for name, x in tensors.items()}


def unpack(packed: dict[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
    """Returns the tensors that `pack` received."""
    return {name: torch.as_tensor(x) for name, x in packed.items()}


def read_in_workers(
    reader: Dataset, keys: Iterator[Any], workers: int, in_progress: Tensor, paths: Sequence[str]
) -> Iterator[Any]:
    """Yields `reader[key]` for each key, in order.

    Args:
        reader: Calls `begin`, and returns a `Failure` for an error that it does not expect.
        keys: What to read.
        workers: Number of processes; 0: this process reads.
        in_progress: What `track_progress` returned.
        paths: The file of each row.

    Raises:
        RuntimeError: The reader returned a `Failure`.
        ChildProcessError: A worker died; names the file that it was reading.
        OSError: The shared memory is too full to start workers.
    """
    if not workers:
        yield from map(_checked, map(reader.__getitem__, keys))
        return
    context = multiprocessing.get_context("forkserver")
    # torchvision resizes frames; without it here, every worker would import it for its first clip.
    context.set_forkserver_preload(["__main__", type(reader).__module__, "torchvision.transforms.v2"])
    # Nobody writes to this pipe. It breaks when this process ends, in whatever way.
    parent_ended, lifeline = context.Pipe(duplex=False)
    loader = DataLoader(
        reader, sampler=keys, batch_size=None, num_workers=workers, multiprocessing_context=context,
        prefetch_factor=AHEAD, generator=torch.Generator(), collate_fn=_unchanged,
        worker_init_fn=partial(_end_with_parent, parent_ended),
    )  # fmt: skip
    others = set(multiprocessing.active_children())

    def end_workers() -> None:
        lifeline.close()
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()  # one that hangs in a file does not see the pipe

    # Runs before the exit handler of multiprocessing, which was registered earlier and waits for the workers.
    atexit.register(end_workers)
    try:
        yield from map(_checked, _iterate(loader, in_progress, paths))
    finally:
        end_workers()
        parent_ended.close()
        atexit.unregister(end_workers)


def _iterate(loader: DataLoader, in_progress: Tensor, paths: Sequence[str]) -> Iterator[Any]:
    """Starts the workers and yields what they send; raises the errors of `read_in_workers` that are not of a file."""
    try:
        _start_server()
        yield from loader
    except (RuntimeError, OSError, EOFError) as error:
        _raise_if_full(error)
        dead = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
        if not dead and not re.search("exited unexpectedly|killed", str(error)):
            raise
        _raise_dead(in_progress, paths)


def _start_server() -> None:
    """Starts the fork server with SIGINT and SIGTERM blocked, which the workers inherit.

    Both signals reach every process of a terminal or job. Workers ignore them, decode until the main process
    has stopped in an orderly way, and end with it.
    """
    resource_tracker.ensure_running()  # would otherwise be started below, and unblock the signals
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _unchanged(item: Any) -> Any:
    """Replaces the loader's conversion of arrays to tensors, which would need shared memory."""
    return item


def _checked(result: Any) -> Any:
    _, content = result
    if isinstance(content, Failure):
        raise RuntimeError(content.message) from WorkerTraceback(content.traceback)
    return result


def _end_with_parent(parent_ended: connection.Connection, _: int) -> None:
    """Ends this worker when its parent process ends, and when a result cannot be sent, for which it would wait."""

    def wait() -> None:
        connection.wait([parent_ended])
        os._exit(0)

    def end(error: Exception, _: Any) -> None:
        traceback.print_exception(error)
        os._exit(1)

    queues.Queue._on_queue_feeder_error = staticmethod(end)
    Thread(target=wait, daemon=True).start()


def _raise_if_full(error: Exception) -> None:
    """Raises OSError that says so if an error comes from shared memory that is full."""
    if not re.search("shared memory|No space left", str(error)):
        return
    try:
        size = os.statvfs(SHARED_MEMORY)
        room = f"{size.f_bavail * size.f_frsize / 1e6:.1f} of {size.f_blocks * size.f_frsize / 1e6:.0f} MB are free"
    except OSError:
        room = "it cannot be opened"
    raise OSError(
        f"the shared memory at {SHARED_MEMORY} is too small to start worker processes ({room}): delete what fills it, "
        "or enlarge it, in a container with --shm-size=1g"
    ) from None


def _raise_dead(in_progress: Tensor, paths: Sequence[str]) -> NoReturn:
    """Raises ChildProcessError for workers that no longer live."""
    alive = {child.pid for child in multiprocessing.active_children()}
    rows = [int(row) for pid, row in in_progress.tolist() if pid >= 0 and pid not in alive]
    files = ", ".join(paths[row] for row in rows if row >= 0)
    activity = f"while it read {files}: convert or delete the file" if files else "before it read a file"
    raise ChildProcessError(
        f"a worker process died {activity}; if the machine ran out of memory, use fewer workers"
    ) from None
