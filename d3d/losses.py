"""Distances between what the student and the teacher say about a clip."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of logits (B, K), averaged over both; the study's reading of D3D."""
    return F.mse_loss(student, teacher)


def kl(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """KL(teacher ‖ student) of softened predictions, in nats, times temperature² (Hinton et al. 2015, sec. 2)."""
    soft_student = F.log_softmax(student / temperature, 1)
    soft_teacher = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(soft_student, soft_teacher, reduction="batchmean", log_target=True) * temperature**2


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse, "kl": kl}
