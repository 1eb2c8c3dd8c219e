"""One loop for streams and distillation.

    config = TrainConfig(stream="rgb", seed=3)
    model, history = fit(config, data)

Distillation is the same loop with a teacher's logits: the loss is cross-entropy + lambda_ · distance(student, teacher).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from d3d.checkpoints import load_checkpoint, read_about
from d3d.clips import STREAMS, Batch
from d3d.datasets import Data, DataConfig
from d3d.evaluate import accuracy, infer, predict
from d3d.losses import DISTANCES
from d3d.s3dg import S3DG, s3dg

# Seeds of training stay below; from here on they are twins' and the probes' own.
MAX_SEED = 1000


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """How a stream is trained; the fields are the parameters of notebooks/experiments/train.ipynb.

    seed chooses training clips, weights and order. twin: 1 keeps the clips and draws other weights and another order,
    which is what another network of the same kind needs to be a fair control. workers: processes that decode files, 0
    for one a core.
    """

    arm: str = ""
    stream: str = "rgb"
    seed: int = 0
    twin: int = 0
    epochs: int = 8
    workers: int = 0
    batch_size: int = 32
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.1
    width: float = 0.25
    dropout: float = 0.2
    results: str = "results/local"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stream not in STREAMS:
            raise ValueError(f"stream must be one of {', '.join(STREAMS)}, not {self.stream!r}")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed must lie between 0 and {MAX_SEED - 1}, not {self.seed}")
        if self.twin not in (0, 1):
            raise ValueError(f"twin must be 0 or 1, not {self.twin}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 for batch norm, not {self.batch_size}")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (one a core) or more, not {self.workers}")
        for name in ("epochs", "learning_rate", "width"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("momentum", "warmup", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """How a student is trained; the fields are the parameters of notebooks/experiments/distill.ipynb.

    teacher: checkpoint whose logits the student is tuned to predict. student: checkpoint it starts from, none for
    random weights. lambda_: weight of the distance; 0 trains on without a teacher, the control RGB-longer.
    """

    teacher: str = ""
    student: str = ""
    lambda_: float = 1.0
    distance: str = "mse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, not {self.distance!r}")
        if not self.lambda_ >= 0:
            raise ValueError(f"lambda_ must not be negative, it is {self.lambda_}")
        if self.lambda_ > 0 and not self.teacher:
            raise ValueError("a student with lambda_ above 0 needs teacher: the path of a trained stream's checkpoint")


def build(config: TrainConfig, data: Data, device: torch.device | str = "cpu") -> S3DG:
    """The network that a run starts from: random weights drawn by the seed, or the student's checkpoint."""
    if checkpoint := getattr(config, "student", ""):
        model, about = load_checkpoint(checkpoint, classes=data.classes, device=device)
        if about.stream != config.stream:
            raise ValueError(f"student {checkpoint} is a {about.stream} stream, the run trains {config.stream!r}")
        if about.width != config.width:
            raise ValueError(f"student {checkpoint} has width {about.width}, the run says {config.width}")
        model.dropout.p = config.dropout
        return model
    seed = config.seed + MAX_SEED * config.twin
    model = s3dg(
        len(data.classes),
        in_channels=STREAMS[config.stream],
        width=config.width,
        dropout=config.dropout,
        seed=seed,
    )
    return model.to(device)


@dataclass(frozen=True)
class Teacher:
    """A trained network that says what it makes of training clips, never trained itself.

    logits (N, K): what it made of all of them, computed once, where every epoch sees the same; else None.
    """

    model: S3DG
    stream: str
    logits: Tensor | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams of a batch that it looks at."""
        return () if self.logits is not None else (self.stream,)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Logits (B, K) of a batch."""
        return self.logits[batch.index] if self.logits is not None else infer(self.model, batch.inputs[self.stream])


def teacher_streams(config: DistillConfig) -> tuple[str, ...]:
    """The stream that the teacher needs as input; none where lambda_ is 0."""
    return (read_about(config.teacher).stream,) if config.lambda_ else ()


def load_teacher(config: DistillConfig, data: Data, device: torch.device | str = "cpu") -> Teacher | None:
    """The teacher of the training clips; None for lambda_ = 0. Raises ValueError for one of other classes."""
    if config.lambda_ == 0:
        return None
    model, about = load_checkpoint(config.teacher, classes=data.classes, device=device)
    clips = data.splits["train"]
    if clips.redrawn:
        return Teacher(model, about.stream)
    return Teacher(model, about.stream, torch.from_numpy(predict(model, clips, about.stream)).to(device))


