"""Runs a command that ends when another process ends: the jobs of a killed graph do not go on without it.

python -m d3d.study.attached PID COMMAND …
"""

import os
import signal
import subprocess
import sys

PATIENCE = 60.0  # seconds for an orderly end


def run(pid: int, command: list[str]) -> int:
    """Runs a command; sends it SIGTERM if process `pid` ends or this process gets SIGTERM.

    Args:
        pid: the process to watch.
        command: the command and its arguments.

    Returns:
        Its exit status, as a shell gives it.
    """
    child = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command too, which decides what it means
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            code = child.wait(1.0)
            return 128 - code if code < 0 else code
        except subprocess.TimeoutExpired:
            if not _runs(pid):
                break
    child.terminate()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    return 128 + signal.SIGTERM


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process by now has this id
        return False
    return True


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
