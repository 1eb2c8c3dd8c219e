"""The TV-L1 experiment: its parameters, the size at which flow is computed, and OpenCV's implementation, evaluated on
exact flow."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from d3d.data import sprites
from d3d.flow.estimate import grey, tvl1
from d3d.flow.fields import endpoint_error, epe_metrics, occluded
from d3d.study.arms import TVL1_SIZES, TVL1_VARIANTS
from d3d.study.parameters import Tvl1Config
from d3d.study.run import Run
from d3d.study.schema import changed


def run(active_run: Run) -> None:
    """Writes one record per variant, per size and for OpenCV."""
    config, device = active_run.config, active_run.device
    metrics = evaluate_variants(config, device) | evaluate_sizes(config, device)
    metrics["opencv"] = evaluate_opencv(config, device)
    for arm, arm_metrics in metrics.items():
        active_run.write(arm, arm_metrics, seed=0)


@dataclass(frozen=True)
class FramePairs:
    """Consecutive frames with their exact flow.

    Attributes:
        first, second: (B, 3, H, W) in [0, 1], multiples of 1 / 255.
        flow: (B, 2, H, W), exact flow from first to second, pixels.
        regions: masks (B, H, W), bool: `target`, the target sprite; `occluded` and `visible`: whether a pixel is hidden
            in the second frame; `textured` and `flat`: the half of the pixels with the larger and the smaller gradient.
    """

    first: Tensor
    second: Tensor
    flow: Tensor
    regions: dict[str, Tensor]


def frame_pairs(config: Tvl1Config, device: torch.device | str = "cpu") -> FramePairs:
    """Renders the two middle frames of the first `config.pairs` clips of the split `val`."""
    clip = sprites.render(config.clip, "val", range(config.pairs), device=device)
    t = (config.clip.frames - 1) // 2
    first, second = ((clip.rgb[:, :, k] * 255).round() / 255 for k in (t, t + 1))
    hidden = occluded(clip.layer, clip.flow)[:, t]
    gradient = sum(g.abs() for g in torch.gradient(grey(first), dim=(1, 2)))
    textured = gradient > gradient.median()
    regions = {
        "target": clip.mask[:, t],
        "occluded": hidden,
        "visible": ~hidden,
        "textured": textured,
        "flat": ~textured,
    }
    return FramePairs(first, second, clip.flow[:, :, t], regions)


def evaluate_variants(config: Tvl1Config, device: torch.device | str = "cpu") -> dict[str, dict[str, float]]:
    """Returns, by arm, the metrics of `d3d.flow.epe_metrics` and `ms`, milliseconds per pair, all pairs in one call."""
    pairs = frame_pairs(config, device)
    metrics = {}
    for arm, overrides in TVL1_VARIANTS.items():
        flow, ms = timed_tvl1(pairs.first, pairs.second, **overrides)
        metrics[arm] = epe_metrics(flow, pairs.flow, **pairs.regions) | {"ms": ms}
    return metrics


def evaluate_opencv(config: Tvl1Config, device: torch.device | str = "cpu") -> dict[str, float]:
    """Returns the same metrics of OpenCV on one core, and `difference`, its mean EPE relative to our flow, pixels."""
    pairs = frame_pairs(config, device)
    flow, ms = timed_tvl1(pairs.first.cpu(), pairs.second.cpu(), workers=1)
    difference = endpoint_error(flow, tvl1(pairs.first, pairs.second).cpu()).mean().item()
    regions = {name: mask.cpu() for name, mask in pairs.regions.items()}
    return epe_metrics(flow, pairs.flow.cpu(), **regions) | {"ms": ms, "difference": difference}


def evaluate_sizes(config: Tvl1Config, device: torch.device | str = "cpu") -> dict[str, dict[str, float]]:
    """Returns, by arm, the metrics of flow for a network of `config.clip.size` pixels, computed at another size.

    The video has twice the network's size. `size_2` computes flow at the video's size and resizes the flow; `size_1`
    and `size_0.5` resize the frames to that multiple of the network's size first. Errors are in pixels at the
    network's size.
    """
    clip = config.clip
    video_config = changed(config, size=2 * clip.size, amplitude=2 * clip.amplitude, camera=2 * clip.camera)
    video = frame_pairs(video_config, device)
    true_flow = F.avg_pool2d(video.flow, 2) / 2
    target = F.avg_pool2d(video.regions["target"].float()[:, None], 2)[:, 0] > 0.5
    metrics = {}
    for arm, factor in TVL1_SIZES.items():
        frames = [x if factor == 2 else F.avg_pool2d(x, round(2 / factor)) for x in (video.first, video.second)]
        flow, ms = timed_tvl1(*frames)
        flow = F.interpolate(flow, size=true_flow.shape[2:], mode="area" if factor > 1 else "bilinear") / factor
        metrics[arm] = epe_metrics(flow, true_flow, target=target) | {"ms": ms}
    return metrics


def timed_tvl1(first: Tensor, second: Tensor, **parameters: float) -> tuple[Tensor, float]:
    """Returns the flow of `tvl1` and its milliseconds per pair, after a warm-up on all pairs (GPU) or on one (CPU)."""
    warmup = slice(None) if first.is_cuda else slice(1)
    tvl1(first[warmup], second[warmup], **parameters)
    _synchronize(first)
    start = time.perf_counter()
    flow = tvl1(first, second, **parameters)
    _synchronize(first)
    return flow, (time.perf_counter() - start) * 1000 / len(flow)


def _synchronize(image: Tensor) -> None:
    if image.is_cuda:
        torch.cuda.synchronize()
