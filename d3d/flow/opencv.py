"""TV-L1 by OpenCV in worker processes. Imports no torch, so that a worker starts in a moment."""

import os
from collections.abc import Mapping

import cv2
import numpy as np
from joblib import Parallel, cpu_count, delayed

# OpenCV's names for what d3d.flow.tvl1 takes.
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
# Pairs of so many pixels in all keep a worker busy for about a second, far longer than handing them over takes.
CHUNK_PIXELS = 2**16


def cores() -> int:
    """Cores to use: as OMP_NUM_THREADS says, or else all that this process may run on."""
    return int(os.environ.get("OMP_NUM_THREADS", "0").split(",")[0]) or cpu_count()


def solve(a: np.ndarray, b: np.ndarray, parameters: Mapping[str, float], *, workers: int | None = None) -> np.ndarray:
    """Flow (N, 2, H, W) from grey images a to b, each float32 (N, H, W) in [0, 1].

    workers: processes; as many as `cores` unless said, and never more than there is work for.
    """
    size = max(1, CHUNK_PIXELS // max(1, a[0].size if len(a) else 1))
    chunks = [slice(i, i + size) for i in range(0, len(a), size)]
    workers = min(workers or cores(), len(chunks))
    if workers <= 1:
        return _chunk(a, b, parameters)
    done = Parallel(n_jobs=workers)(delayed(_chunk)(a[part], b[part], parameters) for part in chunks)
    return np.concatenate(done)


def _chunk(a: np.ndarray, b: np.ndarray, parameters: Mapping[str, float]) -> np.ndarray:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        solver = cv2.optflow.DualTVL1OpticalFlow_create()
        for name, value in parameters.items():
            getattr(solver, SETTERS[name])(value)
        flow = np.empty((len(a), 2, *a.shape[1:]), np.float32)
        for i in range(len(a)):
            flow[i] = solver.calc(a[i], b[i], None).transpose(2, 0, 1)
        return flow
    finally:
        cv2.setNumThreads(threads)
