"""Bytes per field of the flow cache on real videos, which compress less than those that the benches make.

python benchmarks/flow_bytes.py VIDEO …       # 64 fields from the middle of each; writes the record bench/flow_bytes
"""

import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from bench import run
from timing import DEVICE

from d3d.flow.cache import FieldsWriter, FlowSpec, quantise
from d3d.flow.estimate import tvl1
from d3d.video.decode import check, iter_frames, resize

FIELDS = 64


def bench_flow_bytes(paths: list[str]) -> tuple[dict, dict[str, float]]:
    """Computes, quantises and compresses flow as `d3d flow` does, and counts bytes."""
    spec = FlowSpec()
    work = {"device": DEVICE, "videos": len(paths), "fps": spec.fps, "short_side": spec.short_side, "fields": FIELDS}
    sizes, motion, pixels = [], [], []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for i, path in enumerate(paths):
            start = max(0.0, check(path).seconds / 2 - FIELDS / spec.fps / 2)
            frames = list(islice(iter_frames(path, fps=spec.fps, start=start), FIELDS + 1))
            images = resize(frames, spec.short_side).to(DEVICE).float() / 255
            flow = tvl1(images[:-1], images[1:])
            with FieldsWriter(Path(folder, f"{i}.mkv"), spec.fps) as writer:
                writer.add(quantise(flow, spec.bound).flatten(1, 2).cpu().numpy())  # x above y, as in the cache
            sizes.append(Path(folder, f"{i}.mkv").stat().st_size / len(flow))
            motion.append(flow.norm(dim=1).mean().item())
            pixels.append(flow[0, 0].numel())
    return work, {
        "bytes_per_field": float(np.mean(sizes)),
        "lowest/bytes_per_field": min(sizes),
        "highest/bytes_per_field": max(sizes),
        "pixels_per_field": float(np.mean(pixels)),
        "pixels_moved": float(np.mean(motion)),
    }


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("name the videos: python benchmarks/flow_bytes.py VIDEO …")
    run("flow_bytes", lambda: bench_flow_bytes(sys.argv[1:]))
