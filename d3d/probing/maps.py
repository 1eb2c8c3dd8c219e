"""Attribution maps (by Captum): where in a clip a decision lies."""

from typing import NamedTuple

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, Occlusion
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from d3d.probing.margins import logit_margin
from d3d.s3dg.network import S3DG

# Frames are occluded in windows of this part of the clip.
WINDOWS = 8


class Attribution(NamedTuple):
    """Integrated gradients of a batch.

    Attributes:
        values: (B, C, T, H, W), attribution of every input value.
        delta: (B,), convergence delta: the sum of `values` minus the change of the output from baseline to clip.
    """

    values: Tensor
    delta: Tensor


def mean_colour(clips: Tensor) -> Tensor:
    """Clips of each clip's mean colour everywhere, which have neither appearance nor motion. (B, C, T, H, W)."""
    return clips.mean((2, 3, 4), keepdim=True).expand_as(clips)


def integrated_gradients(
    model: S3DG, clips: Tensor, labels: Tensor, *, baseline: Tensor | None = None, steps: int = 32
) -> Attribution:
    """Integrated gradients (Sundararajan et al. 2017) of the label's logit margin.

    Args:
        model: put into eval mode.
        clips: (B, C, T, H, W).
        labels: (B,).
        baseline: (B, C, T, H, W), where the path starts; from the clip without motion, attributions add up to what
            motion adds to the margin. None: `mean_colour`.
        steps: points at which the integral is evaluated.
    """
    model.eval()
    attributor = IntegratedGradients(lambda x, y: logit_margin(model(x), y))
    values, delta = attributor.attribute(
        clips,
        mean_colour(clips) if baseline is None else baseline,
        additional_forward_args=labels,
        n_steps=steps,
        internal_batch_size=max(len(clips), 16),
        return_convergence_delta=True,
    )
    return Attribution(values.detach(), delta.detach())


def grad_cam(model: S3DG, clips: Tensor, labels: Tensor, *, endpoint: str) -> Tensor:
    """Layer Grad-CAM (Selvaraju et al. 2017) of the label's logit, resized to the clips.

    Args:
        model: put into eval mode.
        clips: (B, C, T, H, W).
        labels: (B,).
        endpoint: layer whose activations are weighted.

    Returns:
        (B, T, H, W), not negative.

    Raises:
        ValueError: the network has no such endpoint.
    """
    if endpoint not in model.features:
        raise ValueError(f"no endpoint {endpoint!r}: the endpoints are {', '.join(model.features)}")
    model.eval()
    cam = LayerGradCam(model, model.features[endpoint]).attribute(clips, target=labels, relu_attributions=True)
    return LayerAttribution.interpolate(cam.detach(), tuple(clips.shape[2:]), interpolate_mode="trilinear")[:, 0]


@torch.no_grad()
def occlusion_in_time(model: S3DG, clips: Tensor, labels: Tensor) -> Tensor:
    """How far the label's margin falls when a few consecutive frames show the clip's mean colour.

    Args:
        model: put into eval mode.
        clips: (B, C, T, H, W).
        labels: (B,).

    Returns:
        (B, T), the fall when a frame and the others of its window are hidden; a window has an eighth of the frames, and
        one at least.
    """
    model.eval()
    _, channels, frames, height, width = clips.shape
    window = max(1, frames // WINDOWS)
    falls = Occlusion(lambda x, y: logit_margin(model(x), y)).attribute(
        clips,
        sliding_window_shapes=(channels, window, height, width),
        strides=(channels, window, height, width),
        baselines=mean_colour(clips),
        additional_forward_args=labels,
    )
    return falls[:, 0, :, 0, 0]


def magnitude(values: Tensor) -> Tensor:
    """The absolute attribution of each pixel: (B, C, T, H, W) or (B, T, H, W) -> (B, T, H, W)."""
    return values.abs().sum(1) if values.ndim == 5 else values.abs()


def fraction_in_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Fraction of the absolute attribution that lies within a mask.

    Args:
        values: (B, C, T, H, W) or (B, T, H, W).
        mask: (B, T, H, W).

    Returns:
        (B,), in [0, 1].
    """
    total = magnitude(values)
    return (total * mask).sum((1, 2, 3)) / total.sum((1, 2, 3)).clamp_min(1e-12)


def rank_correlation(a: Tensor, b: Tensor) -> np.ndarray:
    """Spearman's correlation of two maps of each clip, (B, T, H, W) each -> (B,); 0 where a map is constant."""
    ranks = [rankdata(x.flatten(1).cpu().numpy(), axis=1) for x in (a, b)]
    a, b = (x - x.mean(1, keepdims=True) for x in ranks)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)


def averaged(maps: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Averages maps (B, T, H, W) over blocks of `stride` frames, rows and columns, so that coarse ones compare."""
    shape = [max(1, -(-n // step)) for n, step in zip(maps.shape[1:], stride, strict=True)]
    return F.adaptive_avg_pool3d(maps, shape)
