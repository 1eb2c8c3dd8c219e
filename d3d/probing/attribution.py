"""Attribution (by Captum): where in a clip a decision lies, and how much of it depends on motion."""

from typing import NamedTuple

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
from torch import Tensor

from d3d.data.clips import Clips
from d3d.data.load import load
from d3d.probing.networks import load_arm_network
from d3d.s3dg.network import S3DG
from d3d.study.arms import arms_examined_by
from d3d.study.run import Run


def run(active_run: Run) -> None:
    """Writes one record per examined arm; arms without weights in the run's results folder are skipped."""
    config = active_run.config
    with active_run.phase("data"):
        data = load(config.data, seed=config.run.seed, device=active_run.device)
    for arm in arms_examined_by("attribution"):
        network = load_arm_network(
            config.run.results,
            arm,
            config.run.seed,
            width=config.network.width,
            calibration_clips=data.splits["train"],
        )
        if network is None:
            continue
        model, _ = network
        with active_run.phase("attribute"):
            metrics, arrays = attribute_clips(
                model,
                data.splits["iid"],
                num_clips=config.clips,
                steps=config.steps,
                endpoint=config.examined.endpoint,
            )
        active_run.write(arm, metrics, arrays=arrays)


class Attribution(NamedTuple):
    """Integrated gradients of a batch.

    Attributes:
        values: (B, C, T, H, W), attribution of every input value.
        delta: (B,), convergence delta: the sum of `values` minus the change of the output from baseline to clip.
    """

    values: Tensor
    delta: Tensor


def integrated_gradients(model: S3DG, clips: Tensor, labels: Tensor, *, steps: int = 32) -> Attribution:
    """Integrated gradients (Sundararajan et al. 2017) of the label's logit margin.

    The baseline is the clip's mean colour everywhere, which has neither appearance nor motion.

    Args:
        model: put into eval mode.
        clips: (B, C, T, H, W).
        labels: (B,).
        steps: points at which the integral is evaluated.
    """
    model.eval()
    baseline = clips.mean((2, 3, 4), keepdim=True).expand_as(clips)
    attributor = IntegratedGradients(lambda x, y: logit_margin(model(x), y))
    values, delta = attributor.attribute(
        clips,
        baseline,
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


def fraction_in_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Fraction of the absolute attribution that lies within a mask.

    Args:
        values: (B, C, T, H, W) or (B, T, H, W).
        mask: (B, T, H, W).

    Returns:
        (B,), in [0, 1].
    """
    magnitude = values.abs().sum(1) if values.ndim == 5 else values.abs()
    return (magnitude * mask).sum((1, 2, 3)) / magnitude.sum((1, 2, 3)).clamp_min(1e-12)


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the mean logit: (B, K), (B,) -> (B,)."""
    return logits.gather(1, labels[:, None])[:, 0] - logits.mean(1)


def repeat_middle_frame(clips: Tensor) -> Tensor:
    """Replaces every frame by the middle one: all appearance, no motion. (B, C, T, H, W) -> the same."""
    middle = clips.shape[2] // 2
    return clips[:, :, middle : middle + 1].expand_as(clips)


def shuffle_frames(clips: Tensor, *, seed: int = 0) -> Tensor:
    """Puts the frames of all clips into one random order: all appearance, broken motion. (B, C, T, H, W)."""
    order = np.random.default_rng(seed).permutation(clips.shape[2])
    return clips[:, :, torch.from_numpy(order).to(clips.device)]


@torch.no_grad()
def margin_drops(model: S3DG, clips: Tensor, labels: Tensor, *, batch_size: int = 64) -> dict[str, float]:
    """Measures how much of the label's logit margin is lost when the motion is removed.

    Args:
        model: put into eval mode.
        clips: (N, C, T, H, W).
        labels: (N,).

    Returns:
        `frozen` (middle frame repeated) and `shuffled` (frames shuffled): the mean drop over the clips, in standard
        deviations of the margin of the intact clips.
    """
    model.eval()

    def margins(transform) -> Tensor:
        batches = zip(clips.split(batch_size), labels.split(batch_size), strict=True)
        return torch.cat([logit_margin(model(transform(x)), y) for x, y in batches])

    intact = margins(lambda x: x)
    std = intact.std().clamp_min(1e-12)
    return {
        name: ((intact - margins(transform)).mean() / std).item()
        for name, transform in {"frozen": repeat_middle_frame, "shuffled": shuffle_frames}.items()
    }


def attribute_clips(
    model: S3DG, clips: Clips, *, num_clips: int, steps: int, endpoint: str
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Attributes an RGB network's decisions on a split.

    Args:
        clips: the split, with masks of the target sprite.
        num_clips: number of clips to attribute, from the first; `motion_part/…` uses all.
        steps: as in `integrated_gradients`.
        endpoint: as in `grad_cam`.

    Returns:
        Metrics, and maps of the attributed clips. Metrics:
            `target_share`, `cam_target_share`: fraction of the attribution on the target sprite, by integrated
                gradients and by Grad-CAM.
            `target_area`: fraction of the pixels that the sprite covers.
            `delta`: mean absolute convergence delta relative to the mean absolute change of the margin.
            `motion_part/frozen`, `motion_part/shuffled`: `margin_drops`.
        Maps, float16 (num_clips, T, H, W), scaled to a maximum of 1 per clip: `integrated_gradients`, `grad_cam`.
    """
    first = slice(0, num_clips)
    x, labels, mask = clips.inputs("rgb", first), clips.labels[first], clips.mask[first].float()
    attribution = integrated_gradients(model, x, labels, steps=steps)
    cam = grad_cam(model, x, labels, endpoint=endpoint)
    margin_change = attribution.values.sum((1, 2, 3, 4))
    drops = margin_drops(model, clips.inputs("rgb", slice(None)), clips.labels)
    metrics = {
        "target_share": fraction_in_mask(attribution.values, mask).mean().item(),
        "cam_target_share": fraction_in_mask(cam, mask).mean().item(),
        "target_area": mask.mean().item(),
        "delta": (attribution.delta.abs().mean() / (margin_change.abs().mean() + 1e-12)).item(),
        **{f"motion_part/{name}": drop for name, drop in drops.items()},
    }
    maps = {
        "integrated_gradients": attribution.values.abs().sum(1).cpu().numpy().astype(np.float32),
        "grad_cam": cam.cpu().numpy().astype(np.float32),
    }
    return metrics, {name: _scale_to_max(x).astype(np.float16) for name, x in maps.items()}


def _scale_to_max(maps: np.ndarray) -> np.ndarray:
    """Divides each clip's map (N, T, H, W) by its maximum, so that it fits float16."""
    return maps / np.maximum(maps.max(axis=(1, 2, 3), keepdims=True), 1e-12)
