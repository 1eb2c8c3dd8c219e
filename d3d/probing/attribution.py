"""Where a decision lies in a clip, and how much of it is motion; Captum does the attributing."""

from typing import NamedTuple

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
from torch import Tensor

from d3d.data.clips import Clips
from d3d.data.load import load
from d3d.probing.networks import arm_network
from d3d.s3dg.network import S3DG
from d3d.study.arms import arms_examined_by
from d3d.study.run import Run


def run(this: Run) -> None:
    """Writes a record of every examined arm whose weights are below the run's results."""
    config = this.config
    with this.phase("data"):
        data = load(config.data, seed=config.run.seed, device=this.device)
    for arm in arms_examined_by("attribution"):
        found = arm_network(
            config.run.results, arm, config.run.seed, width=config.network.width, fit=data.splits["train"]
        )
        if found is None:
            continue
        with this.phase("attribute"):
            metrics, arrays = explain(
                found[0], data.splits["iid"], clips=config.clips, steps=config.steps, endpoint=config.examined.endpoint
            )
        this.write(arm, metrics, arrays=arrays)


class Attributed(NamedTuple):
    """values (B, C, T, H, W); delta (B,): how far they miss adding up to the change of the output."""

    values: Tensor
    delta: Tensor


def integrated_gradients(model: S3DG, clips: Tensor, labels: Tensor, *, steps: int = 32) -> Attributed:
    """Integrated gradients (Sundararajan et al. 2017) of the label's margin, from a grey clip of the same mean.

    clips (B, C, T, H, W), labels (B,). The baseline has the clip's mean colour and no structure, so that neither
    appearance nor motion is in it.
    """
    model.eval()
    baseline = clips.mean((2, 3, 4), keepdim=True).expand_as(clips)
    explain = IntegratedGradients(lambda x, y: margin(model(x), y))
    values, delta = explain.attribute(
        clips,
        baseline,
        additional_forward_args=labels,
        n_steps=steps,
        internal_batch_size=max(len(clips), 16),
        return_convergence_delta=True,
    )
    return Attributed(values.detach(), delta.detach())


def grad_cam(model: S3DG, clips: Tensor, labels: Tensor, *, endpoint: str) -> Tensor:
    """Layer Grad-CAM (Selvaraju et al. 2017) of the label's logit, (B, T, H, W), interpolated to the clip's size."""
    if endpoint not in model.features:
        raise ValueError(f"no endpoint {endpoint!r}: the endpoints are {', '.join(model.features)}")
    model.eval()
    cam = LayerGradCam(model, model.features[endpoint]).attribute(clips, target=labels, relu_attributions=True)
    return LayerAttribution.interpolate(cam.detach(), tuple(clips.shape[2:]), interpolate_mode="trilinear")[:, 0]


def share_on(mask: Tensor, values: Tensor) -> Tensor:
    """Share (B,) of the absolute attribution, (B, C, T, H, W) or (B, T, H, W), on a mask (B, T, H, W)."""
    size = values.abs().sum(1) if values.ndim == 5 else values.abs()
    return (size * mask).sum((1, 2, 3)) / size.sum((1, 2, 3)).clamp_min(1e-12)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y − mean z of each clip: (B, K), (B,) -> (B,)."""
    return logits.gather(1, labels[:, None])[:, 0] - logits.mean(1)


def frozen(clips: Tensor) -> Tensor:
    """The middle frame in place of every frame: all appearance, no motion."""
    middle = clips.shape[2] // 2
    return clips[:, :, middle : middle + 1].expand_as(clips)


def shuffled(clips: Tensor, *, seed: int = 0) -> Tensor:
    """The same frames in one random order: all appearance, broken motion."""
    order = np.random.default_rng(seed).permutation(clips.shape[2])
    return clips[:, :, torch.from_numpy(order).to(clips.device)]


@torch.no_grad()
def motion_part(model: S3DG, clips: Tensor, labels: Tensor, *, batch_size: int = 64) -> dict[str, float]:
    """How much of the label's margin is lost with the motion: mean over clips, in SDs of the intact margin.

    Gives `frozen` and `shuffled`.
    """
    model.eval()

    def margins(change) -> Tensor:
        batches = zip(clips.split(batch_size), labels.split(batch_size), strict=True)
        return torch.cat([margin(model(change(x)), y) for x, y in batches])

    intact = margins(lambda x: x)
    spread = intact.std().clamp_min(1e-12)
    return {
        name: ((intact - margins(change)).mean() / spread).item()
        for name, change in {"frozen": frozen, "shuffled": shuffled}.items()
    }


def explain(
    model: S3DG, split: Clips, *, clips: int, steps: int, endpoint: str
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics of an RGB network's decisions on a split, and the maps of its first `clips` clips as float16.

    `target_share` and `cam_target_share`: share of the attribution on the target, beside the target's `target_area`;
    `delta`: mean |convergence delta| in units of the mean |change of the margin|; `motion_part/…` over the whole split.
    """
    first = slice(0, clips)
    x, labels, mask = split.inputs("rgb", first), split.labels[first], split.mask[first].float()
    attributed = integrated_gradients(model, x, labels, steps=steps)
    cam = grad_cam(model, x, labels, endpoint=endpoint)
    change = attributed.values.sum((1, 2, 3, 4))
    parts = motion_part(model, split.inputs("rgb", slice(None)), split.labels)
    metrics = {
        "target_share": share_on(mask, attributed.values).mean().item(),
        "cam_target_share": share_on(mask, cam).mean().item(),
        "target_area": mask.mean().item(),
        "delta": (attributed.delta.abs().mean() / (change.abs().mean() + 1e-12)).item(),
        **{f"motion_part/{name}": value for name, value in parts.items()},
    }
    arrays = {
        "integrated_gradients": attributed.values.abs().sum(1).cpu().numpy().astype(np.float32),
        "grad_cam": cam.cpu().numpy().astype(np.float32),
    }
    return metrics, {name: _unit(array).astype(np.float16) for name, array in arrays.items()}


def _unit(maps: np.ndarray) -> np.ndarray:
    """Each clip's map divided by its maximum, so that float16 holds it."""
    return maps / np.maximum(maps.max(axis=(1, 2, 3), keepdims=True), 1e-12)
