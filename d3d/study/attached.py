"""Runs a command that ends when another process ends: the jobs of a killed graph do not go on without it.

python -m d3d.study.attached PID COMMAND …
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 60.0  # seconds for an orderly end
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl


def run(pid: int, command: list[str]) -> int:
    """Runs a command; sends it SIGTERM if process `pid` ends or this process gets SIGTERM.

    If a signal ends the command, this process waits on Linux for the processes that the command started, such as
    training that saves its state: SLURM kills what is left when the first process of a job has ended.

    Args:
        pid: the process to watch.
        command: the command and its arguments.

    Returns:
        Its exit status, as a shell gives it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command too, which decides what it means
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            code = child.wait(1.0)
            if code < 0:
                _wait_for_orphans()
            return 128 - code if code < 0 else code
        except subprocess.TimeoutExpired:
            if has_ended(pid):
                break
    child.terminate()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    _wait_for_orphans()
    return 128 + signal.SIGTERM


def _wait_for_orphans() -> None:
    """Waits until the processes whose parent has ended, and which became children of this one, have ended too."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            time.sleep(0.1)


def has_ended(pid: int) -> bool:
    """Whether a process has ended, even if its parent has not waited for it."""
    try:
        os.kill(pid, 0)
    except OSError:  # there is none, or by now another user's process has this id
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:  # not Linux, or it has ended just now
        return False


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
