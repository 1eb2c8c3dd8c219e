"""Triton kernels of S3D-G's max pools and of its stem's taps; each reads and writes an activation once.

Activations are (B, T, H, W, C); a block is some positions of a frame by BLOCK_C channels. Arithmetic is float32 for
every dtype of the activation. The functions allocate their results.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from d3d.s3dg.kernels import Parts, ceil_div, custom_op, find_part

# Positions of a frame per block; fewer for windows over time, which keep up to three frames in registers.
BLOCK_P, BLOCK_P_OVER_TIME = 32, 16
BLOCK_C = 64
BLOCK_W = 32  # columns of the stem's taps at a time


def _fake_max_pool(xs, gates, kernel, stride, output_size, pad_before, return_indices):
    y = xs[0].new_empty(xs[0].shape[0], *output_size, sum(x.shape[-1] for x in xs))
    return y, y.new_empty(y.shape if return_indices else 0, dtype=torch.uint8)


@custom_op(_fake_max_pool)
def max_pool(
    xs: Sequence[Tensor],
    gates: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    output_size: Sequence[int],
    pad_before: Sequence[int],
    return_indices: bool,
) -> tuple[Tensor, Tensor]:
    """Computes a max pool of tensors, concatenated along C, and multiplies it by gates.

    Args:
        xs: At most four tensors (B, T, H, W, C), each with its own C.
        gates: Factors (G, ΣC), float32, of B / G elements of the batch each; None: 1.
        kernel: (size over T, size over H and W).
        stride: (stride over T, stride over H and W).
        output_size: (T', H', W').
        pad_before: Positions added before T, H and W.
        return_indices: Whether to record which element of each window is the first maximum.

    Returns:
        Maxima (B, T', H', W', ΣC) and indices of the same shape, uint8; without `return_indices`, an empty tensor.
    """
    parts = Parts([x.shape[-1] for x in xs], BLOCK_C)
    batch, *input_size, _ = xs[0].shape
    y = xs[0].new_empty(batch, *output_size, parts.total)
    indices = torch.empty_like(y, dtype=torch.uint8) if return_indices else y.new_empty(0, dtype=torch.uint8)
    block = BLOCK_P if kernel[0] == 1 else BLOCK_P_OVER_TIME
    blocks = ceil_div(output_size[1] * output_size[2], block)
    with torch.cuda.device_of(y):
        _max_pool[batch * blocks, parts.blocks](
            *parts.fill(xs), y, indices, gates, _per_gate(batch, gates), blocks, *input_size, parts.total,
            *parts.channels, *output_size, *pad_before, KT=kernel[0], K=kernel[1], ST=stride[0], S=stride[1],
            RETURN_INDICES=return_indices, BLOCK_P=block, BLOCK_C=BLOCK_C,
        )  # fmt: skip
    return y, indices


def _per_gate(batch: int, gates: Tensor | None) -> int:
    """The number of elements of a batch that have the same gates."""
    return batch if gates is None else batch // len(gates)


@custom_op(
    lambda dy, indices, gates, addends, channels, input_size, *_: [
        dy.new_empty(dy.shape[0], *input_size, c) for c in channels
    ]
)
def max_pool_backward(
    dy: Tensor,
    indices: Tensor,
    gates: Tensor | None,
    addends: Tensor | None,
    channels: Sequence[int],
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    pad_before: Sequence[int],
) -> list[Tensor]:
    """Computes the gradients of `max_pool` with respect to each x, from the indices it returned, plus `addends`.

    Args:
        dy: (B, T', H', W', ΣC).
        indices: As `max_pool` returned them.
        gates: As for `max_pool`.
        addends: Added at every position, float32 (G, ΣC); None without gates.
        channels: C of each x.
        input_size: (T, H, W).
        kernel, stride, pad_before: As for `max_pool`.
    """
    parts = Parts(channels, BLOCK_C)
    batch, *output_size, _ = dy.shape
    dxs = [dy.new_empty(batch, *input_size, c) for c in channels]
    block = BLOCK_P if kernel[0] == 1 else BLOCK_P_OVER_TIME
    blocks = ceil_div(input_size[1] * input_size[2], block)
    with torch.cuda.device_of(dy):
        _max_pool_backward[batch * blocks, parts.blocks](
            dy, indices, *parts.fill(dxs), gates, addends, _per_gate(batch, gates), blocks, *input_size, parts.total,
            *parts.channels, *output_size, *pad_before, KT=kernel[0], K=kernel[1], ST=stride[0], S=stride[1],
            BLOCK_P=block, BLOCK_C=BLOCK_C,
        )  # fmt: skip
    return dxs


def _padded_taps(channels: int) -> int:
    return ceil_div(21 * channels, 8) * 8


@custom_op(
    lambda x, dtype, output_size, _: x.new_empty(x.shape[0], *output_size, _padded_taps(x.shape[1]), dtype=dtype)
)
def stem_taps(x: Tensor, dtype: torch.dtype, output_size: Sequence[int], pad_before: Sequence[int]) -> Tensor:
    """Gathers the 3x7 taps over time and height of each output frame and row of the stem.

    Args:
        x: Clips (B, C, T, H, W) of any strides.
        dtype: Dtype of the result.
        output_size: (T', H', number of columns with padding).
        pad_before: Frames, rows and columns of zeros before T, H and W.

    Returns:
        (B, T', H', columns, taps): 21 C taps, zero-padded to a multiple of 8.
    """
    batch, channels = x.shape[:2]
    taps = _padded_taps(channels)
    out = x.new_empty(batch, *output_size, taps, dtype=dtype)
    with torch.cuda.device_of(x):
        _stem_taps[batch * output_size[0] * output_size[1], ceil_div(taps, BLOCK_C)](
            x, out, *x.shape[2:], *x.stride(), *output_size, 21 * channels, taps, *pad_before,
            BLOCK_W=BLOCK_W, BLOCK_C=BLOCK_C,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["per_gate", "blocks", "frames", "frames_out"])
def _max_pool(
    x0, x1, x2, x3, y, indices, gates, per_gate, blocks, frames, height, width, total_channels, c0, c1, c2, c3,
    frames_out, height_out, width_out, pad_t, pad_h, pad_w,
    KT: tl.constexpr, K: tl.constexpr, ST: tl.constexpr, S: tl.constexpr,
    RETURN_INDICES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    x, channels, first, c = find_part(tl.program_id(1), x0, x1, x2, x3, c0, c1, c2, c3, BLOCK_C)
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    position = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    mask = (position < height_out * width_out)[:, None] & (c < channels)[None, :]
    window_row = position // width_out * S - pad_h
    window_col = position % width_out * S - pad_w
    x += clip * frames * height * width * channels
    y += clip * frames_out * height_out * width_out * total_channels + first
    indices += clip * frames_out * height_out * width_out * total_channels + first
    if gates is not None:
        gate = tl.load(gates + clip // per_gate * total_channels + first + c, mask=c < channels, other=1.0)[None, :]
    # Spatial maxima of the last two frames, and their indices; a window over time takes the best of up to three frames.
    # Each name gets its own initial tensor: Triton 3.6 treats names that share one as constant through the loop.
    older, older_index = tl.full([BLOCK_P, BLOCK_C], float("-inf"), tl.float32), tl.zeros([BLOCK_P, BLOCK_C], tl.int32)
    old, old_index = tl.full([BLOCK_P, BLOCK_C], float("-inf"), tl.float32), tl.zeros([BLOCK_P, BLOCK_C], tl.int32)
    t = 0
    while t < (frames_out - 1) * ST + KT - pad_t:
        new, new_index = tl.full([BLOCK_P, BLOCK_C], float("-inf"), tl.float32), tl.zeros([BLOCK_P, BLOCK_C], tl.int32)
        for k in tl.static_range(K * K):
            row, col = window_row + k // K, window_col + k % K
            ok = mask & ((row >= 0) & (row < height) & (col >= 0) & (col < width) & (t < frames))[:, None]
            pixel = (t * height + row) * width + col
            v = tl.load(x + pixel[:, None] * channels + c[None, :], mask=ok, other=float("-inf")).to(tl.float32)
            if RETURN_INDICES:
                new_index = tl.where(v > new, k, new_index)
            new = tl.maximum(new, v, propagate_nan=tl.PropagateNan.ALL)
        start = t - (KT - 1) + pad_t
        if (start >= 0) & (start % ST == 0):
            best, best_index = new, new_index + (KT - 1) * K * K
            if KT > 1:
                # Of equal maxima the earlier one counts.
                best_index = tl.where(old >= best, old_index + (KT - 2) * K * K, best_index)
                best = tl.maximum(old, best, propagate_nan=tl.PropagateNan.ALL)
            if KT > 2:
                best_index = tl.where(older >= best, older_index, best_index)
                best = tl.maximum(older, best, propagate_nan=tl.PropagateNan.ALL)
            pixel = start // ST * height_out * width_out + position
            if gates is not None:
                best *= gate
            tl.store(y + pixel[:, None] * total_channels + c[None, :], best, mask=mask)
            if RETURN_INDICES:
                tl.store(indices + pixel[:, None] * total_channels + c[None, :], best_index, mask=mask)
        older, old, older_index, old_index = old, new, old_index, new_index
        t += 1


@triton.jit(do_not_specialize=["per_gate", "blocks", "frames", "frames_out"])
def _max_pool_backward(
    dy, indices, dx0, dx1, dx2, dx3, gates, addends, per_gate, blocks, frames, height, width, total_channels,
    c0, c1, c2, c3, frames_out, height_out, width_out, pad_t, pad_h, pad_w,
    KT: tl.constexpr, K: tl.constexpr, ST: tl.constexpr, S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    dx, channels, offset, c = find_part(tl.program_id(1), dx0, dx1, dx2, dx3, c0, c1, c2, c3, BLOCK_C)
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    position = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    row, col = position // width, position % width
    mask = (position < height * width)[:, None] & (c < channels)[None, :]
    dy += clip * frames_out * height_out * width_out * total_channels + offset
    indices += clip * frames_out * height_out * width_out * total_channels + offset
    if gates is not None:
        of_channel = clip // per_gate * total_channels + offset + c
        gate = tl.load(gates + of_channel, mask=c < channels, other=0.0)[None, :]
        addend = tl.load(addends + of_channel, mask=c < channels, other=0.0)[None, :]
    # A pointer that has moved by a part's size loses its alignment, and stores become 2 bytes wide: rows are counted.
    first_row = clip * frames * height * width + position
    # Gradients of frames t, t + 1 and t + 2, the window over time that starts at t; ST of them are complete per step.
    first = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    second = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    third = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    t = -pad_t
    while t < frames:
        o = (t + pad_t) // ST
        for i in tl.static_range(((K + S - 1) // S) * ((K + S - 1) // S)):
            # The spatial windows (ho, wo) that contain this pixel, as their element (kh, kw).
            kh = (row + pad_h) % S + i // ((K + S - 1) // S) * S
            kw = (col + pad_w) % S + i % ((K + S - 1) // S) * S
            ho, wo = (row + pad_h - kh) // S, (col + pad_w - kw) // S
            ok = (kh < K) & (kw < K) & (row + pad_h >= kh) & (col + pad_w >= kw)
            ok = ok & (ho < height_out) & (wo < width_out) & (o < frames_out)
            ok = mask & ok[:, None]
            offsets = ((o * height_out + ho) * width_out + wo)[:, None] * total_channels + c[None, :]
            k = tl.load(indices + offsets, mask=ok, other=255).to(tl.int32) - (kh * K + kw)[:, None]
            d = tl.load(dy + offsets, mask=ok, other=0.0).to(tl.float32)
            first += tl.where(k == 0, d, 0.0)
            if KT > 1:
                second += tl.where(k == K * K, d, 0.0)
            if KT > 2:
                third += tl.where(k == 2 * K * K, d, 0.0)
        pointers = dx + (first_row + t * height * width)[:, None] * channels + c[None, :]
        complete, next_complete = first, second
        if gates is not None:
            complete, next_complete = first * gate + addend, second * gate + addend
        tl.store(pointers, complete, mask=mask & (t >= 0))
        if ST == 1:
            first, second, third = second, third, tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        else:
            later = mask & (t + 1 >= 0) & (t + 1 < frames)
            tl.store(pointers + height * width * channels, next_complete, mask=later)
            first, second = third, tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
            third = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        t += ST


@triton.jit
def _stem_taps(
    x, out, frames, height, width, stride_b, stride_c, stride_t, stride_h, stride_w,
    frames_out, rows_out, cols_out, taps, padded_taps, pad_t, pad_h, pad_w,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0)
    row_out, frame_out = position % rows_out, position // rows_out % frames_out
    x += (position // rows_out // frames_out).to(tl.int64) * stride_b
    out += position.to(tl.int64) * cols_out * padded_taps
    k = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    frame = 2 * frame_out + k // 7 % 3 - pad_t
    row = 2 * row_out + k % 7 - pad_h
    is_inside = (k < taps) & (frame >= 0) & (frame < frames) & (row >= 0) & (row < height)
    start_of_row = k // 21 * stride_c + frame * stride_t + row * stride_h
    first_col = 0
    while first_col < cols_out:
        col = first_col + tl.arange(0, BLOCK_W)
        ok = is_inside[None, :] & (col >= pad_w)[:, None] & (col < width + pad_w)[:, None]
        offsets = start_of_row[None, :] + ((col - pad_w) * stride_w)[:, None]
        v = tl.load(x + offsets, mask=ok, other=0.0).to(out.dtype.element_ty)
        store_mask = (col < cols_out)[:, None] & (k < padded_taps)[None, :]
        tl.store(out + col[:, None] * padded_taps + k[None, :], v, mask=store_mask)
        first_col += BLOCK_W
