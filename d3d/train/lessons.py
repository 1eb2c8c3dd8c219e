"""What a student learns place by place at one of its layers: a teacher's activations there, or the flow field itself.

A linear head of the student's own, a 1x1x1 convolution, predicts the lesson from the student's activations. It starts
as a regression, is trained with the student, and is dropped at the end of the run. The idea is that of hints (Romero et
al. 2015).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3d.data.clips import PARTNER, Batch
from d3d.s3dg.network import S3DG
from d3d.train.team import SINGLE_PROCESS, Team

# A head starts as a ridge regression, with this penalty relative to a channel's variance, on the clips of some steps.
RIDGE, FIT_STEPS = 1e-3, 8


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


def standardise(x: Tensor) -> Tensor:
    """Gives each channel mean 0 and variance 1 over the batch and its places; one that hardly varies stays near 0.

    Args:
        x: (B, C, T, H, W), at least two values per channel.

    Returns:
        float32, same shape.
    """
    return F.batch_norm(x.float(), None, None, training=True)


def on_grid(lesson: Tensor, grid: Sequence[int]) -> Tensor:
    """Averages a lesson (B, C, T, H, W) to the cells of a grid (t, h, w) and standardises it.

    The mean squared error of a prediction is then the share of the variance that it leaves unexplained, for any layer.
    """
    is_on_grid = lesson.shape[2:] == torch.Size(grid)
    return standardise(lesson if is_on_grid else F.adaptive_avg_pool3d(lesson.float(), grid))


class Head(nn.Conv3d):
    """Predicts a lesson from the standardised activations of a layer; zero until it is fitted.

    The scale of its output bounds the curvature of the distance in its weights by 2, so that a learning rate which
    suits the student does not make it diverge, however few channels the lesson has and however alike the layer's are.

    Args:
        in_channels: channels of the layer.
        out_channels: channels of the lesson.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)
        nn.init.zeros_(self.weight)
        self.scale = (out_channels / in_channels) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


def build_head(model: S3DG, layer: str, channels: int) -> Head:
    """Builds a head that predicts a lesson of some channels from a layer of the student."""
    return Head(model.endpoint_info[layer].channels, channels).to(model.Conv2d_0c_1x1.weight.device)


@torch.no_grad()
def fit_head(
    head: Head,
    model: S3DG,
    lesson: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    *,
    stream: str,
    layer: str,
    team: Team = SINGLE_PROCESS,
) -> None:
    """Sets the head to the ridge regression of the lesson on the layer of the student as it is.

    A few hundred steps of SGD do not fit so many correlated channels: the student would be taught through a head that
    knows little of the lesson.

    Args:
        head: the head.
        model: the student, in training mode; it is not changed.
        lesson: a teacher, or the flow field.
        batches: this process's clips, with the inputs of student and lesson.
        stream: the input of the student.
        layer: the layer of the student.
        team: the processes that train together; all of them get the same head.
    """
    num_channels, device = head.in_channels, head.weight.device
    sums = torch.zeros(num_channels, num_channels + head.out_channels, dtype=torch.float64, device=device)
    buffers = [(b, b.clone()) for b in model.buffers()]  # running statistics, which training mode changes
    for batch in batches:
        lacks = torch.tensor(len(batch.labels) < 2, dtype=torch.int64, device=device)
        if int(team.all_reduce_(lacks)):
            continue  # files of a process cannot be read, and batch norms may work over all processes
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            activations = model.endpoints(batch.inputs[stream], (layer,))[layer]
        pairs = standardise(activations), on_grid(lesson(batch), activations.shape[2:])
        x, y = (z.transpose(0, 1).flatten(1).double() for z in pairs)
        sums += x @ torch.cat([x, y]).T / x.shape[1]
    for buffer, before in buffers:
        buffer.copy_(before)
    # On the CPU, where all processes solve it alike.
    covariances, products = team.all_reduce_(sums).cpu().split([num_channels, head.out_channels], 1)
    # Without a readable clip the head stays zero.
    ridge = RIDGE * covariances.diagonal().mean().clamp_min(1e-9) * torch.eye(num_channels, dtype=torch.float64)
    weight = torch.linalg.solve(covariances + ridge, products).T / head.scale
    head.weight.copy_(weight.reshape(head.weight.shape))
