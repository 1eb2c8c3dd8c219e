"""The network that a run starts from, and the teacher that it learns from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from d3d.data.clips import Batch
from d3d.data.load import Data
from d3d.s3dg.checkpoints import CHANNELS, load_checkpoint, read_info
from d3d.s3dg.network import S3DG, fold, s3dg
from d3d.study.parameters import MAX_SEED, TrainConfig
from d3d.train.evaluate import infer_features, infer_logits, predict
from d3d.train.losses import get_distance

FORWARD = {"logits": infer_logits, "features": infer_features}


def build_network(
    config: TrainConfig,
    data: Data,
    device: torch.device | str = "cpu",
    *,
    report: Callable[[str], None] = print,
) -> S3DG:
    """Builds the network that a run starts from: the student's checkpoint, or random weights drawn from the seed.

    Args:
        config: the run's configuration.
        data: gives the classes. A checkpoint of other classes gets a new classifier, drawn from the seed.
        device: where the network is put.
        report: receives one line if the classifier is new.

    Raises:
        ValueError: if the checkpoint has another stream or width.
    """
    stream, width = config.network.stream, config.network.width
    network = s3dg(
        len(data.classes),
        in_channels=CHANNELS[stream],
        width=width,
        dropout=config.network.dropout,
        seed=config.run.seed + MAX_SEED * config.run.twin,
    )
    if not (checkpoint := config.distillation.student):
        return network.to(device)
    student, about = load_checkpoint(checkpoint)
    if about.stream != stream:
        raise ValueError(f"student {checkpoint} is a {about.stream} stream, but this run trains {stream!r}")
    if about.width != width:
        raise ValueError(f"student {checkpoint} has width {about.width}, but this run has width {width}")
    state = student.state_dict()
    if about.classes != data.classes:
        report(
            f"student {checkpoint} was trained on {len(about.classes)} other classes: it gets a new classifier for the "
            f"{len(data.classes)} classes of this data set"
        )
        state |= {name: value for name, value in network.state_dict().items() if name.startswith("Conv2d_0c_1x1.")}
    network.load_state_dict(state)
    return network.to(device)


@dataclass(frozen=True)
class Teacher:
    """A trained network, no longer trained itself, whose outputs for the training clips are the student's targets.

    Attributes:
        model: the network.
        stream: its input, rgb or flow.
        output: the output that the student learns, logits or features.
        precomputed: (N, D), its outputs for all training clips; None if every epoch sees other views of the clips.
    """

    model: S3DG
    stream: str
    output: str = "logits"
    precomputed: Tensor | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that it needs in a batch."""
        return () if self.precomputed is not None else (self.stream,)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Returns its logits (B, K) or features (B, C) for a batch."""
        if self.precomputed is not None:
            return self.precomputed[batch.index]
        return FORWARD[self.output](self.model, batch.inputs[self.stream])


def teacher_streams(config: TrainConfig) -> tuple[str, ...]:
    """The stream that is the teacher's input; empty without a teacher."""
    return (read_info(config.distillation.teacher).stream,) if config.distillation.lambda_ else ()


def load_teacher(config: TrainConfig, data: Data, device: torch.device | str = "cpu") -> Teacher | None:
    """Loads the teacher and, where all epochs see the same clips, computes its outputs for them; None if lambda_ is 0.

    Raises:
        ValueError: if the teacher has other classes or another input or, where features are compared, another width.
    """
    distillation = config.distillation
    if distillation.lambda_ == 0:
        return None
    model, about = load_checkpoint(distillation.teacher, classes=data.classes, device=device)
    run_input = config.data.input_spec(about.stream)
    if differing := [name for name, value in about.input.items() if run_input.get(name, value) != value]:
        raise ValueError(
            f"teacher {distillation.teacher} was trained on another input: "
            + ", ".join(f"{name} {about.input[name]}" for name in differing)
            + "; this run has "
            + ", ".join(f"{name} {run_input[name]}" for name in differing)
        )
    output = get_distance(distillation.distance).output
    if output == "features" and about.width != config.network.width:
        raise ValueError(
            f"teacher {distillation.teacher} has width {about.width}, the student {config.network.width}: "
            f"distance {distillation.distance!r} needs the same width"
        )
    model, clips = fold(model), data.splits["train"]
    if clips.augmented:
        return Teacher(model, about.stream, output)
    precomputed = torch.from_numpy(predict(model, clips, about.stream, forward=FORWARD[output])).to(device)
    return Teacher(model, about.stream, output, precomputed)
