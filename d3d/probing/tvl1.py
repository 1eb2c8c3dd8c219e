"""Which TV-L1? Its parameters, the size it is computed at, and OpenCV's against ours, held against exact flow."""

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


def run(this: Run) -> None:
    """Writes a record of every variant, size and implementation."""
    found = variants(this.config, this.device) | sizes(this.config, this.device)
    found["opencv"] = opencv(this.config, this.device)
    for arm, metrics in found.items():
        this.write(arm, metrics, seed=0)


@dataclass(frozen=True)
class Frames:
    """Two frames that follow each other (B, 3, H, W), the exact flow between them (B, 2, H, W), and parts of it."""

    a: Tensor
    b: Tensor
    truth: Tensor
    parts: dict[str, Tensor]


def frames(config: Tvl1Config, device: torch.device | str = "cpu") -> Frames:
    """The two middle frames of the first clips of `val`, in 8 bits.

    Parts of the truth, bool (B, H, W): target, occluded, visible, and by the frame's gradient the textured half of the
    pixels and the flat half.
    """
    clip = sprites.render(config.clip, "val", range(config.pairs), device=device)
    t = (config.clip.frames - 1) // 2
    a, b = ((clip.rgb[:, :, k] * 255).round() / 255 for k in (t, t + 1))
    hidden = occluded(clip.layer, clip.flow)[:, t]
    steepness = sum(g.abs() for g in torch.gradient(grey(a), dim=(1, 2)))
    textured = steepness > steepness.median()
    parts = {"target": clip.mask[:, t], "occluded": hidden, "visible": ~hidden, "textured": textured, "flat": ~textured}
    return Frames(a, b, clip.flow[:, :, t], parts)


def variants(config: Tvl1Config, device: torch.device | str = "cpu") -> dict[str, dict[str, float]]:
    """Arm to metrics: end-point errors (see `d3d.flow.epe_metrics`) and `ms` a field, of all pairs solved together."""
    given = frames(config, device)
    found = {}
    for name, change in TVL1_VARIANTS.items():
        flow, ms = timed(given.a, given.b, **change)
        found[name] = epe_metrics(flow, given.truth, **given.parts) | {"ms": ms}
    return found


def opencv(config: Tvl1Config, device: torch.device | str = "cpu") -> dict[str, float]:
    """OpenCV on one core: errors, `ms` a field, and `difference`, the mean distance from ours in pixels."""
    given = frames(config, device)
    flow, ms = timed(given.a.cpu(), given.b.cpu(), workers=1)
    difference = endpoint_error(flow, tvl1(given.a, given.b).cpu()).mean().item()
    parts = {name: part.cpu() for name, part in given.parts.items()}
    return epe_metrics(flow, given.truth.cpu(), **parts) | {"ms": ms, "difference": difference}


def sizes(config: Tvl1Config, device: torch.device | str = "cpu") -> dict[str, dict[str, float]]:
    """Arm to metrics: flow for a network of `size` pixels, computed at another size of the same video.

    The video has twice the network's size. `size_2` computes flow on it and resizes the flow, `size_1` resizes the
    frames first. Errors are in pixels of the network's size.
    """
    clip = config.clip
    video = frames(changed(config, size=2 * clip.size, amplitude=2 * clip.amplitude, camera=2 * clip.camera), device)
    truth = F.avg_pool2d(video.truth, 2) / 2
    target = F.avg_pool2d(video.parts["target"].float()[:, None], 2)[:, 0] > 0.5
    found = {}
    for name, factor in TVL1_SIZES.items():
        shown = [x if factor == 2 else F.avg_pool2d(x, round(2 / factor)) for x in (video.a, video.b)]
        flow, ms = timed(*shown)
        flow = F.interpolate(flow, size=truth.shape[2:], mode="area" if factor > 1 else "bilinear") / factor
        found[name] = epe_metrics(flow, truth, target=target) | {"ms": ms}
    return found


def timed(a: Tensor, b: Tensor, **parameters: float) -> tuple[Tensor, float]:
    """`tvl1` and its milliseconds a field. A first run does not count: all pairs on a GPU, which compiles, else one."""
    first = slice(None) if a.is_cuda else slice(1)
    tvl1(a[first], b[first], **parameters)
    _wait(a)
    began = time.perf_counter()
    flow = tvl1(a, b, **parameters)
    _wait(a)
    return flow, (time.perf_counter() - began) * 1000 / len(flow)


def _wait(image: Tensor) -> None:
    if image.is_cuda:
        torch.cuda.synchronize()
