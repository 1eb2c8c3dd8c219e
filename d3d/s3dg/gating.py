"""Triton kernels of S3D-G's feature gating, also before a max pool, each one launch for all branches of a block.

Activations are (B, T, H, W, C); the T·H·W places of one clip are its positions. A block is BLOCK_R positions by BLOCK_C
channels of one branch. Arithmetic is float32 for every dtype. The functions allocate their results.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from d3d.s3dg.kernels import BLOCK_C, BLOCK_R, Parts, ceil_div, custom_op, find_part, split_rows

# The sums over a clip's positions are split over at most MAX_SPLITS blocks and added in a fixed order: fewer if that
# makes more than MAX_BLOCKS for all clips.
MAX_SPLITS, MAX_BLOCKS = 64, 1024
# Channels, or partial sums, that one step of a product with a gate's weights covers.
BLOCK_K = 64


def _fake_gate(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    channels = sum(x.shape[-1] for x in xs)
    means = xs[0].new_empty(xs[0].shape[0], channels, dtype=torch.float32)
    return xs[0].new_empty(*xs[0].shape[:-1], channels), means, torch.empty_like(means)


@custom_op(_fake_gate)
def gate(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Computes x · sigmoid(W · mean of x over T, H, W) of each branch and concatenates them along C.

    Args:
        xs: At most four branches (B, T, H, W, C), each with its own C.
        weights: W (C, C) of each branch.

    Returns:
        Output (B, T, H, W, ΣC); means (B, ΣC) and gates (B, ΣC), float32, for the backward pass.
    """
    means, gates = compute_gates(xs, weights)
    out = xs[0].new_empty(*xs[0].shape[:-1], means.shape[1])
    _Branches(xs).scale(xs, gates, means, out, backward=False)
    return out, means, gates


