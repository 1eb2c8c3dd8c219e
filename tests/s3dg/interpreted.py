"""S3D-G's GPU kernels in Triton's interpreter on a CPU: results, gradients, and that no kernel leaves its memory.

Run as a process of its own, because Triton decides on import: TRITON_INTERPRET=1 python -m tests.s3dg.interpreted.
"""

import numpy as np
import torch
from triton.runtime import interpreter

from d3d.s3dg import ops
from d3d.s3dg.network import s3dg
from tests.s3dg.reference import apart, lively, smooth_clips
from tests.s3dg.test_kernels import CASES, with_gradients

plain = ops.fused


class Watched:
    """Triton's memory, which refuses what lies outside of the tensors that a kernel was given."""

    ranges: tuple = ()

    def __init__(self, memory) -> None:
        self.memory = memory

    def __getattr__(self, name):
        return getattr(self.memory, name)

    def check(self, pointers, mask, size) -> None:
        at = pointers.astype(np.int64)[mask.astype(bool)]
        inside = [(at >= low) & (at + size <= high) for low, high in self.ranges]
        assert np.all(np.logical_or.reduce(inside)), "a kernel reached outside of its tensors"

    def load(self, pointers, mask, other, dtype):
        self.check(pointers, mask, np.dtype(dtype).itemsize)
        return self.memory.load(pointers, mask, other, dtype)

    def store(self, pointers, value, mask):
        self.check(pointers, mask, value.dtype.itemsize)
        return self.memory.store(pointers, value, mask)


def watch() -> None:
    interpreter._interpreter = watched = Watched(interpreter._interpreter)
    given = interpreter.GridExecutor._init_args_hst

    def recorded(self, args, kwargs):
        hosts = given(self, args, kwargs)
        tensors = [t for t in [*hosts[0], *hosts[1].values()] if isinstance(t, torch.Tensor) and t.numel()]
        spans = [1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) for t in tensors]
        watched.ranges = tuple(
            (t.data_ptr(), t.data_ptr() + span * t.element_size()) for t, span in zip(tensors, spans, strict=True)
        )
        return hosts

    interpreter.GridExecutor._init_args_hst = recorded


def main() -> None:
    watch()
    ops.fused = lambda x: True
    for name, (operation, reference, *shapes) in CASES.items():
        inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
        found = with_gradients(operation, inputs)
        ops.fused = plain
        want = with_gradients(reference, [x.double() for x in inputs])
        ops.fused = lambda x: True
        assert all(apart(a.double(), b) < 1e-5 for a, b in zip(found, want, strict=True)), name
    results = []
    for fused in (plain, lambda x: True):
        ops.fused = fused
        model = lively(s3dg(3, width=0.25)).eval()
        clips = smooth_clips(3, 3, 8, 32, 32, dtype=torch.float32).requires_grad_()
        logits = model(clips)
        (logits * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        results.append({"logits": logits.detach(), "clips": clips.grad} | grads)
    for name, want in results[0].items():
        assert apart(results[1][name], want) < (1e-5 if name == "logits" else 1e-3), name


if __name__ == "__main__":
    main()
