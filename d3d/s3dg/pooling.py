"""S3D-G's max pools and the taps of its stem, as Triton kernels: each reads and writes an activation once.

Activations are rows of channels, as in `s3dg_kernels`; arithmetic is float32. The functions allocate what they return.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from d3d.s3dg.kernels import WIDTH, blocks_of, operator

ROWS = 32
COLUMNS = 256


def _fake_max_pool(x, kernel, stride, size, before, index):
    y = x.new_empty(x.shape[0], *size, x.shape[-1])
    return y, x.new_empty(y.shape if index else 0, dtype=torch.uint8)


@operator(_fake_max_pool)
def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    size: Sequence[int],
    before: Sequence[int],
    index: bool,
) -> tuple[Tensor, Tensor]:
    """Max pool of x (B, T, H, W, C), padded by `before`, to `size` (T', H', W'); kernel and stride for time and space.

    With `index` also which element of the window was the first maximum, as uint8.
    """
    batch, *inner, channels = x.shape
    y = x.new_empty(batch, *size, channels)
    which = torch.empty_like(y, dtype=torch.uint8) if index else x.new_empty(0, dtype=torch.uint8)
    blocks = blocks_of(size[1] * size[2], ROWS)
    with torch.cuda.device_of(x):
        _max_pool[batch * blocks, blocks_of(channels, WIDTH)](
            x, y, which, blocks, *inner, channels, *size, *before,
            KT=kernel[0], K=kernel[1], ST=stride[0], S=stride[1], INDEX=index, ROWS=ROWS, WIDTH=WIDTH,
        )  # fmt: skip
    return y, which


@operator(lambda dy, which, inner, *_: dy.new_empty(dy.shape[0], *inner, dy.shape[-1]))
def max_pool_backward(
    dy: Tensor,
    which: Tensor,
    inner: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    before: Sequence[int],
) -> Tensor:
    """Gradient of `max_pool` for its input, whose T, H and W are `inner`."""
    batch, *size, channels = dy.shape
    dx = dy.new_empty(batch, *inner, channels)
    blocks = blocks_of(inner[1] * inner[2], ROWS)
    with torch.cuda.device_of(dy):
        _max_pool_backward[batch * blocks, blocks_of(channels, WIDTH)](
            dy, which, dx, blocks, *inner, channels, *size, *before,
            KT=kernel[0], K=kernel[1], ST=stride[0], S=stride[1], ROWS=ROWS, WIDTH=WIDTH,
        )  # fmt: skip
    return dx


@operator(lambda x, dtype, size, _: x.new_empty(x.shape[0], *size, -(-21 * x.shape[1] // 8) * 8, dtype=dtype))
def stem_taps(x: Tensor, dtype: torch.dtype, size: Sequence[int], before: Sequence[int]) -> Tensor:
    """For each output position of the stem along T and H, the 3 x 7 taps there; for each column, padded.

    x (B, C, T, H, W) of any strides -> (B, T', H', columns, 21 C padded to a multiple of 8); size: T', H', columns.
    """
    batch, channels = x.shape[:2]
    width = -(-21 * channels // 8) * 8
    out = x.new_empty(batch, *size, width, dtype=dtype)
    with torch.cuda.device_of(x):
        _stem_taps[batch * size[0] * size[1], blocks_of(size[2], COLUMNS), blocks_of(width, WIDTH)](
            x, out, *x.shape[2:], *x.stride(), *size, 21 * channels, width, *before, COLUMNS=COLUMNS, WIDTH=WIDTH
        )
    return out


@triton.jit(do_not_specialize=["blocks", "frames", "frames_out"])
def _max_pool(
    x, y, which, blocks, frames, height, width, channels, frames_out, height_out, width_out,
    before_t, before_h, before_w,
    KT: tl.constexpr, K: tl.constexpr, ST: tl.constexpr, S: tl.constexpr,
    INDEX: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    at = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    mask = (at < height_out * width_out)[:, None] & (c < channels)[None, :]
    top = at // width_out * S - before_h
    left = at % width_out * S - before_w
    x += clip * frames * height * width * channels
    y += clip * frames_out * height_out * width_out * channels
    which += clip * frames_out * height_out * width_out * channels
    # Maxima over space of the last two frames, and where: a window over time is the best of up to three of them.
    # Each has a value of its own: of names that share one Triton 3.6 takes some for constant through the loop.
    older, older_at = tl.full([ROWS, WIDTH], float("-inf"), tl.float32), tl.zeros([ROWS, WIDTH], tl.int32)
    old, old_at = tl.full([ROWS, WIDTH], float("-inf"), tl.float32), tl.zeros([ROWS, WIDTH], tl.int32)
    t = 0
    while t < (frames_out - 1) * ST + KT - before_t:
        new, new_at = tl.full([ROWS, WIDTH], float("-inf"), tl.float32), tl.zeros([ROWS, WIDTH], tl.int32)
        for k in tl.static_range(K * K):
            row, col = top + k // K, left + k % K
            ok = mask & ((row >= 0) & (row < height) & (col >= 0) & (col < width) & (t < frames))[:, None]
            pixel = (t * height + row) * width + col
            v = tl.load(x + pixel[:, None] * channels + c[None, :], mask=ok, other=float("-inf")).to(tl.float32)
            if INDEX:
                new_at = tl.where(v > new, k, new_at)
            new = tl.maximum(new, v, propagate_nan=tl.PropagateNan.ALL)
        first = t - (KT - 1) + before_t
        if (first >= 0) & (first % ST == 0):
            best, best_at = new, new_at + (KT - 1) * K * K
            if KT > 1:
                # The earlier of equal maxima counts.
                best_at = tl.where(old >= best, old_at + (KT - 2) * K * K, best_at)
                best = tl.maximum(old, best, propagate_nan=tl.PropagateNan.ALL)
            if KT > 2:
                best_at = tl.where(older >= best, older_at, best_at)
                best = tl.maximum(older, best, propagate_nan=tl.PropagateNan.ALL)
            pixel = first // ST * height_out * width_out + at
            tl.store(y + pixel[:, None] * channels + c[None, :], best, mask=mask)
            if INDEX:
                tl.store(which + pixel[:, None] * channels + c[None, :], best_at, mask=mask)
        older, old, older_at, old_at = old, new, old_at, new_at
        t += 1


@triton.jit(do_not_specialize=["blocks", "frames", "frames_out"])
def _max_pool_backward(
    dy, which, dx, blocks, frames, height, width, channels, frames_out, height_out, width_out,
    before_t, before_h, before_w,
    KT: tl.constexpr, K: tl.constexpr, ST: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    at = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    row, col = at // width, at % width
    mask = (at < height * width)[:, None] & (c < channels)[None, :]
    dy += clip * frames_out * height_out * width_out * channels
    which += clip * frames_out * height_out * width_out * channels
    dx += clip * frames * height * width * channels
    # Gradients of the three frames that a window over time starts with, of which ST are complete after each step.
    first = tl.zeros([ROWS, WIDTH], tl.float32)
    second = tl.zeros([ROWS, WIDTH], tl.float32)
    third = tl.zeros([ROWS, WIDTH], tl.float32)
    t = -before_t
    while t < frames:
        o = (t + before_t) // ST
        for i in tl.static_range(((K + S - 1) // S) * ((K + S - 1) // S)):
            # The windows over space that hold this pixel, in which it is the element (kh, kw).
            kh = (row + before_h) % S + i // ((K + S - 1) // S) * S
            kw = (col + before_w) % S + i % ((K + S - 1) // S) * S
            ho, wo = (row + before_h - kh) // S, (col + before_w - kw) // S
            ok = (kh < K) & (kw < K) & (row + before_h >= kh) & (col + before_w >= kw)
            ok = ok & (ho < height_out) & (wo < width_out) & (o < frames_out)
            ok = mask & ok[:, None]
            from_ = ((o * height_out + ho) * width_out + wo)[:, None] * channels + c[None, :]
            k = tl.load(which + from_, mask=ok, other=255).to(tl.int32) - (kh * K + kw)[:, None]
            d = tl.load(dy + from_, mask=ok, other=0.0).to(tl.float32)
            first += tl.where(k == 0, d, 0.0)
            if KT > 1:
                second += tl.where(k == K * K, d, 0.0)
            if KT > 2:
                third += tl.where(k == 2 * K * K, d, 0.0)
        to = dx + ((t * height * width + at)[:, None] * channels + c[None, :])
        tl.store(to, first, mask=mask & (t >= 0))
        if ST == 1:
            first, second, third = second, third, tl.zeros([ROWS, WIDTH], tl.float32)
        else:
            tl.store(to + height * width * channels, second, mask=mask & (t + 1 >= 0) & (t + 1 < frames))
            first, second = third, tl.zeros([ROWS, WIDTH], tl.float32)
            third = tl.zeros([ROWS, WIDTH], tl.float32)
        t += ST


@triton.jit
def _stem_taps(
    x, out, frames, height, width, by_clip, by_channel, by_frame, by_row, by_col,
    frames_out, rows_out, cols_out, taps, width_out, before_t, before_h, before_w,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    row_out, frame_out = place % rows_out, place // rows_out % frames_out
    x += (place // rows_out // frames_out).to(tl.int64) * by_clip
    out += place.to(tl.int64) * cols_out * width_out
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    frame = 2 * frame_out + k // 7 % 3 - before_t
    row = 2 * row_out + k % 7 - before_h
    ok = (k < taps) & (frame >= 0) & (frame < frames) & (row >= 0) & (row < height)
    ok = ok[None, :] & (col >= before_w)[:, None] & (col < width + before_w)[:, None]
    at = (k // 21 * by_channel + frame * by_frame + row * by_row)[None, :] + ((col - before_w) * by_col)[:, None]
    v = tl.load(x + at, mask=ok, other=0.0).to(out.dtype.element_ty)
    kept = (col < cols_out)[:, None] & (k < width_out)[None, :]
    tl.store(out + col[:, None] * width_out + k[None, :], v, mask=kept)
