"""Which network a run starts from, and which it learns from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from d3d.data.clips import Batch
from d3d.data.load import Data
from d3d.s3dg.checkpoints import CHANNELS, load_checkpoint, read_info
from d3d.s3dg.network import S3DG, fold, s3dg
from d3d.study.parameters import MAX_SEED, TrainConfig
from d3d.train.evaluate import infer, infer_features, predict
from d3d.train.losses import distance

INFER = {"logits": infer, "features": infer_features}


def build(
    config: TrainConfig,
    data: Data,
    device: torch.device | str = "cpu",
    *,
    report: Callable[[str], None] = print,
) -> S3DG:
    """The network that a run starts from: random weights drawn by the seed, or the student's checkpoint.

    A checkpoint of other classes gets a new classifier for these, drawn by the seed, which `report` is told. Raises
    ValueError for a checkpoint of another stream or width.
    """
    stream, width = config.network.stream, config.network.width
    fresh = s3dg(
        len(data.classes),
        in_channels=CHANNELS[stream],
        width=width,
        dropout=config.network.dropout,
        seed=config.run.seed + MAX_SEED * config.run.twin,
    )
    if not (checkpoint := config.distillation.student):
        return fresh.to(device)
    found, about = load_checkpoint(checkpoint)
    if about.stream != stream:
        raise ValueError(f"student {checkpoint} is a {about.stream} stream, the run trains {stream!r}")
    if about.width != width:
        raise ValueError(f"student {checkpoint} has width {about.width}, the run says {width}")
    state = found.state_dict()
    if about.classes != data.classes:
        report(
            f"student {checkpoint} knows {len(about.classes)} other classes: it gets a new classifier for the "
            f"{len(data.classes)} of this data set"
        )
        state |= {name: value for name, value in fresh.state_dict().items() if name.startswith("Conv2d_0c_1x1.")}
    fresh.load_state_dict(state)
    return fresh.to(device)


@dataclass(frozen=True)
class Teacher:
    """A trained network that says what it makes of training clips, never trained itself.

    of: what is learnt from it, logits or features. outputs (N, D): what it made of all clips, computed once, where
    every epoch sees the same; else None.
    """

    model: S3DG
    stream: str
    of: str = "logits"
    outputs: Tensor | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams of a batch that it looks at."""
        return () if self.outputs is not None else (self.stream,)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Its logits (B, K) or features (B, C) of a batch."""
        if self.outputs is not None:
            return self.outputs[batch.index]
        return INFER[self.of](self.model, batch.inputs[self.stream])


def teacher_streams(config: TrainConfig) -> tuple[str, ...]:
    """The stream that the teacher needs as input; none where there is no teacher."""
    return (read_info(config.distillation.teacher).stream,) if config.distillation.lambda_ else ()


def load_teacher(config: TrainConfig, data: Data, device: torch.device | str = "cpu") -> Teacher | None:
    """The teacher of the training clips; None where there is none or its weight is 0.

    Raises ValueError for one of other classes or input, or whose features are not as many as the student's.
    """
    own = config.distillation
    if own.lambda_ == 0:
        return None
    model, about = load_checkpoint(own.teacher, classes=data.classes, device=device)
    shown = config.data.input_spec(about.stream)
    if other := [name for name, value in about.input.items() if shown.get(name, value) != value]:
        raise ValueError(
            f"teacher {own.teacher} was trained on another input: "
            + ", ".join(f"{name} {about.input[name]}" for name in other)
            + "; this run shows "
            + ", ".join(f"{name} {shown[name]}" for name in other)
        )
    of = distance(own.distance).of
    if of == "features" and about.width != config.network.width:
        raise ValueError(
            f"teacher {own.teacher} has width {about.width}, the student {config.network.width}: "
            f"distance {own.distance!r} compares as many features of both"
        )
    model, clips = fold(model), data.splits["train"]
    if clips.augmented:
        return Teacher(model, about.stream, of)
    outputs = torch.from_numpy(predict(model, clips, about.stream, outputs=INFER[of])).to(device)
    return Teacher(model, about.stream, of, outputs)
