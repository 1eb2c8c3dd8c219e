"""The parameters of distillation, and of the other lessons that a student can learn besides its labels."""

from dataclasses import dataclass

from d3d.study.schema import Group, parameter

# Distances that compare a student with its teacher at every place of a layer.
PLACEWISE = ("activations", "flow_field")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Group):
    """The teacher, the initial weights and the distillation loss of a student."""

    teacher: str = parameter("", "checkpoint of the teacher; may be empty only if lambda_ is 0 or for flow_field")
    second_teacher: str = parameter(
        "", "checkpoint of a stream of half 2, to teach half 1; teacher, of half 1, then teaches half 2"
    )
    student: str = parameter("", "checkpoint of the initial weights, trained here or imported; empty: random weights")
    outputs: str = parameter(
        "clip",
        "teacher's outputs: clip (of the same clip) | class_mean | shuffled (of another clip of its class)",
        choices=("clip", "class_mean", "shuffled"),
    )
    lambda_: float = parameter(1.0, "weight of the distillation loss; 0: no teacher", low=0, limit=10**6)
    distance: str = parameter(
        "mse",
        "mse, kl (logits) | features, relations (pooled) | activations | flow_field (no teacher)",
        choices=("mse", "kl", "features", "relations", "activations", "flow_field"),
    )
    layer: str = parameter(
        "Mixed_3c",
        "distances activations and flow_field: endpoint of S3D-G that is compared place by place",
        choices=("Mixed_3c", "Mixed_4b", "Mixed_4f"),
    )
    temperature: float = parameter(4.0, "softmax temperature of distance kl", above=0, least=0.0001, limit=10**6)
    label_smoothing: float = parameter(
        0.0, "share of each label that is spread evenly over all classes, in [0, 1)", low=0, below=1
    )

    def check(self) -> None:
        has_teacher = self.distance != "flow_field"
        if self.lambda_ > 0 and has_teacher and not self.teacher:
            raise ValueError("a student with lambda_ above 0 needs teacher: the path of a trained network's checkpoint")
        if self.lambda_ > 0 and self.teacher and not has_teacher:
            raise ValueError(
                "distance 'flow_field' learns the clips' flow itself, without a network: leave teacher empty"
            )
        if self.second_teacher and not self.teacher:
            raise ValueError(
                "second_teacher teaches half of the clips: it needs teacher, a stream of half 1, for the others"
            )
        if self.outputs == "class_mean" and self.second_teacher:
            raise ValueError(
                "outputs 'class_mean' would average over clips that a teacher has seen: use outputs 'clip' or "
                "'shuffled' with second_teacher"
            )
        if self.outputs == "class_mean" and self.distance in PLACEWISE:
            raise ValueError(
                f"outputs 'class_mean' is for logits and pooled features, not for distance {self.distance!r}, which "
                "compares places: use outputs 'clip' or 'shuffled'"
            )
