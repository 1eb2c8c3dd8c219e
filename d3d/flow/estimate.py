"""TV-L1: optical flow from one image to the next, on a GPU, or by OpenCV on a CPU.

    flow = tvl1(a, b)                # (B, 2, H, W) in pixels, on the device of a and b

Flow is float32 (B, 2, ..., H, W) in pixels, channel 0 to the right, 1 down: what a pixel shows at x is at x + flow in
the next frame.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from d3d.flow.fields import warp

GREY = (0.299, 0.587, 0.114)
# Pixels solved together on a GPU: 256 pairs of 256 x 256.
CHUNK_PIXELS = 2**24


@torch.no_grad()
def tvl1(
    a: Tensor,
    b: Tensor,
    *,
    tau: float = 0.25,
    lambda_: float = 0.15,
    theta: float = 0.3,
    scales: int = 5,
    warps: int = 5,
    scale_step: float = 0.8,
    epsilon: float = 0.01,
    inner: int = 30,
    outer: int = 10,
    median: int = 5,
    workers: int | None = None,
) -> Tensor:
    """Estimates the flow from images a to b by TV-L1 (Zach et al. 2007; Sánchez Pérez et al. 2013).

    Algorithm and defaults are those of OpenCV's DualTVL1. A GPU solves all images together and tests convergence every
    ten iterations instead of every one; on a CPU, OpenCV itself solves them in worker processes.

    Args:
        a: (B, 1, H, W) grey or (B, 3, H, W) RGB, floating point in [0, 1].
        b: As a, on the same device.
        tau: Time step.
        lambda_: Weight of the data term, for grey levels from 0 to 255.
        theta: Tightness of the coupling.
        scales: Maximum number of pyramid levels; the coarsest has at least 16 pixels per side.
        warps: Number of warpings per level.
        scale_step: Size of a level relative to the next finer one.
        epsilon: A warping ends when the root mean square change of the flow falls below it.
        inner: Number of iterations between median filters.
        outer: Maximum number of median filters per warping.
        median: Side of the median filter in pixels: 1 (none), 3 or 5.
        workers: Number of processes on a CPU; None: one per core.

    Returns:
        float32 (B, 2, H, W), pixels.

    Raises:
        ValueError: If the images differ in shape or device or have no valid shape, or a parameter is out of range.
    """
    if a.shape != b.shape or a.device != b.device:
        raise ValueError(
            f"a and b must have the same shape and device, not {tuple(a.shape)} on {a.device} and {tuple(b.shape)} on "
            f"{b.device}"
        )
    if a.ndim != 4 or a.shape[1] not in (1, 3) or not a.is_floating_point():
        raise ValueError(f"images must be float (B, 1, H, W) or (B, 3, H, W) in [0, 1], not {a.dtype} {tuple(a.shape)}")
    if median not in (1, 3, 5):
        raise ValueError(f"median must be 1 (no filter), 3 or 5, not {median}")
    if not 0 < scale_step < 1:
        raise ValueError(f"scale_step must lie between 0 and 1, not {scale_step}")
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, it is {epsilon}")
    counts = {"scales": scales, "warps": warps, "inner": inner, "outer": outer}
    counts |= {"workers": workers} if workers is not None else {}
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number from 1 up, not {value}")
    weights = {"tau": tau, "lambda_": lambda_, "theta": theta}
    for name, value in weights.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")
    counts.pop("workers", None)
    parameters = counts | weights | {"scale_step": scale_step, "epsilon": epsilon, "median": median}
    a, b = grey(a), grey(b)
    if not a.numel():
        return a.new_zeros(len(a), 2, *a.shape[1:])
    if a.device.type == "cuda":
        size = max(1, CHUNK_PIXELS // a[0].numel())
        with torch.autocast("cuda", enabled=False):
            return torch.cat([_solve(*chunk, **parameters) for chunk in zip(a.split(size), b.split(size), strict=True)])
    # OpenCV is needed only on a CPU.
    from d3d.flow import opencv as tvl1_cpu

    flow = tvl1_cpu.solve(a.numpy(force=True), b.numpy(force=True), parameters, workers=workers)
    return torch.from_numpy(flow).to(a.device)


def tvl1_clip(rgb: Tensor, **parameters: float) -> Tensor:
    """Estimates the flow of clips by `tvl1`; field t is the flow from frame t to t + 1, and the last is repeated.

    Args:
        rgb: (B, 3, T, H, W) in [0, 1].
        **parameters: Those of `tvl1`.

    Returns:
        float32 (B, 2, T, H, W), pixels.

    Raises:
        ValueError: If clips have fewer than two frames.
    """
    if rgb.ndim != 5 or rgb.shape[2] < 2:
        raise ValueError(f"flow needs clips (B, 3, T, H, W) of at least 2 frames, not {tuple(rgb.shape)}")
    clips, _, length, height, width = rgb.shape
    a, b = (frames.transpose(1, 2).flatten(0, 1) for frames in (rgb[:, :, :-1], rgb[:, :, 1:]))
    flow = tvl1(a, b, **parameters).view(clips, length - 1, 2, height, width).transpose(1, 2)
    return torch.cat([flow, flow[:, :, -1:]], 2)


def grey(image: Tensor) -> Tensor:
    """Converts grey or RGB images (B, 1 or 3, H, W) to grey, float32 (B, H, W), with OpenCV's weights."""
    image = image.float()
    # No matrix product, which TF32 or autocast would compute in lower precision.
    return image[:, 0] if image.shape[1] == 1 else sum(w * image[:, k] for k, w in enumerate(GREY))