def fit(
    model: S3DG,
    config: TrainConfig,
    data: Data,
    *,
    teacher: Teacher | None = None,
    report: Callable[[str], None] = print,
) -> list[dict[str, float]]:
    """Trains `model` in place by SGD with warm-up and cosine decay; returns a row an epoch, reported as it ends.

    With a teacher the loss is cross-entropy + lambda_ · distance of the logits. Every clip is used once an epoch, in
    batches of equal size give or take one and at most `batch_size`, but of at least two for batch norm.
    Raises FloatingPointError naming the epoch and the terms where the loss is not finite, ValueError where an epoch
    has not two clips that can be read.
    """
    clips = data.splits["train"]
    device = clips.labels.device
    # One number for a run: the order of the clips, and dropout, follow from the seed alone.
    order = np.random.default_rng((config.seed, config.twin))
    torch.manual_seed(config.seed + MAX_SEED * config.twin)
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    if len(clips) < 2:
        raise ValueError(f"training needs at least 2 clips, there is {len(clips)}")
    batches = min(math.ceil(len(clips) / config.batch_size), len(clips) // 2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warmup_cosine(config.warmup, config.epochs * batches))
    steps = [
        (rows, (config.seed, config.twin, epoch))
        for epoch in range(config.epochs)
        for rows in np.array_split(order.permutation(len(clips)), batches)
    ]
    streams = tuple(dict.fromkeys((config.stream, *(teacher.streams if teacher else ()))))
    coming = clips.batches(steps, streams)
    history = []
    for epoch in range(1, config.epochs + 1):
        model.train()
        total = {"loss": 0.0, "cross_entropy": 0.0, "distance": 0.0, "top1": 0.0}
        seen = 0
        for batch in islice(coming, batches):
            if len(batch.index) < 2:
                continue
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(batch.inputs[config.stream]).float()
            cross_entropy = F.cross_entropy(logits, batch.labels)
            distance = DISTANCES[config.distance](logits, teacher(batch)) if teacher else logits.new_zeros(())
            loss = cross_entropy + (config.lambda_ * distance if teacher else 0.0)
            terms = {"loss": loss, "cross_entropy": cross_entropy, "distance": distance}
            terms = {name: value.item() for name, value in terms.items()}
            if not math.isfinite(terms["loss"]):
                raise FloatingPointError(f"the loss is not finite in epoch {epoch}: {terms}; lower learning_rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            terms["top1"] = (logits.argmax(1) == batch.labels).float().mean().item()
            seen += len(batch.index)
            for name, value in terms.items():
                total[name] += value * len(batch.index)
        if not seen:
            raise ValueError(f"no training clip could be read in epoch {epoch}: {next(iter(data.refused.values()))}")
        total = {name: value / seen for name, value in total.items()}
        history.append({"epoch": epoch, **total})
        report(f"epoch {epoch:3d}/{config.epochs}  " + "  ".join(f"{k} {v:.3f}" for k, v in total.items()))
    return history


def score(model: S3DG, data: Data, stream: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics such as `iid/top1` and `iid/motion/top1` of every test split; logits, labels and groups behind them.

    Clips in files that could not be read do not count, and the record's `files` names them.
    """
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, clips in data.tests.items():
        logits, labels, groups = predict(model, clips, stream), clips.labels.cpu().numpy(), clips.groups
        if clips.redrawn:
            read = ~clips.table["path"].isin(clips.unread).to_numpy()
            if not read.any():
                raise ValueError(f"no clip of split {name!r} could be read: {next(iter(clips.unread.values()))}")
            logits, labels, groups = logits[read], labels[read], groups[read]
        metrics |= {f"{name}/{metric}": value for metric, value in accuracy(logits, labels, groups).items()}
        arrays |= {f"logits/{name}": logits, f"labels/{name}": labels, f"groups/{name}": groups}
    return metrics, arrays


def curves(history: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """A history as arrays `curve/<name>`, one value an epoch."""
    return {f"curve/{name}": np.array([row[name] for row in history]) for name in history[0]}


def _warmup_cosine(warmup: float, steps: int) -> Callable[[int], float]:
    """Linear rise over the first share of steps, then half a cosine to zero (Loshchilov and Hutter 2017)."""
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))

    return factor
