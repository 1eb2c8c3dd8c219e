"""The network that a run starts from, and the teacher that it learns from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from d3d.data.clips import PARTNER, Batch
from d3d.data.load import Data
from d3d.messages import one_line
from d3d.s3dg.checkpoints import CHANNELS, CheckpointInfo, load_checkpoint, read_info
from d3d.s3dg.folding import fold
from d3d.s3dg.network import S3DG, s3dg
from d3d.study.parameters import MAX_SEED, TrainConfig
from d3d.train.controls import class_means, draw_partners, halves_of
from d3d.train.evaluate import infer_activations, infer_features, infer_logits, predict
from d3d.train.lessons import FlowField
from d3d.train.losses import get_distance

FORWARD = {"logits": infer_logits, "features": infer_features}
# The mean output of a class is over the random views of this many epochs.
CLASS_MEAN_EPOCHS = 4


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
        data: the data set. If the checkpoint has other classes, it gets a new classifier, drawn from the seed.
        device: device of the network.
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
    student, info = load_checkpoint(checkpoint)
    _check_student_info(config, info)
    state = student.state_dict()
    if info.classes != data.classes:
        report(
            f"student {checkpoint} was trained on {len(info.classes)} other classes: it gets a new classifier for the "
            f"{len(data.classes)} classes of this data set"
        )
        state |= {name: value for name, value in network.state_dict().items() if name.startswith("Conv2d_0c_1x1.")}
    network.load_state_dict(state)
    return network.to(device)


def starts_from_rendered_clips(config: TrainConfig) -> bool:
    """Whether a run starts from a network that was trained on rendered clips, which stand in for the paper's videos."""
    checkpoint = config.distillation.student
    # Imported weights do not say what they were trained on; rendered clips have no frames per second.
    trained_on = read_info(checkpoint).input if checkpoint else {}
    return bool(trained_on) and "fps" not in trained_on


def check_student(config: TrainConfig) -> None:
    """Checks the student's checkpoint, if there is one; for use before the data are loaded.

    Raises:
        ValueError: if it is damaged, or has another stream or width.
        FileNotFoundError: if it does not exist.
    """
    if checkpoint := config.distillation.student:
        _check_student_info(config, read_info(checkpoint))


def _check_student_info(config: TrainConfig, info: CheckpointInfo) -> None:
    checkpoint, network = config.distillation.student, config.network
    if info.stream != network.stream:
        raise ValueError(f"student {checkpoint} is a {info.stream} stream, but this run trains {network.stream!r}")
    if info.width != network.width:
        raise ValueError(f"student {checkpoint} has width {info.width}, but this run has width {network.width}")


@dataclass(frozen=True)
class Teacher:
    """A frozen network whose outputs for the training clips are the student's regression targets.

    Attributes:
        model: the network.
        stream: the network's input, rgb or flow.
        output: the output that the student learns: logits, features, or layer, the activations of one.
        precomputed: (N, D), what the student learns for each training clip; None if it depends on the random view.
        partners: (N,), for each training clip the one whose own view the teacher sees; None: the same clip.
        layer: the endpoint of output `layer`.
    """

    model: S3DG
    stream: str
    output: str = "logits"
    precomputed: Tensor | None = None
    partners: np.ndarray | None = None
    layer: str = ""

    @property
    def channels(self) -> int:
        """The number of channels of the layer."""
        return self.model.endpoint_info[self.layer].channels

    @property
    def input(self) -> str:
        """The input of the teacher in a batch."""
        return self.stream if self.partners is None else PARTNER + self.stream

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that the teacher needs in a batch."""
        return () if self.precomputed is not None else (self.input,)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Returns the student's target for a batch: logits (B, K), features (B, C) or activations (B, C, T, H, W)."""
        if self.precomputed is not None:
            return self.precomputed[batch.index]
        if self.layer:
            return infer_activations(self.model, batch.inputs[self.input], self.layer)
        return FORWARD[self.output](self.model, batch.inputs[self.input])


@dataclass(frozen=True)
class TwoTeachers:
    """Two teachers, each of which teaches the clips that the other was trained on.

    Attributes:
        first, second: the teachers.
        seen_by_first: bool (N,), whether the clip whose outputs are learnt was among the first one's training clips.
    """

    first: Teacher
    second: Teacher
    seen_by_first: Tensor

    @property
    def partners(self) -> np.ndarray | None:
        """As in `Teacher`."""
        return self.first.partners

    @property
    def channels(self) -> int:
        """As in `Teacher`."""
        return self.first.channels

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that the teachers need in a batch."""
        return self.first.inputs

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Returns what `Teacher` does, by the teacher that has not seen the clip."""
        first, second = self.first(batch), self.second(batch)
        seen = self.seen_by_first[batch.index]
        return torch.where(seen.view(-1, *(1,) * (first.ndim - 1)), second, first)


