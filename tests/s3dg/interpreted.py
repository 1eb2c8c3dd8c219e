"""Checks S3D-G's GPU kernels in Triton's interpreter, on a CPU: results, gradients and out-of-bounds accesses.

Runs as a separate process, because Triton chooses the interpreter on import: TRITON_INTERPRET=1 python -m
tests.s3dg.interpreted operations, or network.
"""

import sys

import numpy as np
import torch
from triton.runtime import interpreter

from d3d.s3dg import network, ops
from d3d.s3dg.blocks import Mixed
from d3d.s3dg.network import s3dg
from tests.s3dg.reference import randomize, relative_error, smooth_clips
from tests.s3dg.test_kernels import CASES, with_gradients

original = ops.kernels_support


class CheckedMemory:
    """The interpreter's memory, which fails on accesses outside of the kernel's tensor arguments."""

    ranges: tuple = ()

    def __init__(self, memory) -> None:
        self.memory = memory

    def __getattr__(self, name):
        return getattr(self.memory, name)

    def check(self, pointers, mask, size) -> None:
        addresses = pointers.astype(np.int64)[mask.astype(bool)]
        inside = [(addresses >= low) & (addresses + size <= high) for low, high in self.ranges]
        assert np.all(np.logical_or.reduce(inside)), "a kernel accessed memory outside of its tensors"

    def load(self, pointers, mask, other, dtype):
        self.check(pointers, mask, np.dtype(dtype).itemsize)
        return self.memory.load(pointers, mask, other, dtype)

    def store(self, pointers, value, mask):
        self.check(pointers, mask, value.dtype.itemsize)
        return self.memory.store(pointers, value, mask)


def check_memory() -> None:
    interpreter._interpreter = memory = CheckedMemory(interpreter._interpreter)
    init_args = interpreter.GridExecutor._init_args_hst

    def record_ranges(self, args, kwargs):
        hosts = init_args(self, args, kwargs)
        tensors = [t for t in [*hosts[0], *hosts[1].values()] if isinstance(t, torch.Tensor) and t.numel()]
        spans = [1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) for t in tensors]
        memory.ranges = tuple(
            (t.data_ptr(), t.data_ptr() + span * t.element_size()) for t, span in zip(tensors, spans, strict=True)
        )
        return hosts

    interpreter.GridExecutor._init_args_hst = record_ranges


def check_operations() -> None:
    ops.kernels_support = lambda x: True
    for name, (operation, reference, *shapes) in CASES.items():
        inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
        actual = with_gradients(operation, inputs)
        ops.kernels_support = original
        expected = with_gradients(reference, [x.double() for x in inputs])
        ops.kernels_support = lambda x: True
        assert all(relative_error(a.double(), b) < 1e-5 for a, b in zip(actual, expected, strict=True)), name


def check_network() -> None:
    join, pool = Mixed._can_join, network.can_pool
    for training in (False, True):
        results = []
        # PyTorch's own operations, the kernels, and the kernels without products or pools of several modules.
        never = lambda *_: False
        for kernels_support, can_join, can_pool in (
            (original, join, pool),
            (lambda x: True, join, pool),
            (lambda x: True, never, never),
        ):
            ops.kernels_support, Mixed._can_join, network.can_pool = kernels_support, can_join, can_pool
            model = randomize(s3dg(3, width=0.25, dropout=0.0)).train(training)
            clips = smooth_clips(2, 3, 8, 32, 32, dtype=torch.float32).requires_grad_()
            logits = model(clips)
            (logits * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
            grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
            results.append({"logits": logits.detach(), "clips": clips.grad} | grads | dict(model.named_buffers()))
        # In training the few values of a norm amplify rounding errors: only the ways of the kernels are compared.
        for reference, limit in ((results[0], 1e-3), (results[2], 1e-3))[training:]:
            for name, expected in reference.items():
                error = relative_error(results[1][name].double(), expected.double())
                assert error < (limit if name != "logits" or training else 1e-5), (name, error)


if __name__ == "__main__":
    check_memory()
    {"operations": check_operations, "network": check_network}[sys.argv[1]]()
