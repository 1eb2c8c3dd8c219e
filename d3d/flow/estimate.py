"""TV-L1: optical flow from one image to the next, on a GPU, or through OpenCV on a CPU.

    flow = tvl1(a, b)                # (B, 2, H, W) in pixels, on the GPU of a and b, or through OpenCV

Flow is float32 (B, 2, ..., H, W) in pixels, channel 0 to the right, 1 down: the pixel at x shows in the next frame at
x + flow.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from d3d.flow.fields import warp

GREY = (0.299, 0.587, 0.114)
# Pixels that are solved together: 256 pairs at 256 x 256.
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
    """Flow (B, 2, H, W), in pixels, from images a to b: TV-L1 (Zach et al. 2007; Sánchez Pérez et al. 2013).

    a, b: (B, 1, H, W) grey or (B, 3, H, W) RGB in [0, 1], on one device. The algorithm and the defaults are OpenCV's
    DualTVL1. On a GPU all images are solved together; convergence is looked at every ten steps, not every one. On a
    CPU OpenCV itself does it, in `workers` processes, as many as there are cores unless said otherwise.

    tau: time step. lambda_: weight of the data term, for grey levels of 0 to 255. theta: tightness of the coupling.
    scales: levels of the pyramid, each scale_step as large as the one before and at least 16 pixels a side.
    warps: warpings a level. epsilon: a warping ends where the flow's root mean square change is less. inner: steps
    between median filters of `median` pixels a side (1: none, 3 or 5); outer: at most so many filters a warping.

    Raises ValueError for images of other or different shapes and for a parameter out of range.
    """
    if a.shape != b.shape or a.device != b.device:
        raise ValueError(
            f"a and b must be alike, they are {tuple(a.shape)} on {a.device}, {tuple(b.shape)} on {b.device}"
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
    numbers = counts | weights | {"scale_step": scale_step, "epsilon": epsilon, "median": median}
    a, b = grey(a), grey(b)
    if not a.numel():
        return a.new_zeros(len(a), 2, *a.shape[1:])
    if a.device.type == "cuda":
        size = max(1, CHUNK_PIXELS // a[0].numel())
        with torch.autocast("cuda", enabled=False):
            return torch.cat([_solve(*part, **numbers) for part in zip(a.split(size), b.split(size), strict=True)])
    # OpenCV is needed on a CPU only.
    from d3d.flow import opencv as tvl1_cpu

    flow = tvl1_cpu.solve(a.numpy(force=True), b.numpy(force=True), numbers, workers=workers)
    return torch.from_numpy(flow).to(a.device)


def tvl1_clip(rgb: Tensor, **parameters: float) -> Tensor:
    """Flow (B, 2, T, H, W) of clips (B, 3, T, H, W) in [0, 1] by `tvl1`: field t carries frame t onto t + 1.

    The last field is repeated, so that T frames have T fields. Raises ValueError for fewer than two frames.
    """
    if rgb.ndim != 5 or rgb.shape[2] < 2:
        raise ValueError(f"flow needs clips (B, 3, T, H, W) of at least 2 frames, not {tuple(rgb.shape)}")
    clips, _, frames, height, width = rgb.shape
    a, b = (part.transpose(1, 2).flatten(0, 1) for part in (rgb[:, :, :-1], rgb[:, :, 1:]))
    flow = tvl1(a, b, **parameters).view(clips, frames - 1, 2, height, width).transpose(1, 2)
    return torch.cat([flow, flow[:, :, -1:]], 2)


def grey(image: Tensor) -> Tensor:
    """Grey levels (B, H, W), float32, of grey or RGB images (B, 1 or 3, H, W), as OpenCV weighs them."""
    image = image.float()
    # Sums of products, which no mode of lower precision touches.
    return image[:, 0] if image.shape[1] == 1 else sum(w * image[:, k] for k, w in enumerate(GREY))


def _solve(
    a: Tensor, b: Tensor, *, scales: int, warps: int, scale_step: float, epsilon: float, median: int, **weights: float
) -> Tensor:
    """TV-L1 of grey images (B, H, W) in [0, 1], coarse to fine."""
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
        u = _scale(a, b, u, warps=warps, limit=epsilon**2 * a[0].numel(), median=median, **weights)
    return u.transpose(0, 1).contiguous()


def _scale(
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
    """One level of the pyramid: from flow u (2, B, H, W) to a better one."""
    # Triton comes with torch's CUDA builds only.
    from d3d.flow import kernels

    moving = torch.stack([b, *_gradient(b)], 1)
    state = torch.cat([u, torch.zeros(4, *a.shape, device=a.device)])
    spare = torch.empty_like(state)
    for _ in range(warps):
        u = state[:2]
        warped, ix, iy = warp(moving, u.transpose(0, 1), padding="zeros").transpose(0, 1)
        fixed = torch.stack([ix, iy, warped - ix * u[0] - iy * u[1] - a])
        change = torch.full((len(a),), torch.inf, device=a.device)
        for _ in range(outer):
            if median > 1:
                kernels.median(state[:2], spare[:2], change, size=median, limit=limit)
                state[:2] = spare[:2]
            for steps in _portions(inner, kernels.HALO):
                before, change = change, torch.zeros_like(change)
                kernels.iterate(
                    fixed, state, spare, before, change, steps=steps, limit=limit,
                    l_t=lambda_ * theta, theta=theta, taut=tau / theta,
                )  # fmt: skip
                state, spare = spare, state
            if not (change > limit).any():
                break
    return state[:2]


def _portions(total: int, most: int) -> Iterator[int]:
    """`total` in parts of at most `most`."""
    for done in range(0, total, most):
        yield min(most, total - done)


def _gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of (B, H, W) in x and y, the border repeated."""
    padded = F.pad(image[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2, (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2


def _resize(image: Tensor, size: list[int], step: float | None = None) -> Tensor:
    """Linear interpolation of (..., H, W) on pixel centres `step` apart, or as far as the sizes say, as OpenCV does it.

    torch's own takes the step from the sizes or truncates the size, and its pyramid would be another.
    """
    for axis, n in zip((-2, -1), size, strict=True):
        have = image.shape[axis]
        at = (torch.arange(n, device=image.device) + 0.5) * (step or have / n) - 0.5
        at = at.clamp(0, have - 1)
        low = at.floor().long()
        share = (at - low).view(-1, 1) if axis == -2 else at - low
        high = (low + 1).clamp(max=have - 1)
        image = torch.lerp(image.index_select(axis, low), image.index_select(axis, high), share)
    return image
