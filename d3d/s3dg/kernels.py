"""Triton kernels of S3D-G's batch norm and ReLU; each reads and writes an activation once.

Activations (B, T, H, W, C) are treated as B·T·H·W rows of C channels. A block is BLOCK_R rows by BLOCK_C channels.
Arithmetic is float32 for every dtype of the activation. The functions allocate their results.
"""

from collections.abc import Callable, Sequence
from functools import wraps

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_R, BLOCK_C = 64, 32
# A reduction over rows is split over at most this many blocks; their partial sums are added in a fixed order.
MAX_SPLITS = 512
# At most this many tensors are concatenated along C.
MAX_PARTS = 4


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def custom_op(fake: Callable, *, mutates: Sequence[str] = ()) -> Callable:
    """Decorates a function to be a single operator under torch.compile; eager calls run the function directly.

    Args:
        fake: Function of the same arguments that returns empty outputs of the right shapes and dtypes.
        mutates: Names of the arguments that the function changes in place.
    """

    def decorate(function: Callable) -> Callable:
        op = torch.library.custom_op(f"d3d::{function.__name__}", function, mutates_args=mutates)
        op.register_fake(fake)

        @wraps(function)
        def call(*args):
            return op(*args) if torch.compiler.is_compiling() else function(*args)

        return call

    return decorate


