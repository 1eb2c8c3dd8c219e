"""NVIDIA's MPS, through which kernels of several processes run on a GPU at the same time; without it they take turns.

python -m d3d.study.mps PID     # stops the daemon once process PID has ended
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d3d.messages import one_line
from d3d.study.attached import PATIENCE, has_ended

PROGRAM = "nvidia-cuda-mps-control"
LOGS = Path(".snakemake/mps")
SECONDS_TO_ANSWER = 60.0
# A daemon keeps neither the terminal nor the pipe of its starter.
DETACHED: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
DETACHED |= {"start_new_session": True}
# Uses a GPU through the daemon, which may start and yet not work, as in some containers.
PROBE = """
import ctypes, sys
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
code = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
code = code or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
sys.exit(f"CUDA error {code}" if code else 0)
"""


class MpsError(Exception):
    """MPS cannot be used; the message says why."""


def start(devices: Sequence[str]) -> dict[str, str]:
    """Starts an MPS daemon that runs until this process has ended, unless the user runs one already.

    Args:
        devices: the GPUs that it serves, as CUDA_VISIBLE_DEVICES names them.

    Returns:
        The environment variables of its clients.

    Raises:
        MpsError: if it cannot be started.
    """
    if not shutil.which(PROGRAM):
        raise MpsError(f"there is no {PROGRAM}")
    if any(device.startswith("MIG-") for device in devices):
        raise MpsError("a part of a GPU needs a daemon of its own")
    if _ask("get_server_list", os.environ) is not None:
        return {}
    # Its sockets need a short path.
    folder = tempfile.mkdtemp(prefix="d3d-mps-")
    LOGS.mkdir(parents=True, exist_ok=True)
    clients = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": str(LOGS.resolve())}
    environment = os.environ | clients
    # First, so that the daemon ends however this process does; in its own session, which Ctrl-C does not reach.
    watcher = [sys.executable, "-m", "d3d.study.mps", str(os.getpid())]
    subprocess.Popen(watcher, env=environment, **DETACHED)
    try:
        _start_daemon(devices, environment)
    except MpsError:
        _ask("quit -t 1", environment)
        raise
    return clients


def _start_daemon(devices: Sequence[str], environment: dict[str, str]) -> None:
    """Starts the daemon of an environment and uses a GPU through it; raises MpsError if one of them fails."""
    server = environment | {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
    # To the clients of a daemon that sees some GPUs only, numbers mean others; UUIDs do not.
    if any(device.isdecimal() for device in devices):
        del server["CUDA_VISIBLE_DEVICES"]
    try:
        subprocess.run([PROGRAM, "-d"], env=server, timeout=SECONDS_TO_ANSWER, check=True, **DETACHED)
        probe = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment | {"CUDA_VISIBLE_DEVICES": devices[0]},
            capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MpsError(f"no answer within {SECONDS_TO_ANSWER:.0f} s") from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise MpsError(f"{PROGRAM} -d fails: {one_line(error)}") from None
    if probe.returncode:
        raise MpsError((probe.stderr.strip().splitlines() or [f"exit {probe.returncode}"])[-1])
    # Without a daemon that answers, a program uses the GPU as if there were no MPS.
    if not _ask("get_server_list", environment):
        raise MpsError(f"{PROGRAM} has started no server")


def _ask(question: str, environment: Mapping[str, str], seconds: float = SECONDS_TO_ANSWER) -> str | None:
    """Sends a command to the daemon of an environment; returns its answer, None if there is no daemon."""
    question = f"{question}\n"
    try:
        done = subprocess.run(
            [PROGRAM], input=question, env=environment, capture_output=True, text=True, timeout=seconds, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    while not has_ended(int(sys.argv[1])):
        time.sleep(1)
    # The runs of a graph that was killed may save their states meanwhile.
    _ask(f"quit -t {PATIENCE:.0f}", os.environ, PATIENCE + SECONDS_TO_ANSWER)
    shutil.rmtree(os.environ["CUDA_MPS_PIPE_DIRECTORY"], ignore_errors=True)
