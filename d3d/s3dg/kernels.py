"""What S3D-G does between its convolutions, as Triton kernels: each reads and writes an activation once.

Activations are rows of channels: a tile is ROWS positions by WIDTH channels, whatever the number of channels.
Arithmetic is float32, whatever the activation's type. The functions allocate what they return.
"""

from collections.abc import Callable, Sequence
from functools import wraps

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, WIDTH = 64, 64
# A reduction over rows is split over at most so many blocks, whose partial results are summed in a fixed order.
SPLITS = 512


def blocks_of(size: int, block: int) -> int:
    return -(-size // block)


def operator(fake: Callable, *, mutates: Sequence[str] = ()) -> Callable:
    """Makes a function one operator to torch.compile, with outputs like `fake`'s; called eagerly it stays itself."""

    def wrap(function: Callable) -> Callable:
        operator = torch.library.custom_op(f"d3d::{function.__name__}", function, mutates_args=mutates)
        operator.register_fake(fake)

        @wraps(function)
        def run(*args):
            return operator(*args) if torch.compiler.is_compiling() else function(*args)

        return run

    return wrap


@operator(
    lambda x, *_: tuple(x.new_empty(x.shape[-1], dtype=torch.float32) for _ in range(2)),
    mutates=("running_mean", "running_var"),
)
def batch_stats(x: Tensor, running_mean: Tensor, running_var: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,), float32, of x (..., C); the running ones move towards them by `factor`."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    splits, per = _split(rows)
    partial = x.new_empty(splits, 2, channels, dtype=torch.float32)
    mean, var = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(x):
        _moments[splits, blocks_of(channels, WIDTH)](x, partial, rows, channels, per, ROWS=ROWS, WIDTH=WIDTH)
        _finish_moments[blocks_of(channels, 16),](
            x, partial, mean, var, running_mean, running_var, splits, rows, channels, factor, ROWS=256, WIDTH=16
        )
    return mean, var


@operator(lambda x, *_: torch.empty_like(x))
def norm_relu(x: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, eps: float) -> Tensor:
    """relu((x - mean) / sqrt(var + eps) + bias) of x (..., C); without mean and var relu(x + bias)."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _norm_relu[blocks_of(rows, ROWS), blocks_of(channels, WIDTH)](
            x, y, bias, mean, var, rows, channels, eps, ROWS=ROWS, WIDTH=WIDTH
        )
    return y


@operator(lambda dy, x, bias, *_: (torch.empty_like(x), torch.empty_like(bias)))
def norm_relu_backward(
    dy: Tensor, x: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, eps: float, batch: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of `norm_relu` for x and bias; `batch` says that the statistics are those of x itself."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    splits, per = _split(rows)
    partial = x.new_empty(splits, 2, channels, dtype=torch.float32)
    dx = torch.empty_like(x)
    blocks = blocks_of(channels, WIDTH)
    with torch.cuda.device_of(x):
        _relu_sums[splits, blocks](dy, x, partial, bias, mean, var, rows, channels, per, eps, ROWS=ROWS, WIDTH=WIDTH)
        sums = partial.sum(0)
        _norm_relu_backward[blocks_of(rows, ROWS), blocks](
            dy, x, dx, bias, mean, var, sums, rows, channels, eps, BATCH=batch, ROWS=ROWS, WIDTH=WIDTH
        )
    return dx, sums[0].to(bias.dtype)


def _fake_gate(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    channels = sum(x.shape[-1] for x in xs)
    known = xs[0].new_empty(xs[0].shape[0], channels, dtype=torch.float32)
    return xs[0].new_empty(*xs[0].shape[:-1], channels), known, torch.empty_like(known)


@operator(_fake_gate)
def gate(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Each x (B, ..., C) times sigmoid(W mean of x), joined along C; also means and gates (B, sum of C), float32."""
    channels = [x.shape[-1] for x in xs]
    out = xs[0].new_empty(*xs[0].shape[:-1], sum(channels))
    means = _clip_sums_of(xs).div_(out[0, ..., 0].numel())
    with torch.autocast(out.device.type, enabled=False):
        logits = [m @ w.float().T for m, w in zip(means.split(channels, -1), weights, strict=True)]
    gates = torch.cat(logits, -1).sigmoid_()
    for x, g, part in zip(xs, gates.split(channels, -1), out.split(channels, -1), strict=True):
        _scale_rows(x, x.shape[-1], g, part, sum(channels))
    return out, means, gates


@operator(lambda dout, xs, weights, *_: [torch.empty_like(x) for x in (*xs, *weights)])
def gate_backward(
    dout: Tensor, xs: Sequence[Tensor], weights: Sequence[Tensor], means: Tensor, gates: Tensor
) -> list[Tensor]:
    """Gradients of `gate` for every x, then for every W."""
    channels = [x.shape[-1] for x in xs]
    parts = dout.split(channels, -1)
    dlogits = (_clip_sums_of(xs, parts) * gates * (1 - gates)).split(channels, -1)
    dxs = [torch.empty_like(x) for x in xs]
    positions = dout[0, ..., 0].numel()
    with torch.autocast(dout.device.type, enabled=False):
        adds = [(dlogit / positions) @ w.float() for dlogit, w in zip(dlogits, weights, strict=True)]
        pairs = zip(dlogits, means.split(channels, -1), weights, strict=True)
        dweights = [(dlogit.T @ m).to(w.dtype) for dlogit, m, w in pairs]
    for d, g, dx, add in zip(parts, gates.split(channels, -1), dxs, adds, strict=True):
        _scale_rows(d, sum(channels), g, dx, dx.shape[-1], add)
    return dxs + dweights


def _clip_sums_of(xs: Sequence[Tensor], by: Sequence[Tensor] | None = None) -> Tensor:
    """Sums (B, sum of C), float32, over the positions of every x, or of x * by; positions of `by` may lie apart."""
    channels = [x.shape[-1] for x in xs]
    batch, positions = xs[0].shape[0], xs[0][0, ..., 0].numel()
    splits, per = _split(positions, SPLITS // 4)
    partial = xs[0].new_empty(batch, splits, sum(channels), dtype=torch.float32)
    with torch.cuda.device_of(partial):
        for x, y, out in zip(xs, by or xs, partial.split(channels, -1), strict=True):
            _clip_sums[batch * splits, blocks_of(x.shape[-1], WIDTH)](
                x, y, out, positions, x.shape[-1], sum(channels), sum(channels), per, splits,
                PRODUCT=by is not None, ROWS=ROWS, WIDTH=WIDTH,
            )  # fmt: skip
    return partial.sum(1)


def _scale_rows(x: Tensor, x_row: int, gate: Tensor, out: Tensor, out_row: int, add: Tensor | None = None) -> None:
    """out = x * gate + add for x, out (B, T, H, W, C), whose positions lie a row apart, and gate, add (B, C).

    Rows are given: the strides of an axis of size 1 say nothing.
    """
    batch, channels = x.shape[0], x.shape[-1]
    positions = x[0, ..., 0].numel()
    blocks = blocks_of(positions, ROWS)
    with torch.cuda.device_of(x):
        _scale[batch * blocks, blocks_of(channels, WIDTH)](
            x, gate, add, out, positions, channels, blocks, x_row, gate.stride(0), out_row,
            ROWS=ROWS, WIDTH=WIDTH,
        )  # fmt: skip


def _split(rows: int, most: int = SPLITS) -> tuple[int, int]:
    """How many blocks share the rows, and how many rows each has."""
    per = blocks_of(blocks_of(rows, most), ROWS) * ROWS
    return blocks_of(rows, per), per


@triton.jit
def _moments(x, partial, rows, channels, per, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    # Sums of differences from one value of each channel do not cancel where the mean is far from zero.
    origin = tl.load(x + c, mask=inside, other=0.0).to(tl.float32)
    row = tl.program_id(0).to(tl.int64) * per + tl.arange(0, ROWS)
    end = tl.minimum((tl.program_id(0).to(tl.int64) + 1) * per, rows)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    square = tl.zeros([ROWS, WIDTH], tl.float32)
    i = 0
    while i < per:
        mask = (row + i < end)[:, None] & inside[None, :]
        v = tl.load(x + (row + i)[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        v = tl.where(mask, v - origin[None, :], 0.0)
        total += v
        square += v * v
        i += ROWS
    at = partial + tl.program_id(0) * 2 * channels + c
    tl.store(at, tl.sum(total, 0), mask=inside)
    tl.store(at + channels, tl.sum(square, 0), mask=inside)


@triton.jit(do_not_specialize=["splits", "rows"])
def _finish_moments(
    x, partial, means, variances, running_mean, running_var, splits, rows, channels, factor,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    row = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    square = tl.zeros([ROWS, WIDTH], tl.float32)
    i = 0
    while i < splits:
        mask = (row + i < splits)[:, None] & inside[None, :]
        at = partial + (row + i)[:, None] * 2 * channels + c[None, :]
        total += tl.load(at, mask=mask, other=0.0)
        square += tl.load(at + channels, mask=mask, other=0.0)
        i += ROWS
    shift = tl.sum(total, 0) / rows
    var = tl.maximum(tl.sum(square, 0) / rows - shift * shift, 0.0)
    mean = tl.load(x + c, mask=inside, other=0.0).to(tl.float32) + shift
    tl.store(means + c, mean, mask=inside)
    tl.store(variances + c, var, mask=inside)
    unbiased = var * (rows / tl.maximum(rows - 1, 1))
    old = tl.load(running_mean + c, mask=inside).to(tl.float32)
    tl.store(running_mean + c, old + factor * (mean - old), mask=inside)
    old = tl.load(running_var + c, mask=inside).to(tl.float32)
    tl.store(running_var + c, old + factor * (unbiased - old), mask=inside)


@triton.jit
def _channel(bias, means, variances, c, inside, eps):
    """Bias, mean and 1 / sqrt(var + eps) of a tile's channels; mean 0 and variance 1 where there are none."""
    shift = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    mean = tl.zeros_like(shift)
    rstd = mean + 1.0
    if means is not None:
        mean = tl.load(means + c, mask=inside, other=0.0).to(tl.float32)
        rstd = 1.0 / tl.sqrt(tl.load(variances + c, mask=inside, other=1.0).to(tl.float32) + eps)
    return shift[None, :], mean[None, :], rstd[None, :]


@triton.jit(do_not_specialize=["rows"])
def _norm_relu(
    x, y, bias, means, variances, rows, channels, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    shift, mean, rstd = _channel(bias, means, variances, c, inside, eps)
    mask = (row < rows)[:, None] & inside[None, :]
    at = row[:, None] * channels + c[None, :]
    v = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - mean) * rstd + shift
    tl.store(y + at, tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL), mask=mask)


@triton.jit
def _relu_sums(
    dy, x, partial, bias, means, variances, rows, channels, per, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    shift, mean, rstd = _channel(bias, means, variances, c, inside, eps)
    row = tl.program_id(0).to(tl.int64) * per + tl.arange(0, ROWS)
    end = tl.minimum((tl.program_id(0).to(tl.int64) + 1) * per, rows)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    product = tl.zeros([ROWS, WIDTH], tl.float32)
    i = 0
    while i < per:
        mask = (row + i < end)[:, None] & inside[None, :]
        at = (row + i)[:, None] * channels + c[None, :]
        whitened = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
        d = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        d = tl.where(mask & (whitened + shift > 0), d, 0.0)
        total += d
        product += d * whitened
        i += ROWS
    at = partial + tl.program_id(0) * 2 * channels + c
    tl.store(at, tl.sum(total, 0), mask=inside)
    tl.store(at + channels, tl.sum(product, 0), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _norm_relu_backward(
    dy, x, dx, bias, means, variances, sums, rows, channels, eps,
    BATCH: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    shift, mean, rstd = _channel(bias, means, variances, c, inside, eps)
    mask = (row < rows)[:, None] & inside[None, :]
    at = row[:, None] * channels + c[None, :]
    whitened = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
    d = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    d = tl.where(whitened + shift > 0, d, 0.0)
    if BATCH:
        d -= (tl.load(sums + c, mask=inside, other=0.0) / rows)[None, :]
        d -= whitened * (tl.load(sums + channels + c, mask=inside, other=0.0) / rows)[None, :]
    tl.store(dx + at, d * rstd, mask=mask)


@triton.jit(do_not_specialize=["positions", "splits"])
def _clip_sums(
    x, by, partial, positions, channels, by_row, partial_row, per, splits,
    PRODUCT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    clip = (tl.program_id(0) // splits).to(tl.int64)
    start = (tl.program_id(0) % splits) * per
    row = start + tl.arange(0, ROWS)
    end = tl.minimum(start + per, positions)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    i = 0
    while i < per:
        mask = (row + i < end)[:, None] & inside[None, :]
        at = clip * positions + row + i
        v = tl.load(x + at[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        if PRODUCT:
            v *= tl.load(by + at[:, None] * by_row + c[None, :], mask=mask, other=0.0).to(tl.float32)
        total += v
        i += ROWS
    tl.store(partial + tl.program_id(0).to(tl.int64) * partial_row + c, tl.sum(total, 0), mask=inside)


@triton.jit(do_not_specialize=["positions", "blocks"])
def _scale(
    x, gate, add, out, positions, channels, blocks, x_row, gate_row, out_row,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    mask = (row < positions)[:, None] & inside[None, :]
    at = clip * positions + row
    v = tl.load(x + at[:, None] * x_row + c[None, :], mask=mask, other=0.0).to(tl.float32)
    v *= tl.load(gate + clip * gate_row + c, mask=inside, other=0.0)[None, :]
    if add is not None:
        v += tl.load(add + clip * channels + c, mask=inside, other=0.0)[None, :]
    tl.store(out + at[:, None] * out_row + c[None, :], v, mask=mask)
