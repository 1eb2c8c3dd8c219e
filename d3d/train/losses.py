"""Distances between what student and teacher say of clips, one value per clip (B,)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of logits (B, K), the study's reading of D3D; of pooled features (B, C), as in MARS; or of a
    layer (B, C, T, H, W)."""
    return (student - teacher).square().flatten(1).mean(1)


def kl(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """KL(teacher ‖ student) of softened predictions, in nats, times temperature² (Hinton et al. 2015, sec. 2)."""
    soft_student = F.log_softmax(student / temperature, 1)
    soft_teacher = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(soft_student, soft_teacher, reduction="none", log_target=True).sum(1) * temperature**2


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between how alike each clip is to all clips, by student and by teacher; each in [0, 4].

    Similarity-preserving distillation (Tung and Mori 2019) of pooled features, whose channels may differ in number.
    Likeness is the inner product, divided for each clip by the norm of its likenesses. The paper averages over all
    pairs of clips; here the pairs of a clip are summed, so that the distance does not shrink as batches grow.

    Args:
        student: (B, C), the clips of one micro-batch of one process.
        teacher: (B, D), of the same clips, or of their partners.
    """

    def likeness(features: Tensor) -> Tensor:
        return F.normalize(features @ features.T, dim=1)

    return (likeness(student) - likeness(teacher)).square().sum(1)


class Distance(NamedTuple):
    """A distance between student and teacher.

    Attributes:
        output: the output that is compared: logits, features (pooled, before the classifier), or layer (a projection
            of one layer, compared place by place).
        function: maps the outputs (B, …) of student and teacher to distances (B,).
    """

    output: str
    function: Callable[[Tensor, Tensor], Tensor]


DISTANCES = {
    "mse": Distance("logits", mse),
    "kl": Distance("logits", kl),
    "features": Distance("features", mse),
    "relations": Distance("features", relations),
    "activations": Distance("layer", mse),
    "flow_field": Distance("layer", mse),
}


def get_distance(name: str, *, temperature: float = 4.0) -> Distance:
    """Returns the distance `name` of DISTANCES; `temperature` is that of `kl`."""
    distance = DISTANCES[name]
    return distance._replace(function=partial(kl, temperature=temperature)) if distance.function is kl else distance
