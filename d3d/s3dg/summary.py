"""What a network consists of, stage by stage: channels, size of the output, number of parameters."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from d3d.s3dg.network import s3dg


class Stage(NamedTuple):
    """A stage of S3D-G: a layer, or a block of layers, whose output has a name.

    Attributes:
        endpoint: the name of its output.
        channels: of the output.
        frames: of the output; a stage may halve them.
        height: of the output, in positions.
        width: of the output, in positions.
        parameters: how many numbers it learns.
    """

    endpoint: str
    channels: int
    frames: int
    height: int
    width: int
    parameters: int


def stages(
    size: Sequence[int], *, num_classes: int, in_channels: int = 3, width: float = 1.0
) -> tuple[list[Stage], int]:
    """Describes a network without computing anything.

    Args:
        size: frames, height and width of a clip.
        num_classes: number of logits.
        in_channels: 3 for RGB, 2 for flow.
        width: multiplier of every channel count.

    Returns:
        The stages in order, and the number of parameters of the whole network, with its last layer.
    """
    with torch.device("meta"):
        model = s3dg(num_classes=num_classes, in_channels=in_channels, width=width)
    described = []
    for name, (channels, stride) in model.endpoint_info.items():
        output = (math.ceil(n / s) for n, s in zip(size, stride, strict=True))
        described.append(Stage(name, channels, *output, _count(model.features[name])))
    return described, _count(model)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
