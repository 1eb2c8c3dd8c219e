"""Folding: each batch norm becomes part of the convolution before it."""

import copy

import torch
from torch import nn

from d3d.s3dg.blocks import Bias, ConvBlock
from d3d.s3dg.graphs import CapturedS3DG
from d3d.s3dg.network import S3DG


@torch.no_grad()
def fold(model: S3DG, *, capture: bool = False) -> S3DG | CapturedS3DG:
    """Copies the network for inference, with each batch norm folded into the convolution before it; same logits.

    Args:
        model: The network.
        capture: Whether the copy replays CUDA graphs, which is several times as fast for few or small clips.

    Returns:
        The copy, in inference mode.
    """
    model = copy.deepcopy(model).eval()
    for block in [m for m in model.modules() if isinstance(m, ConvBlock) and isinstance(m.norm, nn.BatchNorm3d)]:
        norm = block.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        block.conv.weight.mul_(scale[:, None, None, None, None])
        block.norm = Bias(len(scale)).to(scale)
        block.norm.bias.copy_(norm.bias - norm.running_mean * scale)
    return CapturedS3DG(model) if capture else model