# What a student learns besides its labels.
Lesson = Teacher | TwoTeachers | FlowField


def teacher_streams(config: TrainConfig) -> tuple[str, ...]:
    """Returns the stream that the student's lesson is about; empty without one."""
    distillation = config.distillation
    if distillation.lambda_ == 0:
        return ()
    return ("flow",) if distillation.distance == "flow_field" else (read_info(distillation.teacher).stream,)


def load_teacher(config: TrainConfig, data: Data, device: torch.device | str = "cpu") -> Lesson | None:
    """Loads the teacher, and computes what the student learns where it is the same in all epochs.

    Args:
        config: the run's configuration; its `outputs` says which outputs of the teacher the student learns.
        data: the data set, of which the split `train` is used.
        device: device of the teacher.

    Returns:
        The teacher, two of them, or the flow field that takes their place; None if lambda_ is 0.

    Raises:
        ValueError: if the teacher's classes or input differ or, for features, its width; if a second teacher and the
            first are not streams of two halves; or if outputs are shuffled and a class has one clip.
    """
    distillation, clips = config.distillation, data.splits["train"]
    if distillation.lambda_ == 0:
        return None
    partners = None
    if distillation.outputs == "shuffled":
        # Labelled clips have the partners that they have without unlabelled ones.
        parts = np.split(clips.labels.cpu().numpy(), [clips.num_labelled])
        drawn = [draw_partners(labels, data.classes, config.run.seed) for labels in parts]
        partners = np.concatenate([drawn[0], clips.num_labelled + drawn[1]])
    if distillation.distance == "flow_field":
        return FlowField(partners)
    if not distillation.second_teacher:
        return _load_network(config, distillation.teacher, data, partners, device)
    first, second = (
        _load_network(config, path, data, partners, device, half=half)
        for half, path in ((1, distillation.teacher), (2, distillation.second_teacher))
    )
    if first.stream != second.stream:
        raise ValueError(
            f"teacher is a {first.stream} stream and second_teacher a {second.stream} stream: give one kind"
        )
    halves = halves_of(clips, config.run.seed)
    seen_by_first = (halves if partners is None else halves[partners]) == 1
    return TwoTeachers(first, second, torch.from_numpy(seen_by_first).to(device))


def _load_network(
    config: TrainConfig,
    path: str,
    data: Data,
    partners: np.ndarray | None,
    device: torch.device | str,
    *,
    half: int = 0,
) -> Teacher:
    """Loads one network as a teacher; `half` is the half of the clips that it must have been trained on, 0: any."""
    distillation, clips = config.distillation, data.splits["train"]
    model, info = load_checkpoint(path, classes=data.classes, device=device)
    if half and (trained_on := info.input.get("half", 0)) != half:
        clips_seen = f"half {trained_on}" if trained_on else "all clips"
        raise ValueError(
            f"{path} was trained on {clips_seen}, but this teacher needs a stream trained with half {half}"
        )
    run_input = config.data.input_spec(info.stream)
    if differing := [name for name, value in info.input.items() if run_input.get(name, value) != value]:
        raise ValueError(
            f"teacher {path} was trained on another input: "
            + ", ".join(one_line(f"{name} {info.input[name]}", 80) for name in differing)
            + "; this run has "
            + ", ".join(f"{name} {run_input[name]}" for name in differing)
        )
    output = get_distance(distillation.distance).output
    if distillation.distance == "features" and info.width != config.network.width:
        raise ValueError(
            f"teacher {path} has width {info.width}, the student {config.network.width}: "
            "distance 'features' needs the same width"
        )
    model = fold(model)
    if output == "layer":
        # Activations of all clips would take more memory than the clips: they are computed anew in every step.
        return Teacher(model, info.stream, output, partners=partners, layer=distillation.layer)
    forward = FORWARD[output]
    if distillation.outputs == "class_mean":
        labels = clips.labels.cpu().numpy()
        # Views of the first epochs, the same as in training; clips without random views have one.
        seeds = [(config.run.seed, config.run.twin, epoch) for epoch in range(CLASS_MEAN_EPOCHS)]
        predictions = [
            predict(model, clips, info.stream, forward=forward, seeds=s) for s in (seeds if clips.augmented else [()])
        ]
        means = class_means(np.concatenate(predictions), np.tile(labels, len(predictions)))[: len(labels)]
        return Teacher(model, info.stream, output, precomputed=torch.from_numpy(means).to(device))
    if clips.augmented:
        return Teacher(model, info.stream, output, partners=partners)
    outputs = predict(model, clips, info.stream, forward=forward)
    target = outputs if partners is None else outputs[partners]
    return Teacher(model, info.stream, output, precomputed=torch.from_numpy(target).to(device))
