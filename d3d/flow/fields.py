"""Flow fields: warping by them, how far two of them lie apart, and their colours."""

import torch
from torch import Tensor
from torch.nn import functional as F

SPEED_BINS = {"slow": (0.0, 0.5), "medium": (0.5, 1.5), "fast": (1.5, float("inf"))}  # pixels a frame


def warp(image: Tensor, flow: Tensor, *, padding: str = "border") -> Tensor:
    """`image` (B, C, H, W) looked up at x + flow (B, 2, H, W), bicubic: the next frame, carried back onto this one.

    padding: what lies outside of the image, its `border` repeated or `zeros`.
    """
    height, width = image.shape[-2:]
    y, x = _pixels(height, width, image.device)
    at = torch.stack(
        [(x + flow[:, 0]) * (2 / max(1, width - 1)) - 1, (y + flow[:, 1]) * (2 / max(1, height - 1)) - 1], -1
    )
    return F.grid_sample(image, at, mode="bicubic", padding_mode=padding, align_corners=True)


def occluded(layer: Tensor, flow: Tensor) -> Tensor:
    """Where what a pixel shows is hidden in the next frame or out of it: bool (B, T - 1, H, W).

    layer (B, T, H, W): which of the moving things a pixel shows. flow (B, 2, T, H, W), exact.
    """
    height, width = layer.shape[-2:]
    y, x = _pixels(height, width, layer.device)
    x, y = (x + flow[:, 0, :-1]).round().long(), (y + flow[:, 1, :-1]).round().long()
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    at = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    arrived = layer[:, 1:].flatten(2).gather(2, at.flatten(2)).view_as(at)
    return outside | (arrived != layer[:, :-1])


def endpoint_error(flow: Tensor, truth: Tensor) -> Tensor:
    """Distance in pixels (B, ..., H, W) between the ends of two flows (B, 2, ..., H, W)."""
    return torch.linalg.vector_norm(flow - truth, dim=1)


def score(flow: Tensor, truth: Tensor, **parts: Tensor) -> dict[str, float]:
    """Mean end-point error in pixels: `epe`, `epe/slow`, `epe/medium`, `epe/fast` by true speed (0.5, 1.5 px a frame).

    parts: masks (B, ..., H, W), each giving `epe/<name>` over the pixels where it holds, such as target or occluded.
    A part without a pixel is left out.
    """
    error, speed = endpoint_error(flow, truth), torch.linalg.vector_norm(truth, dim=1)
    parts = {name: (speed >= low) & (speed < high) for name, (low, high) in SPEED_BINS.items()} | parts
    scores = {"epe": error.mean().item()}
    return scores | {f"epe/{name}": error[part].mean().item() for name, part in parts.items() if part.any()}


def colours(flow: Tensor, *, bound: float) -> Tensor:
    """Flow (B, 2, H, W) as RGB uint8 (B, 3, H, W): hue is direction, saturation speed, full at `bound` pixels.

    The Middlebury wheel (Baker et al. 2011), as torchvision draws it; torchvision alone would scale every batch by its
    own fastest pixel. Raises ValueError where bound is not positive.
    """
    if not bound > 0:
        raise ValueError(f"bound must be positive, not {bound}")
    # Torchvision takes a second to import, and nothing else here needs it.
    from torchvision.utils import flow_to_image

    speed = torch.linalg.vector_norm(flow, dim=1, keepdim=True)
    flow = flow * (bound / speed.clamp(min=bound))
    ruler = torch.zeros_like(flow[..., :1])
    ruler[:, 0] = bound
    return flow_to_image(torch.cat([flow, ruler], -1))[..., :-1]


def _pixels(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel, each whole numbers (H, W)."""
    return torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