class Parts:
    """Tensors along C of a concatenation (..., ΣC): their channels, and the blocks of channels of a launch.

    Args:
        channels: Channels of each of at most four parts.
        block: Channels per block; no block covers two parts.
    """

    def __init__(self, channels: Sequence[int], block: int = BLOCK_C) -> None:
        self.sizes = list(channels)
        self.total = sum(self.sizes)
        self.blocks = sum(ceil_div(c, block) for c in self.sizes)
        self.channels = self.sizes + [0] * (MAX_PARTS - len(self.sizes))

    def fill(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Repeats the first tensor in the place of parts that do not exist."""
        return [*tensors, *[tensors[0]] * (MAX_PARTS - len(tensors))]


def _fake_stats(x, *_):
    return tuple(x.new_empty(x.shape[-1], dtype=torch.float32) for _ in range(2))


@custom_op(_fake_stats, mutates=("running_means", "running_vars", "num_batches"))
def batch_stats(
    x: Tensor,
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    num_batches: Sequence[Tensor],
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """Computes the batch's mean and variance per channel and updates the running ones in place, as BatchNorm does.

    Args:
        x: (..., ΣC), the channels of one or several batch norms.
        running_means: (C,) of each batch norm.
        running_vars: (C,) of each; updated with the unbiased variance.
        num_batches: int64 scalar of each; incremented.
        momentum: Weight of the batch in the running statistics.

    Returns:
        Mean (ΣC,) and biased variance (ΣC,), float32.
    """
    parts, channels = Parts([len(mean) for mean in running_means], block=16), x.shape[-1]
    rows = x.numel() // channels
    splits, rows_per_split = split_rows(rows)
    partial = x.new_empty(splits, 2, channels, dtype=torch.float32)
    mean, var = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(x):
        _moments[splits, ceil_div(channels, BLOCK_C)](
            x, partial, rows, channels, rows_per_split, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C
        )
        _finish_moments[parts.blocks,](
            x, partial, mean, var, *parts.fill(running_means), *parts.fill(running_vars), *parts.fill(num_batches),
            splits, rows, channels, *parts.channels, momentum, BLOCK_R=256, BLOCK_C=16,
        )  # fmt: skip
    return mean, var


@custom_op(lambda x, biases, *_: [x.new_empty(*x.shape[:-1], len(bias)) for bias in biases])
def norm_relu(x: Tensor, biases: Sequence[Tensor], mean: Tensor | None, var: Tensor | None, eps: float) -> list[Tensor]:
    """Computes relu((x - mean) / sqrt(var + eps) + bias); without mean and var, relu(x + bias).

    Args:
        x: (..., ΣC), the channels of one or several batch norms.
        biases: (C,) of each.
        mean, var: (ΣC,).
        eps: Added to var.

    Returns:
        (..., C) of each batch norm.
    """
    parts = Parts([len(bias) for bias in biases])
    rows = x.numel() // parts.total
    ys = [x.new_empty(*x.shape[:-1], size) for size in parts.sizes]
    with torch.cuda.device_of(x):
        _norm_relu[ceil_div(rows, BLOCK_R), parts.blocks](
            x, *parts.fill(ys), *parts.fill(biases), mean, var, rows, parts.total, *parts.channels, eps,
            BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C,
        )  # fmt: skip
    return ys


@custom_op(lambda dys, x, biases, *_: [torch.empty_like(t) for t in (x, *biases)])
def norm_relu_backward(
    dys: Sequence[Tensor],
    x: Tensor,
    biases: Sequence[Tensor],
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    training: bool,
) -> list[Tensor]:
    """Computes the gradients of `norm_relu` with respect to x and each bias.

    If `training`, mean and var are those of x itself, so that gradients flow through them.
    """
    parts = Parts([len(bias) for bias in biases])
    rows = x.numel() // parts.total
    splits, rows_per_split = split_rows(rows)
    partial = x.new_empty(splits, 2, parts.total, dtype=torch.float32)
    dx = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _relu_sums[splits, parts.blocks](
            *parts.fill(dys), x, partial, *parts.fill(biases), mean, var, rows, parts.total, *parts.channels,
            rows_per_split, eps, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C,
        )  # fmt: skip
        sums, dbias = _finish_sums(partial, biases[0])
        _norm_relu_backward[ceil_div(rows, BLOCK_R), parts.blocks](
            *parts.fill(dys), x, dx, *parts.fill(biases), mean, var, sums, rows, parts.total, *parts.channels, eps,
            TRAINING=training, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C,
        )  # fmt: skip
    return [dx, *dbias.split(parts.sizes)]


@custom_op(lambda dy, y, bias: (torch.empty_like(y), torch.empty_like(bias)))
def relu_backward(dy: Tensor, y: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the gradients of y = relu(x + bias) with respect to x and bias, from y (..., C) alone."""
    channels = y.shape[-1]
    rows = y.numel() // channels
    splits, rows_per_split = split_rows(rows)
    partial = y.new_empty(splits, 1, channels, dtype=torch.float32)
    dx = torch.empty_like(y)
    with torch.cuda.device_of(y):
        _relu_backward[splits, ceil_div(channels, BLOCK_C)](
            dy, y, dx, partial, rows, channels, rows_per_split, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C
        )
        _, dbias = _finish_sums(partial, bias)
    return dx, dbias


def _finish_sums(partial: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Adds partial sums (splits, S, C) over the splits; returns them (S, C), and the first of S in the bias's dtype."""
    splits, _, channels = partial.shape
    sums, dbias = partial.new_empty(partial.shape[1:]), bias.new_empty(channels)
    _add_splits[ceil_div(sums.numel(), 16),](
        partial, sums, dbias, splits, sums.numel(), channels, BLOCK_R=256, BLOCK_C=16
    )
    return sums, dbias


def split_rows(rows: int, max_splits: int = MAX_SPLITS) -> tuple[int, int]:
    """Computes the number of splits and the rows of each, a multiple of BLOCK_R."""
    rows_per_split = ceil_div(ceil_div(rows, max_splits), BLOCK_R) * BLOCK_R
    return ceil_div(rows, rows_per_split), rows_per_split


@triton.jit
def _moments(x, partial, rows, channels, rows_per_split, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums x - x[0] and its square over each split's rows: partial (splits, 2, C)."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    # Subtracting the channel's first value avoids cancellation where the mean is far from zero.
    origin = tl.load(x + c, mask=c_mask, other=0.0).to(tl.float32)
    row = tl.program_id(0).to(tl.int64) * rows_per_split + tl.arange(0, BLOCK_R)
    end = tl.minimum((tl.program_id(0).to(tl.int64) + 1) * rows_per_split, rows)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    i = 0
    while i < rows_per_split:
        mask = (row + i < end)[:, None] & c_mask[None, :]
        v = tl.load(x + (row + i)[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        v = tl.where(mask, v - origin[None, :], 0.0)
        total += v
        square += v * v
        i += BLOCK_R
    pointers = partial + tl.program_id(0) * 2 * channels + c
    tl.store(pointers, tl.sum(total, 0), mask=c_mask)
    tl.store(pointers + channels, tl.sum(square, 0), mask=c_mask)


@triton.jit
def find_part(block, x0, x1, x2, x3, c0, c1, c2, c3, BLOCK_C: tl.constexpr):
    """Finds a block's part: its tensor, size and first channel in the concatenation, and the block's channels in it."""
    x, channels, first = x0, c0, 0
    if block >= tl.cdiv(c0, BLOCK_C):
        block -= tl.cdiv(c0, BLOCK_C)
        x, channels, first = x1, c1, c0
        if block >= tl.cdiv(c1, BLOCK_C):
            block -= tl.cdiv(c1, BLOCK_C)
            x, channels, first = x2, c2, c0 + c1
            if block >= tl.cdiv(c2, BLOCK_C):
                block -= tl.cdiv(c2, BLOCK_C)
                x, channels, first = x3, c3, c0 + c1 + c2
    return x, channels, first, block * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit(do_not_specialize=["splits", "rows"])
def _finish_moments(
    x, partial, means, variances, running_mean0, running_mean1, running_mean2, running_mean3,
    running_var0, running_var1, running_var2, running_var3, num_batches0, num_batches1, num_batches2, num_batches3,
    splits, rows, total_channels, c0, c1, c2, c3, momentum, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Computes mean and biased variance (ΣC,) from the partial sums of `_moments`; updates the running ones."""
    part = tl.program_id(0)
    running_mean, channels, first, in_part = find_part(
        part, running_mean0, running_mean1, running_mean2, running_mean3, c0, c1, c2, c3, BLOCK_C
    )
    running_var, _, _, _ = find_part(
        part, running_var0, running_var1, running_var2, running_var3, c0, c1, c2, c3, BLOCK_C
    )
    num_batches, _, _, _ = find_part(
        part, num_batches0, num_batches1, num_batches2, num_batches3, c0, c1, c2, c3, BLOCK_C
    )
    c, c_mask = first + in_part, in_part < channels
    row = tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    i = 0
    while i < splits:
        mask = (row + i < splits)[:, None] & c_mask[None, :]
        pointers = partial + (row + i)[:, None] * 2 * total_channels + c[None, :]
        total += tl.load(pointers, mask=mask, other=0.0)
        square += tl.load(pointers + total_channels, mask=mask, other=0.0)
        i += BLOCK_R
    mean_offset = tl.sum(total, 0) / rows
    var = tl.maximum(tl.sum(square, 0) / rows - mean_offset * mean_offset, 0.0)
    mean = tl.load(x + c, mask=c_mask, other=0.0).to(tl.float32) + mean_offset
    tl.store(means + c, mean, mask=c_mask)
    tl.store(variances + c, var, mask=c_mask)
    unbiased = var * (rows / tl.maximum(rows - 1, 1))
    old = tl.load(running_mean + in_part, mask=c_mask).to(tl.float32)
    tl.store(running_mean + in_part, old + momentum * (mean - old), mask=c_mask)
    old = tl.load(running_var + in_part, mask=c_mask).to(tl.float32)
    tl.store(running_var + in_part, old + momentum * (unbiased - old), mask=c_mask)
    if tl.min(in_part, 0) == 0:
        tl.store(num_batches, tl.load(num_batches) + 1)


@triton.jit
def _load_channels(bias, means, variances, in_part, c, c_mask, eps):
    """Loads bias, mean and 1 / sqrt(var + eps) of a block's channels; without statistics, mean 0 and factor 1."""
    b = tl.load(bias + in_part, mask=c_mask, other=0.0).to(tl.float32)
    mean = tl.zeros_like(b)
    rstd = mean + 1.0
    if means is not None:
        mean = tl.load(means + c, mask=c_mask, other=0.0).to(tl.float32)
        rstd = 1.0 / tl.sqrt(tl.load(variances + c, mask=c_mask, other=1.0).to(tl.float32) + eps)
    return b[None, :], mean[None, :], rstd[None, :]


@triton.jit(do_not_specialize=["rows"])
def _norm_relu(
    x, y0, y1, y2, y3, bias0, bias1, bias2, bias3, means, variances, rows, total_channels, c0, c1, c2, c3, eps,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y = relu((x - mean) / sqrt(var + eps) + bias)."""
    y, channels, first, in_part = find_part(tl.program_id(1), y0, y1, y2, y3, c0, c1, c2, c3, BLOCK_C)
    bias, _, _, _ = find_part(tl.program_id(1), bias0, bias1, bias2, bias3, c0, c1, c2, c3, BLOCK_C)
    c, c_mask = first + in_part, in_part < channels
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    b, mean, rstd = _load_channels(bias, means, variances, in_part, c, c_mask, eps)
    mask = (row < rows)[:, None] & c_mask[None, :]
    v = tl.load(x + row[:, None] * total_channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
    v = tl.maximum((v - mean) * rstd + b, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y + row[:, None] * channels + in_part[None, :], v, mask=mask)


@triton.jit
def _relu_sums(
    dy0, dy1, dy2, dy3, x, partial, bias0, bias1, bias2, bias3, means, variances, rows, total_channels,
    c0, c1, c2, c3, rows_per_split, eps, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums d = dy where the ReLU is active, and d · normalized x, over each split's rows: partial (splits, 2, ΣC)."""
    dy, channels, first, in_part = find_part(tl.program_id(1), dy0, dy1, dy2, dy3, c0, c1, c2, c3, BLOCK_C)
    bias, _, _, _ = find_part(tl.program_id(1), bias0, bias1, bias2, bias3, c0, c1, c2, c3, BLOCK_C)
    c, c_mask = first + in_part, in_part < channels
    b, mean, rstd = _load_channels(bias, means, variances, in_part, c, c_mask, eps)
    row = tl.program_id(0).to(tl.int64) * rows_per_split + tl.arange(0, BLOCK_R)
    end = tl.minimum((tl.program_id(0).to(tl.int64) + 1) * rows_per_split, rows)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    i = 0
    while i < rows_per_split:
        mask = (row + i < end)[:, None] & c_mask[None, :]
        v = tl.load(x + (row + i)[:, None] * total_channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        normalized = (v - mean) * rstd
        d = tl.load(dy + (row + i)[:, None] * channels + in_part[None, :], mask=mask, other=0.0).to(tl.float32)
        d = tl.where(mask & (normalized + b > 0), d, 0.0)
        total += d
        product += d * normalized
        i += BLOCK_R
    pointers = partial + tl.program_id(0) * 2 * total_channels + c
    tl.store(pointers, tl.sum(total, 0), mask=c_mask)
    tl.store(pointers + total_channels, tl.sum(product, 0), mask=c_mask)


@triton.jit(do_not_specialize=["rows"])
def _norm_relu_backward(
    dy0, dy1, dy2, dy3, x, dx, bias0, bias1, bias2, bias3, means, variances, sums, rows, total_channels,
    c0, c1, c2, c3, eps, TRAINING: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Writes dx; sums (2, ΣC) are those of `_relu_sums` over all rows."""
    dy, channels, first, in_part = find_part(tl.program_id(1), dy0, dy1, dy2, dy3, c0, c1, c2, c3, BLOCK_C)
    bias, _, _, _ = find_part(tl.program_id(1), bias0, bias1, bias2, bias3, c0, c1, c2, c3, BLOCK_C)
    c, c_mask = first + in_part, in_part < channels
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    b, mean, rstd = _load_channels(bias, means, variances, in_part, c, c_mask, eps)
    mask = (row < rows)[:, None] & c_mask[None, :]
    offsets = row[:, None] * total_channels + c[None, :]
    normalized = (tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
    d = tl.load(dy + row[:, None] * channels + in_part[None, :], mask=mask, other=0.0).to(tl.float32)
    d = tl.where(normalized + b > 0, d, 0.0)
    if TRAINING:
        d -= (tl.load(sums + c, mask=c_mask, other=0.0) / rows)[None, :]
        d -= normalized * (tl.load(sums + total_channels + c, mask=c_mask, other=0.0) / rows)[None, :]
    tl.store(dx + offsets, d * rstd, mask=mask)


@triton.jit
def _relu_backward(
    dy, y, dx, partial, rows, channels, rows_per_split, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Writes dx = dy where the ReLU is active, and its sums over each split's rows: partial (splits, C)."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    row = tl.program_id(0).to(tl.int64) * rows_per_split + tl.arange(0, BLOCK_R)
    end = tl.minimum((tl.program_id(0).to(tl.int64) + 1) * rows_per_split, rows)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    i = 0
    while i < rows_per_split:
        mask = (row + i < end)[:, None] & c_mask[None, :]
        offsets = (row + i)[:, None] * channels + c[None, :]
        active = tl.load(y + offsets, mask=mask, other=0.0).to(tl.float32) > 0
        d = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
        d = tl.where(active, d, 0.0)
        tl.store(dx + offsets, d, mask=mask)
        total += d
        i += BLOCK_R
    tl.store(partial + tl.program_id(0) * channels + c, tl.sum(total, 0), mask=c_mask)


@triton.jit(do_not_specialize=["splits"])
def _add_splits(
    partial, sums, dbias, splits, columns, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Adds partial (splits, columns) over the splits; dbias gets the first `channels` of the sums."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    i = 0
    while i < splits:
        mask = (row + i < splits)[:, None] & (c < columns)[None, :]
        total += tl.load(partial + (row + i)[:, None] * columns + c[None, :], mask=mask, other=0.0)
        i += BLOCK_R
    result = tl.sum(total, 0)
    tl.store(sums + c, result, mask=c < columns)
    tl.store(dbias + c, result, mask=c < channels)