def compute_gates(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Computes the means over T, H and W and the gates of `gate`, both (B, ΣC), float32."""
    branches = _Branches(xs)
    means = xs[0].new_empty(branches.batch, branches.total, dtype=torch.float32)
    gates = torch.empty_like(means)
    partial = branches.sums(xs)
    with torch.cuda.device_of(means):
        _gates[branches.batch, branches.blocks](
            partial, *branches.fill(weights), means, gates, partial.shape[1], branches.positions, branches.total,
            *branches.channels, BLOCK_K=BLOCK_K, BLOCK_C=BLOCK_C,
        )  # fmt: skip
    return means, gates


@custom_op(lambda dout, xs, weights, *_: [torch.empty_like(x) for x in (*xs, *weights)])
def gate_backward(
    dout: Tensor, xs: Sequence[Tensor], weights: Sequence[Tensor], means: Tensor, gates: Tensor
) -> list[Tensor]:
    """Computes the gradients of `gate` with respect to every x, then every W, from the means and gates it returned."""
    branches = _Branches(xs)
    partial = branches.sums(xs, dout)
    addends, dweights = _gradients(partial, weights, means, gates, branches.positions, of_output=False)
    dxs = [torch.empty_like(x) for x in xs]
    branches.scale(dxs, gates, addends, dout, backward=True)
    return dxs + dweights


def pooled_gate_gradients(
    dout: Tensor, out: Tensor, weights: Sequence[Tensor], means: Tensor, gates: Tensor, positions: int
) -> tuple[Tensor, list[Tensor]]:
    """Computes what a max pool of gated activations gives back through its gates.

    Args:
        dout: Gradient of the pool's output.
        out: The output (B, T', H', W', ΣC), with gates.
        weights: W (C, C) of each branch.
        means, gates: (B, ΣC), of `compute_gates`.
        positions: T · H · W of the branches.

    Returns:
        What is added to the gradient of each branch at every position, (B, ΣC), and the gradient of each W.
    """
    return _gradients(_Branches([out]).sums([out], dout), weights, means, gates, positions, of_output=True)


def _gradients(
    partial: Tensor, weights: Sequence[Tensor], means: Tensor, gates: Tensor, positions: int, *, of_output: bool
) -> tuple[Tensor, list[Tensor]]:
    """Returns addends (B, ΣC) and the gradient of each W.

    Args:
        partial: (B, splits, ΣC), sums of the output's gradient times the branch or, if `of_output`, the output.
    """
    parts = Parts([len(w) for w in weights])
    dlogits, addends = torch.empty_like(gates), torch.empty_like(gates)
    dweights = [torch.empty_like(w) for w in weights]
    with torch.cuda.device_of(gates):
        _gate_gradients[len(gates), parts.blocks](
            partial, *parts.fill(weights), gates, dlogits, addends, partial.shape[1], positions, parts.total,
            *parts.channels, OF_OUTPUT=of_output, BLOCK_K=BLOCK_K, BLOCK_C=BLOCK_C,
        )  # fmt: skip
        _weight_gradients[parts.blocks, ceil_div(max(parts.sizes), BLOCK_C)](
            dlogits, means, *parts.fill(dweights), len(gates), parts.total, *parts.channels, BLOCK_C=BLOCK_C
        )
    return addends, dweights


class _Branches(Parts):
    """The branches (B, T, H, W, C) of a block, and the launches that need nothing but their sizes."""

    def __init__(self, xs: Sequence[Tensor]) -> None:
        super().__init__([x.shape[-1] for x in xs])
        self.batch, self.positions = xs[0].shape[0], xs[0][0, ..., 0].numel()

    def sums(self, xs: Sequence[Tensor], multiplier: Tensor | None = None) -> Tensor:
        """Sums each x, or x times its slice of `multiplier` (B, T, H, W, ΣC): partial sums (B, splits, ΣC)."""
        splits, rows_per_split = split_rows(self.positions, max(16, min(MAX_SPLITS, MAX_BLOCKS // self.batch)))
        partial = xs[0].new_empty(self.batch, splits, self.total, dtype=torch.float32)
        with torch.cuda.device_of(partial):
            _branch_sums[self.batch * splits, self.blocks](
                *self.fill(xs), multiplier, partial, self.positions, rows_per_split, splits, self.total,
                *self.channels, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C,
            )  # fmt: skip
        return partial

    def scale(self, xs: Sequence[Tensor], gates: Tensor, addends: Tensor, joined: Tensor, *, backward: bool) -> None:
        """Writes joined = x · gate, or with `backward` x = joined · gate + addend; joined (B, T, H, W, ΣC)."""
        blocks = ceil_div(self.positions, BLOCK_R)
        with torch.cuda.device_of(gates):
            _scale[self.batch * blocks, self.blocks](
                *self.fill(xs), gates, addends, joined, self.positions, blocks, self.total, *self.channels,
                BACKWARD=backward, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C,
            )  # fmt: skip


@triton.jit(do_not_specialize=["positions", "splits"])
def _branch_sums(
    x0, x1, x2, x3, multiplier, partial, positions, rows_per_split, splits, total_channels, c0, c1, c2, c3,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums x, or x · multiplier, over each split's positions: partial (B, splits, ΣC)."""
    x, channels, first, c = find_part(tl.program_id(1), x0, x1, x2, x3, c0, c1, c2, c3, BLOCK_C)
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
        if multiplier is not None:
            offsets = row[:, None] * total_channels + (first + c)[None, :]
            v *= tl.load(multiplier + offsets, mask=mask, other=0.0).to(tl.float32)
        total += v
        i += BLOCK_R
    pointers = partial + tl.program_id(0).to(tl.int64) * total_channels + first + c
    tl.store(pointers, tl.sum(total, 0), mask=c_mask)


@triton.jit
def _add_splits(partial, c, c_mask, splits, total_channels, BLOCK_K: tl.constexpr):
    """Adds one clip's partial sums (splits, ΣC) of channels c."""
    split = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_K, c.shape[0]], tl.float32)
    i = 0
    while i < splits:
        mask = (split + i < splits)[:, None] & c_mask[None, :]
        total += tl.load(partial + (split + i)[:, None] * total_channels + c[None, :], mask=mask, other=0.0)
        i += BLOCK_K
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["splits", "positions"])
def _gates(
    partial, w0, w1, w2, w3, means, gates, splits, positions, total_channels, c0, c1, c2, c3,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Writes means and gates = sigmoid(W · mean), both (B, ΣC), of one clip and block of channels."""
    w, channels, first, c = find_part(tl.program_id(1), w0, w1, w2, w3, c0, c1, c2, c3, BLOCK_C)
    c_mask = c < channels
    clip = tl.program_id(0).to(tl.int64)
    partial += clip * splits * total_channels + first
    out = clip * total_channels + first
    mean = _add_splits(partial, c, c_mask, splits, total_channels, BLOCK_K) / positions
    tl.store(means + out + c, mean, mask=c_mask)
    logits = tl.zeros([BLOCK_C], tl.float32)
    i = 0
    while i < channels:
        k = i + tl.arange(0, BLOCK_K)
        mean_k = _add_splits(partial, k, k < channels, splits, total_channels, BLOCK_K) / positions
        mask = c_mask[:, None] & (k < channels)[None, :]
        v = tl.load(w + c[:, None] * channels + k[None, :], mask=mask, other=0.0).to(tl.float32)
        logits += tl.sum(v * mean_k[None, :], 1)
        i += BLOCK_K
    tl.store(gates + out + c, tl.sigmoid(logits), mask=c_mask)


@triton.jit(do_not_specialize=["splits", "positions"])
def _gate_gradients(
    partial, w0, w1, w2, w3, gates, dlogits, addends, splits, positions, total_channels, c0, c1, c2, c3,
    OF_OUTPUT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Writes the logits' gradients and addends = Wᵀ · gradient / positions, both (B, ΣC), of a clip and block."""
    w, channels, first, c = find_part(tl.program_id(1), w0, w1, w2, w3, c0, c1, c2, c3, BLOCK_C)
    c_mask = c < channels
    clip = tl.program_id(0).to(tl.int64)
    partial += clip * splits * total_channels + first
    out = clip * total_channels + first
    g = tl.load(gates + out + c, mask=c_mask, other=0.0)
    dlogit = _add_splits(partial, c, c_mask, splits, total_channels, BLOCK_K) * (1 - g)
    if not OF_OUTPUT:  # which has the gate as a factor
        dlogit *= g
    tl.store(dlogits + out + c, dlogit, mask=c_mask)
    addend = tl.zeros([BLOCK_C], tl.float32)
    i = 0
    while i < channels:
        k = i + tl.arange(0, BLOCK_K)
        g_k = tl.load(gates + out + k, mask=k < channels, other=0.0)
        dlogit_k = _add_splits(partial, k, k < channels, splits, total_channels, BLOCK_K) * (1 - g_k)
        if not OF_OUTPUT:
            dlogit_k *= g_k
        mask = (k < channels)[:, None] & c_mask[None, :]
        v = tl.load(w + k[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        addend += tl.sum(v * dlogit_k[:, None], 0)
        i += BLOCK_K
    tl.store(addends + out + c, addend / positions, mask=c_mask)


@triton.jit(do_not_specialize=["batch"])
def _weight_gradients(
    dlogits, means, w0, w1, w2, w3, batch, total_channels, c0, c1, c2, c3, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Writes a block of each W's gradient, the sum over clips of dlogit · meanᵀ."""
    w, channels, first, row = find_part(tl.program_id(0), w0, w1, w2, w3, c0, c1, c2, c3, BLOCK_C)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if tl.program_id(1) * BLOCK_C < channels:
        total = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
        clip = 0
        while clip < batch:
            at = clip.to(tl.int64) * total_channels + first
            d = tl.load(dlogits + at + row, mask=row < channels, other=0.0)
            total += d[:, None] * tl.load(means + at + column, mask=column < channels, other=0.0)[None, :]
            clip += 1
        mask = (row < channels)[:, None] & (column < channels)[None, :]
        tl.store(w + row[:, None] * channels + column[None, :], total, mask=mask)


@triton.jit(do_not_specialize=["positions", "blocks"])
def _scale(
    x0, x1, x2, x3, gates, addends, joined, positions, blocks, total_channels, c0, c1, c2, c3,
    BACKWARD: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """joined = x · gate, or with BACKWARD x = joined · gate + addend; gate and addend per clip and channel."""
    x, channels, first, c = find_part(tl.program_id(1), x0, x1, x2, x3, c0, c1, c2, c3, BLOCK_C)
    c_mask = c < channels
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    position = (tl.program_id(0) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = (position < positions)[:, None] & c_mask[None, :]
    row = clip * positions + position
    at = clip * total_channels + first + c
    g = tl.load(gates + at, mask=c_mask, other=0.0)
    in_branch = x + row[:, None] * channels + c[None, :]
    in_joined = joined + row[:, None] * total_channels + (first + c)[None, :]
    if BACKWARD:
        v = tl.load(in_joined, mask=mask, other=0.0).to(tl.float32) * g[None, :]
        tl.store(in_branch, v + tl.load(addends + at, mask=c_mask, other=0.0)[None, :], mask=mask)
    else:
        v = tl.load(in_branch, mask=mask, other=0.0).to(tl.float32) * g[None, :]
        tl.store(in_joined, v, mask=mask)
