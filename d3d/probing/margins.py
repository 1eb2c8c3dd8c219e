"""How much of a network's decision is lost when a clip keeps its frames but not their motion."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from d3d.data.clips import Clips
from d3d.s3dg.network import S3DG
from d3d.train.evaluate import predict

# How motion is removed.
REMOVALS = ("frozen", "shuffled")


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the mean logit: (B, K), (B,) -> (B,)."""
    return logits.gather(1, labels[:, None])[:, 0] - logits.mean(1)


def logit_spread(logits: np.ndarray) -> float:
    """The standard deviation of logits (N, K) from their clip's mean: the unit in which networks are compared."""
    return float((logits - logits.mean(1, keepdims=True)).std())


def repeat_middle_frame(clips: Tensor) -> Tensor:
    """Replaces every frame by the middle one: all appearance, no motion. (B, C, T, H, W) -> the same."""
    middle = clips.shape[2] // 2
    return clips[:, :, middle : middle + 1].expand_as(clips)


def shuffle_frames(clips: Tensor, *, seed: int = 0) -> Tensor:
    """Puts the frames of all clips into one random order: all appearance, broken motion. (B, C, T, H, W)."""
    order = np.random.default_rng(seed).permutation(clips.shape[2])
    return clips[:, :, torch.from_numpy(order).to(clips.device)]


def still(inputs: Tensor, stream: str) -> Tensor:
    """Removes the motion from inputs (B, C, T, H, W) of a stream: the middle frame throughout, or flow of zero."""
    return repeat_middle_frame(inputs) if stream == "rgb" else torch.zeros_like(inputs)


def without_motion(clips: Clips, stream: str, removal: str) -> Clips:
    """The same clips after one of REMOVALS, in what a stream sees."""
    inputs = clips.rgb if stream == "rgb" else clips.flow
    changed = still(inputs, stream) if removal == "frozen" else shuffle_frames(inputs)
    return replace(clips, **{stream: changed})


def motion_part(model: S3DG, clips: Clips, stream: str, *, logits: np.ndarray) -> dict[str, float]:
    """Measures how far the label's margin falls when the motion is removed.

    Frozen clips are not natural, and what is lost on them overstates what motion gives (Huang et al. 2018): read
    differences between networks.

    Args:
        model: the network.
        clips: a split of N clips.
        stream: what the network sees, rgb or flow.
        logits: the network's logits (N, K) for the clips.

    Returns:
        `frozen` and `shuffled`: the mean fall over the clips, in units of `logit_spread`; and where clips have groups,
        `frozen/<group>` and `shuffled/<group>`.
    """
    labels, groups = clips.labels.cpu(), clips.groups

    def margins(of: np.ndarray) -> np.ndarray:
        return logit_margin(torch.from_numpy(of), labels).numpy()

    intact, falls = margins(logits), {}
    for removal in REMOVALS:
        changed = margins(predict(model, without_motion(clips, stream, removal), stream))
        falls[removal] = (intact - changed) / logit_spread(logits)
    metrics = {removal: float(fall.mean()) for removal, fall in falls.items()}
    names = sorted(set(groups)) if len(set(groups)) > 1 else []
    return metrics | {f"{r}/{name}": float(falls[r][groups == name].mean()) for r in REMOVALS for name in names}
