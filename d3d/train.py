"""One loop for streams and distillation.

    config = TrainConfig(stream="rgb", seed=3)
    model, history = fit(config, data)

Distillation is the same loop with a teacher's logits: the loss is cross-entropy + lambda_ · distance(student, teacher).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from d3d.checkpoints import load_checkpoint, read_about
from d3d.datasets import STREAMS, Data, DataConfig
from d3d.evaluate import accuracy, predict
from d3d.losses import DISTANCES
from d3d.s3dg import S3DG, s3dg

# Seeds of training stay below; from here on they are twins' and the probes' own.
MAX_SEED = 1000


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """How a stream is trained; the fields are the parameters of notebooks/experiments/train.ipynb.

    seed chooses training clips, weights and order. twin: 1 keeps the clips and draws other weights and another order,
    which is what another network of the same kind needs to be a fair control.
    """

    arm: str = ""
    stream: str = "rgb"
    seed: int = 0
    twin: int = 0
    epochs: int = 8
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


def teacher_streams(config: DistillConfig) -> tuple[str, ...]:
    """The stream that the teacher needs as input; none where lambda_ is 0."""
    return (read_about(config.teacher).stream,) if config.lambda_ else ()


def teacher_logits(config: DistillConfig, data: Data, device: torch.device | str = "cpu") -> Tensor | None:
    """The teacher's logits (N, K) of the training clips, computed once: the clips are not augmented.

    None for lambda_ = 0. Raises ValueError for a teacher of other classes.
    """
    if config.lambda_ == 0:
        return None
    teacher, about = load_checkpoint(config.teacher, classes=data.classes, device=device)
    return torch.from_numpy(predict(teacher, data.splits["train"], about.stream)).to(device)


def fit(
    model: S3DG,
    config: TrainConfig,
    data: Data,
    *,
    teacher: Tensor | None = None,
    report: Callable[[str], None] = print,
) -> list[dict[str, float]]:
    """Trains `model` in place by SGD with warm-up and cosine decay; returns a row an epoch, reported as it ends.

    `teacher` holds logits (N, K) of the training clips. Every clip is used once an epoch, in batches of equal size
    give or take one and at most `batch_size`, but of at least two for batch norm.
    Raises FloatingPointError naming the epoch and the terms where the loss is not finite.
    """
    clips = data.splits["train"]
    device = clips.labels.device
    lambda_ = config.lambda_ if teacher is not None else 0.0
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
    history = []
    for epoch in range(1, config.epochs + 1):
        model.train()
        total = {"loss": 0.0, "cross_entropy": 0.0, "distance": 0.0, "top1": 0.0}
        for batch in np.array_split(order.permutation(len(clips)), batches):
            index = torch.from_numpy(batch).to(device)
            labels = clips.labels[index]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(clips.inputs(config.stream, index)).float()
            cross_entropy = F.cross_entropy(logits, labels)
            distance = DISTANCES[config.distance](logits, teacher[index]) if lambda_ else logits.new_zeros(())
            loss = cross_entropy + lambda_ * distance
            terms = {"loss": loss, "cross_entropy": cross_entropy, "distance": distance}
            terms = {name: value.item() for name, value in terms.items()}
            if not math.isfinite(terms["loss"]):
                raise FloatingPointError(f"the loss is not finite in epoch {epoch}: {terms}; lower learning_rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            terms["top1"] = (logits.argmax(1) == labels).float().mean().item()
            for name, value in terms.items():
                total[name] += value * len(batch) / len(clips)
        history.append({"epoch": epoch, **total})
        report(f"epoch {epoch:3d}/{config.epochs}  " + "  ".join(f"{k} {v:.3f}" for k, v in total.items()))
    return history


def score(model: S3DG, data: Data, stream: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics such as `iid/top1` and `iid/motion/top1` of every test split; logits, labels and groups behind them."""
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, clips in data.tests.items():
        logits = predict(model, clips, stream)
        labels, groups = clips.labels.cpu().numpy(), clips.table["group"].to_numpy(dtype=str)
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
