"""The two inner loops of TV-L1 as Triton kernels: steps of the primal-dual iteration, and the median filter.

An image of at most TILE pixels a side lives in one block's registers for all its steps. A larger one is cut into tiles
that overlap by HALO pixels a side, so that a block takes HALO steps before its neighbours' results matter.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64
HALO = 10
MEDIAN_BLOCK = 512


def iterate(
    fixed: Tensor,
    old: Tensor,
    new: Tensor,
    before: Tensor,
    after: Tensor,
    *,
    steps: int,
    limit: float,
    **weights: float,
) -> None:
    """Up to HALO steps of the iteration, from `old` to `new` (6, B, H, W): u1, u2, p11, p12, p21, p22.

    fixed (3, B, H, W): gradient x and y of the warped image, and the constant part of the residual. An image whose
    squared change `before` (B,) is within `limit` is copied as it is; the last step's goes to `after`, which is zero.
    weights: l_t, theta and taut, as in Zach et al. 2007.
    """
    _, images, height, width = fixed.shape
    halo = 0 if max(height, width) <= TILE else HALO
    grid = (images, triton.cdiv(height, TILE - 2 * halo), triton.cdiv(width, TILE - 2 * halo))
    with torch.cuda.device_of(fixed):
        _iterate[grid](
            fixed, old, new, before, after, images, height, width, limit, **weights,
            STEPS=steps, HALO=halo, TILE=TILE,
            num_warps=16,
        )  # fmt: skip


def median(old: Tensor, new: Tensor, before: Tensor, *, size: int, limit: float) -> None:
    """Median filter of `old` (2, B, H, W) into `new`, over size x size pixels, 3 or 5, the border repeated.

    An image whose squared change `before` (B,) is within `limit` is copied as it is.
    """
    _, images, height, width = old.shape
    grid = (2 * images, triton.cdiv(height * width, MEDIAN_BLOCK))
    with torch.cuda.device_of(old):
        pairs, middle = _selection(size * size)
        _median[grid](
            old, new, before, images, height, width, limit, SIZE=size, PAIRS=pairs, MIDDLE=middle, BLOCK=MEDIAN_BLOCK
        )


@cache
def _selection(n: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """Pairs of places to put in order, one after another, and the place where the median of n values is then.

    Of somewhat more than half the values the least and the largest cannot be the median of all: both are forgotten for
    one more value, until one is left.
    """
    pairs: list[tuple[int, int]] = []
    kept, coming = list(range(n // 2 + 2)), list(range(n // 2 + 2, n))
    while len(kept) > 1:
        half = len(kept) // 2
        pairs += [(kept[i], kept[-1 - i]) for i in range(half)]
        pairs += [(kept[0], kept[i]) for i in range(1, len(kept) - half)]
        pairs += [(kept[i], kept[-1]) for i in range(half, len(kept) - 1)]
        kept, coming = kept[1:-1] + coming[:1], coming[1:]
    return tuple(pairs), kept[0]


@triton.jit
def _beside(x, OFFSET: tl.constexpr, AXIS: tl.constexpr):
    """The neighbours of a tile's elements along an axis; those at the tile's end see themselves."""
    size: tl.constexpr = x.shape[AXIS]
    at = tl.minimum(tl.maximum(tl.arange(0, size) + OFFSET, 0), size - 1)
    at = at[:, None] if AXIS == 0 else at[None, :]
    return tl.gather(x, tl.broadcast_to(at, x.shape), AXIS)


# A count of one would become a constant, which has no type to widen.
@triton.jit(do_not_specialize=["images"])
def _iterate(
    fixed, old, new, before, after, images, height, width, limit, l_t, theta, taut,
    STEPS: tl.constexpr, HALO: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0)
    r = tl.arange(0, TILE)[:, None]
    c = tl.arange(0, TILE)[None, :]
    row = tl.program_id(1) * (TILE - 2 * HALO) - HALO + r
    col = tl.program_id(2) * (TILE - 2 * HALO) - HALO + c
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    core = inside & (r >= HALO) & (r < TILE - HALO) & (c >= HALO) & (c < TILE - HALO)
    plane = images.to(tl.int64) * height * width
    at = image.to(tl.int64) * height * width + row * width + col
    u1 = tl.load(old + at, mask=inside, other=0.0)
    u2 = tl.load(old + plane + at, mask=inside, other=0.0)
    p11 = tl.load(old + 2 * plane + at, mask=inside, other=0.0)
    p12 = tl.load(old + 3 * plane + at, mask=inside, other=0.0)
    p21 = tl.load(old + 4 * plane + at, mask=inside, other=0.0)
    p22 = tl.load(old + 5 * plane + at, mask=inside, other=0.0)
    if tl.load(before + image) > limit:
        ix = tl.load(fixed + at, mask=inside, other=0.0)
        iy = tl.load(fixed + plane + at, mask=inside, other=0.0)
        residual = tl.load(fixed + 2 * plane + at, mask=inside, other=0.0)
        inverse = 1.0 / tl.maximum(ix * ix + iy * iy, 1e-9)
        change = 0.0
        for step in range(STEPS):
            # The thresholding of the data term and the step of u (Zach et al. 2007, equations 11 and 15).
            f = -(residual + ix * u1 + iy * u2) * inverse
            f = tl.minimum(tl.maximum(f, -l_t), l_t)
            left, up = col > 0, row > 0
            d1 = p11 - tl.where(left, _beside(p11, -1, 1), 0.0) + p12 - tl.where(up, _beside(p12, -1, 0), 0.0)
            d2 = p21 - tl.where(left, _beside(p21, -1, 1), 0.0) + p22 - tl.where(up, _beside(p22, -1, 0), 0.0)
            v1 = f * ix + theta * d1
            v2 = f * iy + theta * d2
            if step == STEPS - 1:
                change = tl.sum(tl.where(core, v1 * v1 + v2 * v2, 0.0))
            u1 += v1
            u2 += v2
            # The step of the dual variables.
            right, down = col < width - 1, row < height - 1
            u1x = tl.where(right, _beside(u1, 1, 1) - u1, 0.0) * taut
            u1y = tl.where(down, _beside(u1, 1, 0) - u1, 0.0) * taut
            u2x = tl.where(right, _beside(u2, 1, 1) - u2, 0.0) * taut
            u2y = tl.where(down, _beside(u2, 1, 0) - u2, 0.0) * taut
            n1 = 1.0 / (1.0 + tl.sqrt(u1x * u1x + u1y * u1y))
            n2 = 1.0 / (1.0 + tl.sqrt(u2x * u2x + u2y * u2y))
            p11 = (p11 + u1x) * n1
            p12 = (p12 + u1y) * n1
            p21 = (p21 + u2x) * n2
            p22 = (p22 + u2y) * n2
        tl.atomic_add(after + image, change)
    tl.store(new + at, u1, mask=core)
    tl.store(new + plane + at, u2, mask=core)
    tl.store(new + 2 * plane + at, p11, mask=core)
    tl.store(new + 3 * plane + at, p12, mask=core)
    tl.store(new + 4 * plane + at, p21, mask=core)
    tl.store(new + 5 * plane + at, p22, mask=core)


@triton.jit(do_not_specialize=["images"])
def _median(
    old, new, before, images, height, width, limit,
    SIZE: tl.constexpr, PAIRS: tl.constexpr, MIDDLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * height * width
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    if tl.load(before + tl.program_id(0) % images) > limit:
        v = ()
        for k in tl.static_range(SIZE * SIZE):
            row = tl.minimum(tl.maximum(pixel // width + k // SIZE - SIZE // 2, 0), height - 1)
            col = tl.minimum(tl.maximum(pixel % width + k % SIZE - SIZE // 2, 0), width - 1)
            v = v + (tl.load(old + start + row * width + col, mask=inside),)
        for k in tl.static_range(len(PAIRS)):
            low = tl.minimum(v[PAIRS[k][0]], v[PAIRS[k][1]])
            high = tl.maximum(v[PAIRS[k][0]], v[PAIRS[k][1]])
            v = v[: PAIRS[k][0]] + (low,) + v[PAIRS[k][0] + 1 : PAIRS[k][1]] + (high,) + v[PAIRS[k][1] + 1 :]
        tl.store(new + start + pixel, v[MIDDLE], mask=inside)
    else:
        tl.store(new + start + pixel, tl.load(old + start + pixel, mask=inside), mask=inside)
