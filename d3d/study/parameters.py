"""Every parameter, declared once: its type, default, range and meaning.

The parameter cells of the notebooks, profiles, `d3d train`, the `params` of a record and the book's parameter table all
come from here. Groups are composed; the name of a parameter is unique among all groups, so that notebooks and records
hold them flat.
"""

import re
from dataclasses import dataclass
from typing import Any

from d3d.study.schema import Group, parameter

STREAMS = ("rgb", "flow")
RENDERED = ("sprites",)
FILE_SETS = ("folder", "ucf101", "hmdb51", "kinetics400", "kinetics600", "table", "ava")
# Seeds of training stay below; from here on they are the twins' and the probes' own.
MAX_SEED = 1000
# What may change between a run and its resumption: where files lie, and what only says how fast it goes.
FREE = ("results", "workers", "save_every")
SPRITE_CLASSES = 16


@dataclass(frozen=True, kw_only=True)
class ClipConfig(Group):
    """One clip: how many frames of which size, and for sprites how they look and move."""

    rho: float = parameter(0.5, "sprites: how often appearance gives the class away, in [0, 1]", low=0, high=1)
    frames: int = parameter(8, "frames per clip, 2 or more", low=2)
    size: int = parameter(32, "height and width in pixels, 16 or more", low=16)
    # Grown by half of a factor of two, the largest sprite must not meet itself around the torus.
    extent: float = parameter(
        0.18, "sprites: mean radius of the target, of the frame's side, in [0.05, 0.28]", low=0.05, high=0.28
    )
    amplitude: float = parameter(1.5, "sprites: speed of the target, pixels per frame", low=0)
    contrast: float = parameter(1.0, "sprites: of texture and colour, in (0, 1]", above=0, high=1)
    camera: float = parameter(0.3, "sprites: fastest drift of the background, pixels per frame", low=0)
    noise: float = parameter(0.05, "sprites: standard deviation of the sensor noise, for pixels in [0, 1]", low=0)


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Group):
    """What the temporal stream sees."""

    flow: str = parameter("tvl1", "tvl1 as in the paper | exact (sprites only)", choices=("tvl1", "exact"))
    bound: float = parameter(5.0, "flow is clipped to ± bound pixels and divided by it", above=0)
    flow_cache: str = parameter(
        "", "video files: what `d3d flow` filled at this fps, short_side, bound | sprites: keeps TV-L1"
    )


@dataclass(frozen=True, kw_only=True)
class FilesConfig(Group):
    """Video files: which set, where it lies, and what of a video is shown."""

    dataset: str = parameter(
        "sprites",
        "sprites | folder (one per class) | ucf101 | hmdb51 | kinetics400 | kinetics600 | table",
        choices=(*RENDERED, *FILE_SETS),
    )
    root: str = parameter("", "video files: their folder, or the CSV file of dataset table")
    annotations: str = parameter("", "video files: folder of the set's annotation files; empty: root")
    split: int = parameter(1, "ucf101 and hmdb51: 1, 2 or 3", low=1, high=3)
    fps: float = parameter(25.0, "video files: frames per second", above=0)
    short_side: int = parameter(
        0, "video files: pixels to which the short side is resized, of which size x size is cut; 0: size", low=0
    )
    view_clips: int = parameter(1, "video files: stretches of a test video that predictions are averaged over", low=1)
    view_crops: int = parameter(1, "video files: squares of each, 1 (the centre) or more along the long side", low=1)
    damaged: str = parameter(
        "skip", "video files: skip what cannot be read and name it in the record | raise", choices=("skip", "raise")
    )
    workers: int = parameter(0, "video files: processes that decode; 0: one per core", low=0)

    def check(self) -> None:
        if self.dataset == "ava":
            raise ValueError("dataset 'ava' has several labels per clip, which no stream here is trained on")
        if self.dataset in FILE_SETS and not self.root:
            raise ValueError(f"dataset {self.dataset!r} needs root: the folder of its videos, or a table's CSV file")
        for name in ("root", "annotations"):
            if self.dataset in RENDERED and getattr(self, name):
                raise ValueError(f"{name} is only for video files, not for dataset {self.dataset!r}")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Group):
    """The clips that networks are trained and tested on."""

    clip: ClipConfig = ClipConfig()
    flow: FlowConfig = FlowConfig()
    files: FilesConfig = FilesConfig()
    train_clips: int = parameter(512, "sprites: training clips, 16 or more", low=SPRITE_CLASSES)
    test_clips: int = parameter(256, "sprites: clips per test split, 16 or more", low=SPRITE_CLASSES)

    def check(self) -> None:
        if self.files.dataset in FILE_SETS and self.flow.flow == "exact":
            raise ValueError(f"flow 'exact' is known of sprites only, dataset {self.files.dataset!r} has tvl1")
        if self.files.short_side and self.files.short_side < self.clip.size:
            raise ValueError(
                f"short_side must be 0 (size) or at least size ({self.clip.size}), not {self.files.short_side}"
            )

    def input_of(self, stream: str) -> dict[str, Any]:
        """What a network of this stream is shown: what another must be shown to understand the same clips."""
        shown: dict[str, Any] = {"frames": self.clip.frames, "size": self.clip.size}
        if stream == "flow":
            shown |= {"bound": self.flow.bound, "flow": self.flow.flow}
        if self.files.dataset in FILE_SETS:
            shown |= {"fps": self.files.fps, "short_side": self.files.short_side or self.clip.size}
        return shown


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Group):
    """The network."""

    stream: str = parameter(
        "rgb", "input of the network, rgb: the spatial stream | flow: the temporal stream", choices=STREAMS
    )
    width: float = parameter(0.25, "multiplies S3D-G's channels; 1.0 is the paper's network", above=0)
    dropout: float = parameter(0.2, "before the classifier, in [0, 1)", low=0, below=1)


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig(Group):
    """How it is trained: SGD with momentum, a warm-up and half a cosine."""

    epochs: int = parameter(8, "passes over the training clips", low=1)
    batch_size: int = parameter(32, "clips per step, over all processes; 2 or more, for batch norm", low=2)
    accumulate: int = parameter(1, "parts in which a process takes its share of them, where memory is short", low=1)
    learning_rate: float = parameter(0.03, "at its peak, after the warm-up", above=0)
    momentum: float = parameter(0.9, "of SGD, in [0, 1)", low=0, below=1)
    weight_decay: float = parameter(0.0001, "of SGD", low=0)
    warmup: float = parameter(0.1, "share of the steps in which the learning rate rises, in [0, 1)", low=0, below=1)
    sync_norm: bool = parameter(False, "batch norm over the clips of all processes, instead of each by its own")

    def check(self) -> None:
        if self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"accumulate must lie between 1 and half of batch_size ({self.batch_size // 2}), since batch norm "
                f"needs two clips per part, not {self.accumulate}"
            )


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Group):
    """What a student learns from, and where it starts."""

    teacher: str = parameter("", "checkpoint of the teacher; may stay empty only where lambda_ is 0")
    student: str = parameter("", "checkpoint that the student starts from, imported ones too; empty: random weights")
    lambda_: float = parameter(1.0, "weight of the distance to the teacher, 0 (no teacher) or more", low=0)
    distance: str = parameter(
        "mse",
        "mse: of logits, as in D3D | kl: of predictions | features: mse of pooled features, as in MARS",
        choices=("mse", "kl", "features"),
    )
    temperature: float = parameter(4.0, "of kl", above=0)

    def check(self) -> None:
        if self.lambda_ > 0 and not self.teacher:
            raise ValueError("a student with lambda_ above 0 needs teacher: the path of a trained stream's checkpoint")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Group):
    """One run: its name, its seed, where its record goes."""

    arm: str = parameter(
        "", "name of the record; empty: the stream, or for a student d3d (rgb_longer where lambda_ is 0)"
    )
    seed: int = parameter(
        0, "0 to 999: chooses training sprites, weights and order; of a probe, whose networks", low=0, high=MAX_SEED - 1
    )
    twin: int = parameter(0, "1: the same clips, but other weights and another order", low=0, high=1)
    processes: int = parameter(1, "processes that train together, one per GPU; 0: one for each GPU", low=0)
    save_every: float = parameter(60.0, "seconds between states from which a killed run resumes", above=0)
    results: str = parameter("results/local", "folder of the records; weights and predictions lie beside them")

    def check(self) -> None:
        if self.arm and not re.fullmatch(r"[a-z]\w*(\.\d+)?", self.arm, re.ASCII):
            raise ValueError(f"arm must be a name of small letters, digits and _, such as d3d_mine, not {self.arm!r}")


