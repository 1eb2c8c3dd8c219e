"""What a student learns place by place at one of its layers: a teacher's activations there, or the flow field itself.

A linear head of the student's own, a 1x1x1 convolution, predicts the lesson from the student's activations. It is
trained with the student and dropped with the end of the run. The idea is that of hints (Romero et al. 2015).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3d.data.clips import PARTNER, Batch
from d3d.s3dg.network import S3DG
from d3d.study.parameters import MAX_SEED, TrainConfig


@dataclass(frozen=True)
class FlowField:
    """The flow field of the clips as a lesson; it stands where a `Teacher` does, but there is no network.

    Attributes:
        partners: (N,), for each training clip the one whose own flow is learnt; None: the same clip.
        channels: number of channels of the lesson.
    """

    partners: np.ndarray | None = None
    channels: ClassVar[int] = 2

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input that the lesson needs in a batch."""
        return ("flow" if self.partners is None else f"{PARTNER}flow",)

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the flow that a flow stream would be fed, (B, 2, T, H, W) in [-1, 1]."""
        return batch.inputs[self.inputs[0]]


def on_grid(lesson: Tensor, grid: Sequence[int]) -> Tensor:
    """Averages a lesson to the cells of a grid and standardises it, so that all layers have distances of one size.

    Args:
        lesson: (B, C, T, H, W), at least two values per channel.
        grid: (t, h, w), the places of the layer that learns it.

    Returns:
        float32 (B, C, t, h, w), each channel with mean 0 and variance 1 over the batch. The mean squared error of a
        prediction is the share of the variance that it leaves unexplained; channels that hardly vary count for less.
    """
    cells = lesson.float() if lesson.shape[2:] == torch.Size(grid) else F.adaptive_avg_pool3d(lesson.float(), grid)
    return F.batch_norm(cells, None, None, training=True)


def build_head(config: TrainConfig, model: S3DG, channels: int) -> nn.Conv3d:
    """Builds the head that predicts a lesson from the student's layer, drawn from the seed.

    Args:
        config: the run's configuration; it names the layer.
        model: the student.
        channels: number of channels of the lesson.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed + MAX_SEED * config.run.twin)
        head = nn.Conv3d(model.endpoint_info[config.distillation.layer].channels, channels, 1)
    return head.to(model.Conv2d_0c_1x1.weight.device)
