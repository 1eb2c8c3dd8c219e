"""Flow fields: warping, occlusion, end-point errors and colours."""

import torch
from torch import Tensor
from torch.nn import functional as F

SPEED_BINS = {"slow": (0.0, 0.5), "medium": (0.5, 1.5), "fast": (1.5, float("inf"))}  # pixels per frame


def warp(image: Tensor, flow: Tensor, *, padding: str = "border") -> Tensor:
    """Warps `image`, the next frame, back onto the current one, bicubic.

    Args:
        image: (B, C, H, W).
        flow: (B, 2, H, W), pixels.
        padding: Values outside of the image: its "border" repeated, or "zeros".

    Returns:
        (B, C, H, W): `image` sampled at x + flow.
    """
    height, width = image.shape[-2:]
    y, x = _pixel_grid(height, width, image.device)
    grid = torch.stack(
        [(x + flow[:, 0]) * (2 / max(1, width - 1)) - 1, (y + flow[:, 1]) * (2 / max(1, height - 1)) - 1], -1
    )
    return F.grid_sample(image, grid, mode="bicubic", padding_mode=padding, align_corners=True)


def occluded(layer: Tensor, flow: Tensor) -> Tensor:
    """Marks the pixels whose content is covered in the next frame or has left it.

    Args:
        layer: (B, T, H, W), index of the moving object that a pixel shows.
        flow: (B, 2, T, H, W), exact, pixels per frame.

    Returns:
        bool (B, T - 1, H, W).
    """
    height, width = layer.shape[-2:]
    y, x = _pixel_grid(height, width, layer.device)
    x, y = (x + flow[:, 0, :-1]).round().long(), (y + flow[:, 1, :-1]).round().long()
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    next_layer = layer[:, 1:].flatten(2).gather(2, index.flatten(2)).view_as(index)
    return outside | (next_layer != layer[:, :-1])


def endpoint_error(flow: Tensor, truth: Tensor) -> Tensor:
    """Computes the end-point error (EPE) in pixels, (B, ..., H, W), between two flows (B, 2, ..., H, W)."""
    return torch.linalg.vector_norm(flow - truth, dim=1)


def epe_metrics(flow: Tensor, truth: Tensor, **masks: Tensor) -> dict[str, float]:
    """Computes the mean EPE in pixels, over all pixels and over subsets of them.

    Args:
        flow: (B, 2, ..., H, W), pixels.
        truth: As flow.
        **masks: bool (B, ..., H, W), such as target or occluded.

    Returns:
        "epe"; "epe/slow", "epe/medium" and "epe/fast" by true speed (`SPEED_BINS`); and "epe/<name>" for each mask.
        Empty subsets are left out.
    """
    error, speed = endpoint_error(flow, truth), torch.linalg.vector_norm(truth, dim=1)
    masks = {name: (speed >= low) & (speed < high) for name, (low, high) in SPEED_BINS.items()} | masks
    metrics = {"epe": error.mean().item()}
    return metrics | {f"epe/{name}": error[mask].mean().item() for name, mask in masks.items() if mask.any()}


def colours(flow: Tensor, *, bound: float) -> Tensor:
    """Draws flow with the Middlebury colour wheel (Baker et al. 2011): hue is direction, saturation is speed.

    Unlike torchvision's `flow_to_image`, the scale is the same for every batch.

    Args:
        flow: (B, 2, H, W), pixels.
        bound: Speed of full saturation, pixels; faster flow is drawn with the same colour.

    Returns:
        RGB uint8 (B, 3, H, W).

    Raises:
        ValueError: If bound is not positive.
    """
    if not bound > 0:
        raise ValueError(f"bound must be positive, not {bound}")
    # Torchvision takes a second to import and is needed only here.
    from torchvision.utils import flow_to_image

    speed = torch.linalg.vector_norm(flow, dim=1, keepdim=True)
    flow = flow * (bound / speed.clamp(min=bound))
    # torchvision scales by the fastest pixel, so an extra column has speed `bound`.
    reference = torch.zeros_like(flow[..., :1])
    reference[:, 0] = bound
    return flow_to_image(torch.cat([flow, reference], -1))[..., :-1]


def _pixel_grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column index of every pixel, each int64 (H, W)."""
    return torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
