"""How a network is trained and distilled: the parameters of the notebooks, and of `d3d train`."""

from dataclasses import asdict, dataclass
from typing import Any

from d3d.data.load import DataConfig
from d3d.s3dg.checkpoints import STREAMS
from d3d.study.arms import MAX_SEED
from d3d.train.losses import DISTANCES

# What may change between a run and its continuation: where files lie, and what only says how fast it goes.
FREE = ("results", "workers", "save_every")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """How a stream is trained; the fields are the parameters of notebooks/experiments/train.ipynb.

    seed chooses training clips, weights and order. twin: 1 keeps the clips and draws other weights and another order,
    which is what another network of the same kind needs to be a fair control. batch_size: clips a step, over all
    processes, which each takes its share of in `accumulate` parts. sync_norm: batch norm over the clips of all
    processes, not of each part. workers: processes that decode files, 0 for one a core. save_every: seconds.
    """

    arm: str = ""
    stream: str = "rgb"
    seed: int = 0
    twin: int = 0
    epochs: int = 8
    workers: int = 0
    processes: int = 1
    sync_norm: bool = False
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.1
    width: float = 0.25
    dropout: float = 0.2
    save_every: float = 60.0
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
        for name in ("workers", "processes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 (as many as there are) or more, not {getattr(self, name)}")
        if self.accumulate < 1 or self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"accumulate must lie between 1 and half of batch_size ({self.batch_size // 2}), since batch norm "
                f"needs two clips a part, not {self.accumulate}"
            )
        for name in ("epochs", "learning_rate", "width", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, it is {self.weight_decay}")
        for name in ("momentum", "warmup", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")

    def input_of(self, stream: str) -> dict[str, Any]:
        """What a network of this stream is shown: what another must be shown to understand the same clips."""
        shown: dict[str, Any] = {"frames": self.frames, "size": self.size}
        if stream == "flow":
            shown |= {"bound": self.bound, "flow": self.flow}
        if self.dataset != "sprites":
            shown |= {"fps": self.fps, "short_side": self.short_side or self.size}
        return shown

    def fixed(self) -> dict[str, Any]:
        """The parameters that must stay for a run to be gone on with."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """How a student is trained; the fields are the parameters of notebooks/experiments/distill.ipynb.

    teacher: checkpoint that the student is tuned to predict. student: checkpoint it starts from, none for random
    weights. lambda_: weight of the distance; 0 trains on without a teacher, the control RGB-longer. temperature: of kl.
    """

    teacher: str = ""
    student: str = ""
    lambda_: float = 1.0
    distance: str = "mse"
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, not {self.distance!r}")
        if not self.lambda_ >= 0:
            raise ValueError(f"lambda_ must not be negative, it is {self.lambda_}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if self.lambda_ > 0 and not self.teacher:
            raise ValueError("a student with lambda_ above 0 needs teacher: the path of a trained stream's checkpoint")


CONFIGS: dict[str, type[TrainConfig]] = {"train": TrainConfig, "distill": DistillConfig}
