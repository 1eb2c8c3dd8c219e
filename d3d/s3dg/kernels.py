"""Triton kernels of S3D-G's batch norm, ReLU and gating; each reads and writes an activation once.

Activations (B, T, H, W, C) are treated as B·T·H·W rows of C channels; the T·H·W rows of one clip are its positions. A
block is BLOCK_R rows by BLOCK_C channels. Arithmetic is float32 for every dtype of the activation. The functions
allocate their results.
"""

from collections.abc import Callable, Sequence
from functools import wraps

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_R, BLOCK_C = 64, 64
# A reduction over rows is split over at most this many blocks; their partial sums are added in a fixed order.
MAX_SPLITS = 512


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


@custom_op(
    lambda x, *_: tuple(x.new_empty(x.shape[-1], dtype=torch.float32) for _ in range(2)),
    mutates=("running_mean", "running_var"),
)
def batch_stats(x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """Computes the batch's mean and variance per channel and updates the running ones in place, as BatchNorm does.

    Args:
        x: (..., C).
        running_mean: (C,).
        running_var: (C,); updated with the unbiased variance.
        momentum: Weight of the batch in the running statistics.

    Returns:
        Mean (C,) and biased variance (C,), float32.
    """
    channels = x.shape[-1]
    rows = x.numel() // channels
    splits, rows_per_split = _split_rows(rows)
    partial = x.new_empty(splits, 2, channels, dtype=torch.float32)
    mean, var = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(x):
        _moments[splits, ceil_div(channels, BLOCK_C)](
            x, partial, rows, channels, rows_per_split, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C
        )
        _finish_moments[ceil_div(channels, 16),](
            x, partial, mean, var, running_mean, running_var, splits, rows, channels, momentum, BLOCK_R=256, BLOCK_C=16
        )
    return mean, var


@custom_op(lambda x, *_: torch.empty_like(x))
def norm_relu(x: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, eps: float) -> Tensor:
    """Computes relu((x - mean) / sqrt(var + eps) + bias) of x (..., C); without mean and var, relu(x + bias)."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _norm_relu[ceil_div(rows, BLOCK_R), ceil_div(channels, BLOCK_C)](
            x, y, bias, mean, var, rows, channels, eps, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C
        )
    return y


@custom_op(lambda dy, x, bias, *_: (torch.empty_like(x), torch.empty_like(bias)))
def norm_relu_backward(
    dy: Tensor, x: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, eps: float, training: bool
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of `norm_relu` with respect to x and bias.

    If `training`, mean and var are those of x itself, so that gradients flow through them.
    """
    channels = x.shape[-1]
    rows = x.numel() // channels
    splits, rows_per_split = _split_rows(rows)
    partial = x.new_empty(splits, 2, channels, dtype=torch.float32)
    dx = torch.empty_like(x)
    blocks = ceil_div(channels, BLOCK_C)
    with torch.cuda.device_of(x):
        _relu_sums[splits, blocks](
            dy, x, partial, bias, mean, var, rows, channels, rows_per_split, eps, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C
        )
        sums = partial.sum(0)
        _norm_relu_backward[ceil_div(rows, BLOCK_R), blocks](
            dy, x, dx, bias, mean, var, sums, rows, channels, eps,
            TRAINING=training, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C,
        )  # fmt: skip
    return dx, sums[0].to(bias.dtype)


def _fake_gate(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    channels = sum(x.shape[-1] for x in xs)
    means = xs[0].new_empty(xs[0].shape[0], channels, dtype=torch.float32)
    return xs[0].new_empty(*xs[0].shape[:-1], channels), means, torch.empty_like(means)


@custom_op(_fake_gate)
def gate(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Computes x · sigmoid(W · mean of x over T, H, W) of each branch and concatenates them along C.

    Args:
        xs: Branches (B, T, H, W, C), each with its own C.
        weights: W (C, C) of each branch.

    Returns:
        Output (B, T, H, W, ΣC); means (B, ΣC) and gates (B, ΣC), float32, for the backward pass.
    """
    channels = [x.shape[-1] for x in xs]
    out = xs[0].new_empty(*xs[0].shape[:-1], sum(channels))
    means = _sum_positions(xs).div_(out[0, ..., 0].numel())
    with torch.autocast(out.device.type, enabled=False):
        logits = [mean @ w.float().T for mean, w in zip(means.split(channels, -1), weights, strict=True)]
    gates = torch.cat(logits, -1).sigmoid_()
    for x, g, y in zip(xs, gates.split(channels, -1), out.split(channels, -1), strict=True):
        _scale_rows(x, x.shape[-1], g, y, sum(channels))
    return out, means, gates


@custom_op(lambda dout, xs, weights, *_: [torch.empty_like(x) for x in (*xs, *weights)])
def gate_backward(
    dout: Tensor, xs: Sequence[Tensor], weights: Sequence[Tensor], means: Tensor, gates: Tensor
) -> list[Tensor]:
    """Computes the gradients of `gate` with respect to every x, then every W, from the means and gates it returned."""
    channels = [x.shape[-1] for x in xs]
    dys = dout.split(channels, -1)
    dlogits = (_sum_positions(xs, dys) * gates * (1 - gates)).split(channels, -1)
    dxs = [torch.empty_like(x) for x in xs]
    positions = dout[0, ..., 0].numel()
    with torch.autocast(dout.device.type, enabled=False):
        addends = [(dlogit / positions) @ w.float() for dlogit, w in zip(dlogits, weights, strict=True)]
        branches = zip(dlogits, means.split(channels, -1), weights, strict=True)
        dweights = [(dlogit.T @ mean).to(w.dtype) for dlogit, mean, w in branches]
    for dy, g, dx, addend in zip(dys, gates.split(channels, -1), dxs, addends, strict=True):
        _scale_rows(dy, sum(channels), g, dx, dx.shape[-1], addend)
    return dxs + dweights


def _sum_positions(xs: Sequence[Tensor], multipliers: Sequence[Tensor] | None = None) -> Tensor:
    """Sums each x, or x · multiplier, over T, H and W.

    Args:
        xs: Branches (B, T, H, W, C), each with its own C.
        multipliers: As xs; slices along C of one contiguous tensor (B, T, H, W, ΣC).

    Returns:
        (B, ΣC), float32.
    """
    channels = [x.shape[-1] for x in xs]
    batch, positions = xs[0].shape[0], xs[0][0, ..., 0].numel()
    splits, rows_per_split = _split_rows(positions, MAX_SPLITS // 4)
    partial = xs[0].new_empty(batch, splits, sum(channels), dtype=torch.float32)
    with torch.cuda.device_of(partial):
        for x, y, out in zip(xs, multipliers or xs, partial.split(channels, -1), strict=True):
            _clip_sums[batch * splits, ceil_div(x.shape[-1], BLOCK_C)](
                x, y, out, positions, x.shape[-1], sum(channels), sum(channels), rows_per_split, splits,
                PRODUCT=multipliers is not None, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C,
            )  # fmt: skip
    return partial.sum(1)


def _scale_rows(
    x: Tensor, x_stride: int, gate: Tensor, out: Tensor, out_stride: int, addend: Tensor | None = None
) -> None:
    """Writes out = x * gate + addend; x, out (B, T, H, W, C), gate, addend (B, C).

    x_stride and out_stride are the distances in elements between positions. Tensor.stride() does not give them: it is
    arbitrary for axes of size 1.
    """
    batch, channels = x.shape[0], x.shape[-1]
    positions = x[0, ..., 0].numel()
    blocks = ceil_div(positions, BLOCK_R)
    with torch.cuda.device_of(x):
        _scale[batch * blocks, ceil_div(channels, BLOCK_C)](
            x, gate, addend, out, positions, channels, blocks, x_stride, gate.stride(0), out_stride,
            BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C,
        )  # fmt: skip


def _split_rows(rows: int, max_splits: int = MAX_SPLITS) -> tuple[int, int]:
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


@triton.jit(do_not_specialize=["splits", "rows"])
def _finish_moments(
    x, partial, means, variances, running_mean, running_var, splits, rows, channels, momentum,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Computes mean and biased variance (C,) from the partial sums of `_moments`; updates the running ones."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    row = tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    i = 0
    while i < splits:
        mask = (row + i < splits)[:, None] & c_mask[None, :]
        pointers = partial + (row + i)[:, None] * 2 * channels + c[None, :]
        total += tl.load(pointers, mask=mask, other=0.0)
        square += tl.load(pointers + channels, mask=mask, other=0.0)
        i += BLOCK_R
    mean_offset = tl.sum(total, 0) / rows
    var = tl.maximum(tl.sum(square, 0) / rows - mean_offset * mean_offset, 0.0)
    mean = tl.load(x + c, mask=c_mask, other=0.0).to(tl.float32) + mean_offset
    tl.store(means + c, mean, mask=c_mask)
    tl.store(variances + c, var, mask=c_mask)
    unbiased = var * (rows / tl.maximum(rows - 1, 1))
    old = tl.load(running_mean + c, mask=c_mask).to(tl.float32)
    tl.store(running_mean + c, old + momentum * (mean - old), mask=c_mask)
    old = tl.load(running_var + c, mask=c_mask).to(tl.float32)
    tl.store(running_var + c, old + momentum * (unbiased - old), mask=c_mask)


@triton.jit
def _load_channels(bias, means, variances, c, c_mask, eps):
    """Loads bias, mean and 1 / sqrt(var + eps) of a block's channels; without statistics, mean 0 and factor 1."""
    b = tl.load(bias + c, mask=c_mask, other=0.0).to(tl.float32)
    mean = tl.zeros_like(b)
    rstd = mean + 1.0
    if means is not None:
        mean = tl.load(means + c, mask=c_mask, other=0.0).to(tl.float32)
        rstd = 1.0 / tl.sqrt(tl.load(variances + c, mask=c_mask, other=1.0).to(tl.float32) + eps)
    return b[None, :], mean[None, :], rstd[None, :]


@triton.jit(do_not_specialize=["rows"])
def _norm_relu(
    x, y, bias, means, variances, rows, channels, eps, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """y = relu((x - mean) / sqrt(var + eps) + bias)."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    b, mean, rstd = _load_channels(bias, means, variances, c, c_mask, eps)
    mask = (row < rows)[:, None] & c_mask[None, :]
    offsets = row[:, None] * channels + c[None, :]
    v = (tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) - mean) * rstd + b
    tl.store(y + offsets, tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL), mask=mask)


@triton.jit
def _relu_sums(
    dy, x, partial, bias, means, variances, rows, channels, rows_per_split, eps,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums d = dy where the ReLU is active, and d · normalized x, over each split's rows: partial (splits, 2, C)."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    b, mean, rstd = _load_channels(bias, means, variances, c, c_mask, eps)
    row = tl.program_id(0).to(tl.int64) * rows_per_split + tl.arange(0, BLOCK_R)
    end = tl.minimum((tl.program_id(0).to(tl.int64) + 1) * rows_per_split, rows)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    i = 0
    while i < rows_per_split:
        mask = (row + i < end)[:, None] & c_mask[None, :]
        offsets = (row + i)[:, None] * channels + c[None, :]
        normalized = (tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
        d = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
        d = tl.where(mask & (normalized + b > 0), d, 0.0)
        total += d
        product += d * normalized
        i += BLOCK_R
    pointers = partial + tl.program_id(0) * 2 * channels + c
    tl.store(pointers, tl.sum(total, 0), mask=c_mask)
    tl.store(pointers + channels, tl.sum(product, 0), mask=c_mask)


@triton.jit(do_not_specialize=["rows"])
def _norm_relu_backward(
    dy, x, dx, bias, means, variances, sums, rows, channels, eps,
    TRAINING: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Writes dx; sums (2, C) are those of `_relu_sums` over all rows."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    b, mean, rstd = _load_channels(bias, means, variances, c, c_mask, eps)
    mask = (row < rows)[:, None] & c_mask[None, :]
    offsets = row[:, None] * channels + c[None, :]
    normalized = (tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
    d = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
    d = tl.where(normalized + b > 0, d, 0.0)
    if TRAINING:
        d -= (tl.load(sums + c, mask=c_mask, other=0.0) / rows)[None, :]
        d -= normalized * (tl.load(sums + channels + c, mask=c_mask, other=0.0) / rows)[None, :]
    tl.store(dx + offsets, d * rstd, mask=mask)


@triton.jit(do_not_specialize=["positions", "splits"])
def _clip_sums(
    x, multiplier, partial, positions, channels, multiplier_stride, partial_stride, rows_per_split, splits,
    PRODUCT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums x, or x · multiplier, over each split's positions; partial: a slice along C of (B, splits, ΣC)."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    clip = (tl.program_id(0) // splits).to(tl.int64)
    start = (tl.program_id(0) % splits) * rows_per_split
    position = start + tl.arange(0, BLOCK_R)
    end = tl.minimum(start + rows_per_split, positions)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    i = 0
    while i < rows_per_split:
        mask = (position + i < end)[:, None] & c_mask[None, :]
        row = clip * positions + position + i
        v = tl.load(x + row[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        if PRODUCT:
            offsets = row[:, None] * multiplier_stride + c[None, :]
            v *= tl.load(multiplier + offsets, mask=mask, other=0.0).to(tl.float32)
        total += v
        i += BLOCK_R
    tl.store(partial + tl.program_id(0).to(tl.int64) * partial_stride + c, tl.sum(total, 0), mask=c_mask)


@triton.jit(do_not_specialize=["positions", "blocks"])
def _scale(
    x, gate, addend, out, positions, channels, blocks, x_stride, gate_stride, out_stride,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = x · gate + addend, with gate and addend per clip and channel."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    position = (tl.program_id(0) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = (position < positions)[:, None] & c_mask[None, :]
    row = clip * positions + position
    v = tl.load(x + row[:, None] * x_stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
    v *= tl.load(gate + clip * gate_stride + c, mask=c_mask, other=0.0)[None, :]
    if addend is not None:
        v += tl.load(addend + clip * channels + c, mask=c_mask, other=0.0)[None, :]
    tl.store(out + row[:, None] * out_stride + c[None, :], v, mask=mask)