NO_TEACHER = DistillationConfig(lambda_=0.0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Group):
    """Training a stream, or a student where `distillation` says of what."""

    run: RunConfig = RunConfig()
    network: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    distillation: DistillationConfig = NO_TEACHER


@dataclass(frozen=True, kw_only=True)
class FuseConfig(Group):
    """Averaging the predictions of trained networks."""

    run: RunConfig = RunConfig()


@dataclass(frozen=True, kw_only=True)
class LookConfig(Group):
    """Where a network is looked into."""

    endpoint: str = parameter("Mixed_4f", "the endpoint that a dense decoder, or Grad-CAM, reads")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Group):
    """Linear probes and flow decoders on frozen endpoints."""

    run: RunConfig = RunConfig()
    network: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    look: LookConfig = LookConfig()
    decoder_epochs: int = parameter(
        8, "passes over the training clips to train flow decoders, and the tuned network", low=1
    )
    pictures: int = parameter(0, "clips whose decoded dense flow is kept", low=0)

    def check(self) -> None:
        for name in ("train_clips", "test_clips"):
            if getattr(self.data, name) < 4 * SPRITE_CLASSES:
                raise ValueError(
                    f"probes look within classes: {name} must be at least {4 * SPRITE_CLASSES}, four per class, "
                    f"not {getattr(self.data, name)}"
                )
        if self.pictures > self.data.test_clips:
            raise ValueError(
                f"pictures must lie between 0 and test_clips ({self.data.test_clips}), not {self.pictures}"
            )


@dataclass(frozen=True, kw_only=True)
class AttributionConfig(Group):
    """Where in a clip a network's decision lies."""

    run: RunConfig = RunConfig()
    network: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    look: LookConfig = LookConfig()
    clips: int = parameter(16, "clips of the split iid to attribute, the first ones", low=1)
    steps: int = parameter(32, "of the integral from the grey clip to the clip, 2 or more", low=2)

    def check(self) -> None:
        if self.clips > self.data.test_clips:
            raise ValueError(f"clips must lie between 1 and test_clips ({self.data.test_clips}), not {self.clips}")


@dataclass(frozen=True, kw_only=True)
class LeakConfig(Group):
    """What a single frame gives away."""

    train: TrainConfig = TrainConfig()
    leak_clips: int = parameter(256, "clips to test on, 16 or more; 16000 tell two points from chance", low=16)

    def check(self) -> None:
        if (frames := self.train.data.clip.frames) < 3:
            raise ValueError(f"the controls look at three frames in a row: frames must be at least 3, not {frames}")


@dataclass(frozen=True, kw_only=True)
class Tvl1Config(Group):
    """Which TV-L1?"""

    run: RunConfig = RunConfig()
    clip: ClipConfig = ClipConfig()
    pairs: int = parameter(32, "pairs of frames, one per clip", low=1)
