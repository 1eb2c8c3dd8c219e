"""What training minimises: cross-entropy with the labels plus, for a student, the distance to its teacher."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3d.data.clips import Batch
from d3d.s3dg.network import S3DG
from d3d.study.parameters import TrainConfig
from d3d.train.lessons import on_grid, standardise
from d3d.train.losses import get_distance
from d3d.train.networks import Lesson


class Objective:
    """Computes losses and metrics of a batch; with a teacher the loss is cross-entropy + lambda_ · distance.

    Args:
        config: a run's configuration.
        teacher: gives the student's regression target for each clip; None: the loss is cross-entropy alone.
        head: predicts the target from a layer of the student, and is trained with it; None unless a layer is compared.
    """

    loss_names = ("loss", "cross_entropy", "distance")
    metric_names = (*loss_names, "top1")

    def __init__(self, config: TrainConfig, teacher: Lesson | None = None, head: nn.Module | None = None) -> None:
        self.stream, self.dropout = config.network.stream, config.network.dropout
        self.teacher, self.lambda_ = teacher, config.distillation.lambda_
        self.label_smoothing = config.distillation.label_smoothing
        self.num_labelled = config.data.train_clips if config.data.unlabelled_clips else None
        self.head, self.layers = head, (config.distillation.layer,) if head else ()
        self.distance = get_distance(config.distillation.distance, temperature=config.distillation.temperature)

    @property
    def streams(self) -> tuple[str, ...]:
        """The inputs that a batch must have."""
        return tuple(dict.fromkeys((self.stream, *(self.teacher.inputs if self.teacher else ()))))

    def __call__(self, model: S3DG, batch: Batch, mask: Tensor) -> dict[str, Tensor]:
        """Computes the losses and metrics of each clip.

        Args:
            model: the network that is trained.
            batch: clips with the inputs of `streams`.
            mask: dropout mask, bool (B, C, T', H', W'), True where a pooled feature is kept.

        Returns:
            One value per clip (B,) for each of `metric_names`; `loss` is differentiable. With unlabelled clips,
            cross-entropy and accuracy are 0 for those and doubled for the others.
        """
        device = batch.labels.device.type
        # A CUDA graph must cast the weights again at every replay, so the casts are not cached.
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
            pooled, activations = model.pooled_and_endpoints(batch.inputs[self.stream], self.layers)
            logits = model.classify(pooled * mask / (1 - self.dropout)).float()
            predicted = self.head(standardise(activations[self.layers[0]])).float() if self.head else None
        cross_entropy = F.cross_entropy(logits, batch.labels, reduction="none", label_smoothing=self.label_smoothing)
        top1 = (logits.argmax(1) == batch.labels).float()
        if self.num_labelled is not None:
            # Half of a step's clips are labelled: the mean over all is then that of the labelled ones.
            weight = 2.0 * (batch.index < self.num_labelled)
            cross_entropy, top1 = cross_entropy * weight, top1 * weight
        distances = torch.zeros_like(cross_entropy)
        if self.teacher:
            target = self.teacher(batch)
            if predicted is not None:
                distances = self.distance.function(predicted, on_grid(target, predicted.shape[2:]))
            else:
                student = logits if self.distance.output == "logits" else pooled.float().mean((2, 3, 4))
                distances = self.distance.function(student, target)
        loss = cross_entropy + self.lambda_ * distances
        return dict(zip(self.metric_names, (loss, cross_entropy, distances, top1), strict=True))
