"""What training minimises: cross-entropy with the labels and, of a student, the distance to its teacher."""

import torch
from torch import Tensor
from torch.nn import functional as F

from d3d.data.clips import Batch
from d3d.s3dg.network import S3DG
from d3d.study.parameters import TrainConfig
from d3d.train.losses import distance
from d3d.train.networks import Teacher


class Objective:
    """Losses and metrics of a batch; with a teacher the loss is cross-entropy + lambda_ · distance.

    config: a run's configuration.
    teacher: gives the student's target for each clip; None for a stream.
    """

    losses = ("loss", "cross_entropy", "distance")
    names = (*losses, "top1")

    def __init__(self, config: TrainConfig, teacher: Teacher | None = None) -> None:
        self.stream, self.dropout = config.network.stream, config.network.dropout
        self.teacher, self.weight = teacher, config.distillation.lambda_
        self.distance = distance(config.distillation.distance, temperature=config.distillation.temperature)

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that a batch must have."""
        return tuple(dict.fromkeys((self.stream, *(self.teacher.streams if self.teacher else ()))))

    def __call__(self, model: S3DG, batch: Batch, mask: Tensor) -> dict[str, Tensor]:
        """Per-clip values (B,) by name; `loss` carries the gradient.

        mask: what dropout leaves of the pooled features, bool (B, C, T', H', W').
        """
        device = batch.labels.device.type
        # Within a CUDA graph the casts of weights must be made again at every replay.
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
            pooled = model.pooled(batch.inputs[self.stream])
            logits = model.classify(pooled * mask / (1 - self.dropout)).float()
        cross_entropy = F.cross_entropy(logits, batch.labels, reduction="none")
        distances = torch.zeros_like(cross_entropy)
        if self.teacher:
            student = logits if self.distance.of == "logits" else pooled.float().mean((2, 3, 4))
            distances = self.distance.between(student, self.teacher(batch))
        loss = cross_entropy + self.weight * distances
        top1 = (logits.argmax(1) == batch.labels).float()
        return dict(zip(self.names, (loss, cross_entropy, distances, top1), strict=True))
