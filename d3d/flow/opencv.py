"""TV-L1 by OpenCV, in one thread per core: it computes without Python's lock, and a killed run leaves no process."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from joblib import cpu_count

# OpenCV's setters of the parameters of d3d.flow.tvl1.
SETTERS = {
    "tau": "setTau",
    "lambda_": "setLambda",
    "theta": "setTheta",
    "scales": "setScalesNumber",
    "warps": "setWarpingsNumber",
    "scale_step": "setScaleStep",
    "epsilon": "setEpsilon",
    "inner": "setInnerIterations",
    "outer": "setOuterIterations",
    "median": "setMedianFiltering",
}
# Pixels per task: about a second of work.
CHUNK_PIXELS = 2**16
# One call of OpenCV per core is faster than one call on all cores.
cv2.setNumThreads(1)


def cores() -> int:
    """Number of cores to use: OMP_NUM_THREADS if it is set and not empty, else all that this process may run on."""
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(threads or 0) or cpu_count()


def solve(a: np.ndarray, b: np.ndarray, parameters: Mapping[str, float], *, workers: int | None = None) -> np.ndarray:
    """Computes the flow (N, 2, H, W), in pixels, from grey images a to b.

    Args:
        a: float32 (N, H, W) in [0, 1].
        b: As a.
        parameters: Those of `d3d.flow.tvl1`, by name.
        workers: Maximum number of threads; None: `cores()`.
    """
    size = max(1, CHUNK_PIXELS // max(1, a[0].size if len(a) else 1))
    chunks = [slice(i, i + size) for i in range(0, len(a), size)] or [slice(0)]
    with ThreadPoolExecutor(min(workers or cores(), len(chunks))) as pool:
        try:
            flows = list(pool.map(lambda chunk: _solve_chunk(a[chunk], b[chunk], parameters), chunks))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return np.concatenate(flows)


def _solve_chunk(a: np.ndarray, b: np.ndarray, parameters: Mapping[str, float]) -> np.ndarray:
    solver = cv2.optflow.DualTVL1OpticalFlow_create()
    for name, value in parameters.items():
        getattr(solver, SETTERS[name])(value)
    flow = np.empty((len(a), 2, *a.shape[1:]), np.float32)
    for i in range(len(a)):
        flow[i] = solver.calc(a[i], b[i], None).transpose(2, 0, 1)
    return flow
