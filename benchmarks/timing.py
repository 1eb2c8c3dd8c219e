"""What every bench needs: the device, the machine's name, times of contestants that take turns, and their memory."""

import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from joblib import cpu_count

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def card() -> str:
    """Returns the name of the GPU, or cpu."""
    return torch.cuda.get_device_name() if CUDA else "cpu"


def host() -> str:
    """Returns the model of the CPU and the number of cores that this process may run on."""
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        model = None
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{name}, {cpu_count()} cores"


def interleaved(contestants: Mapping[str, Callable[[], object]], *, runs: int, warm_up: int = 2) -> dict[str, float]:
    """Returns the median seconds of each contestant, in alternating runs, so that drifts affect all alike.

    Args:
        contestants: functions by name.
        runs: number of runs that count.
        warm_up: number of runs before them.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(runs + warm_up):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            if CUDA:
                torch.cuda.synchronize()
            if i >= warm_up:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def reserved_gb() -> float:
    """Returns the GB that PyTorch holds although no tensor uses them, which are the memory of CUDA graphs."""
    if not CUDA:
        return 0.0
    torch.cuda.empty_cache()
    return (torch.cuda.memory_reserved() - torch.cuda.memory_allocated()) / 1e9


def peak_gb(run: Callable[[], object]) -> float:
    """Returns the GB that a run needs beyond what is allocated before it."""
    if not CUDA:
        return 0.0
    allocated = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - allocated) / 1e9
