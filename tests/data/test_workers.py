"""Worker processes: they end with their parent, need no shared memory to send, and name the file of every error."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from d3d.data import workers
from d3d.data.workers import begin, failure, pack, read_in_workers, track_progress, unpack
from tests.conftest import ROOT
from tests.data.test_file_clips import file_clips, read, write

PROGRAM = """
    import os, signal, sys, time
    import numpy as np
    from d3d.data.views import ViewSpec
    from tests.data.test_file_clips import file_clips, write
    from pathlib import Path

    def main():
        rows = [write(Path(sys.argv[1]), name) for name in "abcd"]
        view = ViewSpec(frames=64, size=96, fps=25, short_side=96, bound=20)
        clips = file_clips(rows, view=view, workers=2)
        batches = clips.batches([(np.arange(4), ())] * 8, ("rgb",))
        for batch in batches:
            assert batch.inputs["rgb"].shape == (4, 3, 64, 96, 96)
            print("batch", flush=True)
            {action}

    if __name__ == "__main__":
        main()
"""


def run(command):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def program(folder, action="pass"):
    """A command that reads eight batches with two workers and runs `action` after each."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(PROGRAM).format(action=action))
    return [sys.executable, str(path), str(folder)]


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        pytest.param("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("raise RuntimeError('an error of a training step')", 1, marks=pytest.mark.slow),
        pytest.param("os._exit(3)", 3, marks=pytest.mark.slow),
        pytest.param("sys.exit(4)", 4, marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_their_parent(tmp_path, action, code):
    """The output ends when the last process that inherited it has ended: fork server, tracker and workers."""
    process = run(program(tmp_path, action))
    assert process.stdout == "batch\n"
    assert process.returncode == code, process.stderr


def with_shared_memory(size, command):
    """Runs a command with a /dev/shm of its own, of the given size, or skips the test."""
    script = 'mount -t tmpfs -o size=$0 tmpfs /dev/shm && exec "$@"'
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, size]
    if not shutil.which("unshare") or run([*mount, "true"]).returncode:
        pytest.skip("this system mounts no file system for a test")
    return run([*mount, *command])


@pytest.mark.slow
def test_clips_larger_than_the_shared_memory_are_read(tmp_path):
    process = with_shared_memory("1m", program(tmp_path))  # a clip has 1.8 MB
    assert process.stdout == "batch\n" * 8, process.stderr
    assert process.returncode == 0


def test_shared_memory_too_small_for_workers_is_one_sentence(tmp_path):
    process = with_shared_memory("4k", program(tmp_path))
    assert process.returncode == 1
    assert process.stdout == ""
    last = process.stderr.splitlines()[-1]
    assert "the shared memory at /dev/shm is too small to start worker processes (0.0 of 0 MB are free)" in last
    assert "--shm-size=1g" in last


@pytest.mark.parametrize(("free", "shared"), [(100, False), (130, True)])
def test_half_of_the_shared_memory_stays_free(monkeypatch, free, shared):
    size = os.statvfs_result((1, 1, 200, free, free, 0, 0, 0, 0, 255))
    monkeypatch.setattr(workers.os, "statvfs", lambda path: size)
    monkeypatch.setattr(workers, "get_worker_info", lambda: "a worker")
    tensors = {"rgb": torch.arange(20, dtype=torch.uint8)}
    packed = pack(tensors)
    assert isinstance(packed["rgb"], torch.Tensor if shared else np.ndarray)
    assert not shared or packed["rgb"].is_shared()
    assert torch.equal(unpack(packed)["rgb"], tensors["rgb"])


class NoPath:
    def __str__(self):
        raise TypeError("no path")


@pytest.mark.parametrize("name", ["plain", "killed", "shared memory"])
@pytest.mark.parametrize("count", [0, 2])
def test_an_unexpected_error_names_its_file(tmp_path, name, count):
    rows = [write(tmp_path, "a"), write(tmp_path, name) | {"flow": NoPath()}]
    with pytest.raises(RuntimeError, match=rf"{name}.mkv could not be read: \w*Error: ") as caught:
        read(file_clips(rows, workers=count), streams=("flow",))
    assert "in _inputs" in str(caught.value.__cause__)


class Unsendable:
    def __reduce__(self):
        raise MemoryError("no memory for a copy")


class UnsendableReader(Dataset):
    """Reads what no pipe can take."""

    def __init__(self, in_progress):
        self.in_progress = in_progress

    def __getitem__(self, key):
        begin(self.in_progress, key)
        return key, Unsendable()


def test_a_result_that_cannot_be_sent_ends_the_run():
    in_progress = track_progress(1)
    results = read_in_workers(UnsendableReader(in_progress), iter([0]), 1, in_progress, ["a.mkv"])
    with pytest.raises(ChildProcessError, match=r"a worker process died while it read a.mkv"):
        next(results)


def test_a_failure_has_the_traceback():
    try:
        raise ValueError("no such thing")
    except ValueError:
        described = failure("a.mkv")
    assert described.message == "a.mkv could not be read: ValueError: no such thing"
    assert "test_a_failure_has_the_traceback" in described.traceback