def _solve(
    a: Tensor, b: Tensor, *, scales: int, warps: int, scale_step: float, epsilon: float, median: int, **weights: float
) -> Tensor:
    """Solves TV-L1 for grey images (B, H, W) in [0, 1] on a GPU, from coarse to fine."""
    pyramid = [(a * 255, b * 255)]
    for _ in range(scales - 1):
        size = [round(n * scale_step) for n in pyramid[-1][0].shape[1:]]
        if min(size) < 16:
            break
        pyramid.append(tuple(_resize(image, size, 1 / scale_step) for image in pyramid[-1]))
    u = torch.zeros(2, *pyramid[-1][0].shape, device=a.device)
    for level, (a, b) in enumerate(reversed(pyramid)):
        if level:
            u = _resize(u, a.shape[1:]) / scale_step
        u = _solve_level(a, b, u, warps=warps, limit=epsilon**2 * a[0].numel(), median=median, **weights)
    return u.transpose(0, 1).contiguous()


def _solve_level(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    *,
    warps: int,
    limit: float,
    median: int,
    inner: int,
    outer: int,
    tau: float,
    lambda_: float,
    theta: float,
) -> Tensor:
    """Refines flow u (2, B, H, W) on one level of the pyramid; `limit` is epsilon² times the number of pixels."""
    # Only torch's CUDA builds include Triton.
    from d3d.flow import kernels

    next_image = torch.stack([b, *_gradient(b)], 1)
    state = torch.cat([u, torch.zeros(4, *a.shape, device=a.device)])
    spare = torch.empty_like(state)
    for _ in range(warps):
        u = state[:2]
        warped, ix, iy = warp(next_image, u.transpose(0, 1), padding="zeros").transpose(0, 1)
        data_term = torch.stack([ix, iy, warped - ix * u[0] - iy * u[1] - a])
        change = torch.full((len(a),), torch.inf, device=a.device)
        for _ in range(outer):
            if median > 1:
                kernels.median(state[:2], spare[:2], change, size=median, limit=limit)
                state[:2] = spare[:2]
            for steps in _split_steps(inner, kernels.HALO):
                old_change, change = change, torch.zeros_like(change)
                kernels.iterate(
                    data_term, state, spare, old_change, change, steps=steps, limit=limit,
                    l_t=lambda_ * theta, theta=theta, taut=tau / theta,
                )  # fmt: skip
                state, spare = spare, state
            if not (change > limit).any():
                break
    return state[:2]


def _split_steps(total: int, max_steps: int) -> Iterator[int]:
    for done in range(0, total, max_steps):
        yield min(max_steps, total - done)


def _gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of (B, H, W) in x and y, the border repeated."""
    padded = F.pad(image[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2, (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2


def _resize(image: Tensor, size: list[int], step: float | None = None) -> Tensor:
    """Resizes (..., H, W) by linear interpolation, as OpenCV does.

    torch's own always derives `step` from the sizes or rounds the size down, so its pyramid would differ.

    Args:
        image: (..., H, W).
        size: New height and width.
        step: Distance of the new pixel centres in old pixels; None: old size / new size.
    """
    for axis, n in zip((-2, -1), size, strict=True):
        old_n = image.shape[axis]
        position = (torch.arange(n, device=image.device) + 0.5) * (step or old_n / n) - 0.5
        position = position.clamp(0, old_n - 1)
        low = position.floor().long()
        weight = (position - low).view(-1, 1) if axis == -2 else position - low
        high = (low + 1).clamp(max=old_n - 1)
        image = torch.lerp(image.index_select(axis, low), image.index_select(axis, high), weight)
    return image
