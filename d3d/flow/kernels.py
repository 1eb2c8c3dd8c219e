"""The two inner loops of TV-L1 as Triton kernels: steps of the primal-dual iteration, and the median filter.

An image of at most TILE pixels per side stays in the registers of one block for all its steps. A larger one is divided
into tiles with margins of HALO pixels, so that a block can do HALO steps before it needs its neighbours' results.
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
    data_term: Tensor,
    old: Tensor,
    new: Tensor,
    old_change: Tensor,
    new_change: Tensor,
    *,
    steps: int,
    limit: float,
    **weights: float,
) -> None:
    """Runs up to HALO steps of the iteration; images that have converged are copied unchanged.

    Args:
        data_term: (3, B, H, W): x and y gradient of the warped image, and the constant part of the residual.
        old: State (6, B, H, W): u1, u2, p11, p12, p21, p22.
        new: As old; written.
        old_change: (B,), squared change of the flow in an earlier step; an image within `limit` has converged.
        new_change: (B,), must be zero; the squared change in the last step is added.
        steps: Number of steps.
        limit: Squared change at which an image has converged.
        **weights: l_t, theta and taut, as in Zach et al. 2007.
    """
    _, images, height, width = data_term.shape
    halo = 0 if max(height, width) <= TILE else HALO
    grid = (images, triton.cdiv(height, TILE - 2 * halo), triton.cdiv(width, TILE - 2 * halo))
    with torch.cuda.device_of(data_term):
        _iterate[grid](
            data_term, old, new, old_change, new_change, images, height, width, limit, **weights,
            STEPS=steps, HALO=halo, TILE=TILE,
            num_warps=16,
        )  # fmt: skip


def median(old: Tensor, new: Tensor, change: Tensor, *, size: int, limit: float) -> None:
    """Median filter with the border repeated; images that have converged are copied unchanged.

    Args:
        old: (2, B, H, W).
        new: As old; written.
        change: (B,), squared change of the flow; an image within `limit` has converged.
        size: Side of the filter in pixels, 3 or 5.
        limit: Squared change at which an image has converged.
    """
    _, images, height, width = old.shape
    grid = (2 * images, triton.cdiv(height * width, MEDIAN_BLOCK))
    with torch.cuda.device_of(old):
        pairs, middle = _median_network(size * size)
        _median[grid](
            old, new, change, images, height, width, limit, SIZE=size, PAIRS=pairs, MIDDLE=middle, BLOCK=MEDIAN_BLOCK
        )


@cache
def _median_network(n: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """A selection network for the median of n values: pairs of indices to sort in this order, and the median's index.

    The minimum and the maximum of more than half of the values cannot be the median: both are dropped and one more
    value is added, until one value remains.
    """
    pairs: list[tuple[int, int]] = []
    candidates, waiting = list(range(n // 2 + 2)), list(range(n // 2 + 2, n))
    while len(candidates) > 1:
        half = len(candidates) // 2
        pairs += [(candidates[i], candidates[-1 - i]) for i in range(half)]
        pairs += [(candidates[0], candidates[i]) for i in range(1, len(candidates) - half)]
        pairs += [(candidates[i], candidates[-1]) for i in range(half, len(candidates) - 1)]
        candidates, waiting = candidates[1:-1] + waiting[:1], waiting[1:]
    return tuple(pairs), candidates[0]


@triton.jit
def _neighbour(x, OFFSET: tl.constexpr, AXIS: tl.constexpr):
    """Each element's neighbour along an axis; at the tile's edge, the element itself."""
    size: tl.constexpr = x.shape[AXIS]
    index = tl.minimum(tl.maximum(tl.arange(0, size) + OFFSET, 0), size - 1)
    index = index[:, None] if AXIS == 0 else index[None, :]
    return tl.gather(x, tl.broadcast_to(index, x.shape), AXIS)


# Triton would turn a count of one into a constant, which cannot be converted to int64.
@triton.jit(do_not_specialize=["images"])
def _iterate(
    data_term, old, new, old_change, new_change, images, height, width, limit, l_t, theta, taut,
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
    index = image.to(tl.int64) * height * width + row * width + col
    u1 = tl.load(old + index, mask=inside, other=0.0)
    u2 = tl.load(old + plane + index, mask=inside, other=0.0)
    p11 = tl.load(old + 2 * plane + index, mask=inside, other=0.0)
    p12 = tl.load(old + 3 * plane + index, mask=inside, other=0.0)
    p21 = tl.load(old + 4 * plane + index, mask=inside, other=0.0)
    p22 = tl.load(old + 5 * plane + index, mask=inside, other=0.0)
    if tl.load(old_change + image) > limit:
        ix = tl.load(data_term + index, mask=inside, other=0.0)
        iy = tl.load(data_term + plane + index, mask=inside, other=0.0)
        residual = tl.load(data_term + 2 * plane + index, mask=inside, other=0.0)
        inverse = 1.0 / tl.maximum(ix * ix + iy * iy, 1e-9)
        change = 0.0
        for step in range(STEPS):
            # Thresholding of the data term and step of u (Zach et al. 2007, equations 11 and 15).
            f = -(residual + ix * u1 + iy * u2) * inverse
            f = tl.minimum(tl.maximum(f, -l_t), l_t)
            left, up = col > 0, row > 0
            d1 = p11 - tl.where(left, _neighbour(p11, -1, 1), 0.0) + p12 - tl.where(up, _neighbour(p12, -1, 0), 0.0)
            d2 = p21 - tl.where(left, _neighbour(p21, -1, 1), 0.0) + p22 - tl.where(up, _neighbour(p22, -1, 0), 0.0)
            v1 = f * ix + theta * d1
            v2 = f * iy + theta * d2
            if step == STEPS - 1:
                change = tl.sum(tl.where(core, v1 * v1 + v2 * v2, 0.0))
            u1 += v1
            u2 += v2
            # Step of the dual variables.
            right, down = col < width - 1, row < height - 1
            u1x = tl.where(right, _neighbour(u1, 1, 1) - u1, 0.0) * taut
            u1y = tl.where(down, _neighbour(u1, 1, 0) - u1, 0.0) * taut
            u2x = tl.where(right, _neighbour(u2, 1, 1) - u2, 0.0) * taut
            u2y = tl.where(down, _neighbour(u2, 1, 0) - u2, 0.0) * taut
            n1 = 1.0 / (1.0 + tl.sqrt(u1x * u1x + u1y * u1y))
            n2 = 1.0 / (1.0 + tl.sqrt(u2x * u2x + u2y * u2y))
            p11 = (p11 + u1x) * n1
            p12 = (p12 + u1y) * n1
            p21 = (p21 + u2x) * n2
            p22 = (p22 + u2y) * n2
        tl.atomic_add(new_change + image, change)
    tl.store(new + index, u1, mask=core)
    tl.store(new + plane + index, u2, mask=core)
    tl.store(new + 2 * plane + index, p11, mask=core)
    tl.store(new + 3 * plane + index, p12, mask=core)
    tl.store(new + 4 * plane + index, p21, mask=core)
    tl.store(new + 5 * plane + index, p22, mask=core)


@triton.jit(do_not_specialize=["images"])
def _median(
    old, new, squared_change, images, height, width, limit,
    SIZE: tl.constexpr, PAIRS: tl.constexpr, MIDDLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * height * width
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    if tl.load(squared_change + tl.program_id(0) % images) > limit:
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
