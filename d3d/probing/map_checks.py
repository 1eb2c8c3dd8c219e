"""Checks of attribution maps: do they depend on what the network learnt, and do they find what it uses?"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from d3d.probing.maps import magnitude, mean_colour
from d3d.probing.margins import logit_margin
from d3d.s3dg.network import S3DG, s3dg
from d3d.train.evaluate import set_statistics

# From which stage on weights are randomised: the classifier alone, then more and more, at last everything.
RANDOMISED_FROM = ("Conv2d_0c_1x1", "Mixed_5b", "Mixed_4b", "Mixed_3b", "Conv2d_1a_7x7")
# Of the random weights: no run has this seed, so that no untrained network is compared with itself.
RANDOM_SEED = 1000
# The fractions of a clip's pixels that are removed.
REMOVED = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


def randomised(model: S3DG, stage: str, clips: Tensor) -> S3DG:
    """A copy of a network with random weights in a stage and all that follow (Adebayo et al. 2018).

    Args:
        model: the network.
        stage: one of RANDOMISED_FROM.
        clips: (B, C, T, H, W), from which the copy's batch norm statistics are computed.
    """
    copy = s3dg(model.num_classes, in_channels=model.in_channels, width=model.width, seed=RANDOM_SEED)
    stages = list(model.features)
    kept = tuple(f"features.{name}." for name in (stages[: stages.index(stage)] if stage in stages else stages))
    state = copy.state_dict()
    copy.load_state_dict({k: v if k.startswith(kept) and kept else state[k] for k, v in model.state_dict().items()})
    return set_statistics(copy.to(clips.device), [clips])


@torch.no_grad()
def deletion_curve(model: S3DG, clips: Tensor, labels: Tensor, maps: Tensor) -> np.ndarray:
    """The label's mean margin while the pixels of the highest attribution give way to the clip's mean colour.

    Args:
        model: put into eval mode.
        clips: (B, C, T, H, W).
        labels: (B,).
        maps: (B, C, T, H, W) or (B, T, H, W), attributions.

    Returns:
        One mean margin for each fraction of REMOVED; the sooner it falls, the better the map finds what is used.
    """
    model.eval()
    order = magnitude(maps).flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    place = torch.empty_like(order).scatter_(1, order, ranks)
    background, curve = mean_colour(clips), []
    for fraction in REMOVED:
        removed = (place < fraction * order.shape[1]).view(len(clips), 1, *clips.shape[2:])
        curve.append(logit_margin(model(torch.where(removed, background, clips)), labels).mean().item())
    return np.array(curve)


def found_by(curve: np.ndarray, random_curve: np.ndarray) -> float:
    """The area between the deletion curve of random pixels and that of a map: above 0, it finds what is used."""
    return float(np.trapezoid(random_curve - curve, REMOVED))


def random_map(clips: Tensor) -> Tensor:
    """A map (B, T, H, W) of random values, always the same, for clips (B, C, T, H, W)."""
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.random((len(clips), *clips.shape[2:]), np.float32)).to(clips.device)


def kept_after_randomising(
    model: S3DG,
    clips: Tensor,
    own: Mapping[str, Tensor],
    make_maps: Callable[[S3DG], dict[str, Tensor]],
    similarity: Callable,
) -> dict[str, float]:
    """How much maps of a network with random weights resemble those of the network itself.

    Args:
        model: the network.
        clips: (B, C, T, H, W).
        own: the network's maps of the clips by method, (B, T, H, W) each.
        make_maps: returns those of another network.
        similarity: of two maps, such as `rank_correlation`.

    Returns:
        `<stage>/<method>`: the mean over the clips, for each stage of RANDOMISED_FROM.
    """
    return {
        f"{stage}/{method}": float(similarity(own[method], values).mean())
        for stage in RANDOMISED_FROM
        for method, values in make_maps(randomised(model, stage, clips)).items()
    }
