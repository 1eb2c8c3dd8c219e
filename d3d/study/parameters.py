"""Every parameter, declared once: its type, default, range and meaning.

The parameter cells of the notebooks, the checks of profiles, the flags of `d3d train`, the `params` of records and the
book's parameter table are all made from these declarations. Groups are composed into one configuration per experiment;
parameter names are unique over all groups, so notebooks and records list them without groups.
"""

from dataclasses import dataclass
from typing import Any

from d3d.messages import shown
from d3d.study.arms import NAME
from d3d.study.distillation import DistillationConfig
from d3d.study.schema import Group, parameter

STREAMS = ("rgb", "flow")
RENDERED_DATASETS = ("sprites",)
FILE_DATASETS = ("folder", "ucf101", "hmdb51", "jhmdb", "kinetics400", "kinetics600", "table", "shards", "ava")
# Upper bound of training seeds; twins and probes draw from seeds above it.
MAX_SEED = 1000
# Parameters that may differ when a run resumes: they change where files lie or how fast it runs, not its result.
CHANGEABLE_ON_RESUME = ("results", "workers", "save_every")
SPRITE_CLASSES = 16
# More than any data set of videos has.
MAX_CLIPS = 10**8


@dataclass(frozen=True, kw_only=True)
class ClipConfig(Group):
    """Size of a clip, and appearance and motion of the sprites in it."""

    rho: float = parameter(
        0.5, "sprites: probability that a clip of a motion class has its typical appearance, in [0, 1]", low=0, high=1
    )
    frames: int = parameter(8, "frames per clip, at least 2", low=2, limit=10_000)
    size: int = parameter(32, "height and width of a clip in pixels, at least 16", low=16, limit=10_000)
    # Up to 0.28, even the largest sprite, enlarged by √2, does not overlap itself around the torus.
    extent: float = parameter(
        0.18,
        "sprites: mean radius of the target as a fraction of the frame's side, in [0.05, 0.28]",
        low=0.05,
        high=0.28,
    )
    amplitude: float = parameter(1.5, "sprites: speed of the target, pixels per frame", low=0, limit=1000)
    contrast: float = parameter(1.0, "sprites: contrast of texture and colour, in (0, 1]", above=0, high=1)
    camera: float = parameter(0.3, "sprites: maximum speed of the background, pixels per frame", low=0, limit=1000)
    noise: float = parameter(
        0.05, "sprites: standard deviation of the sensor noise, for pixel values in [0, 1]", low=0, limit=100
    )


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Group):
    """Optical flow, the input of the temporal stream."""

    flow: str = parameter(
        "tvl1", "optical flow: tvl1 (as assumed of the paper) | exact (sprites only)", choices=("tvl1", "exact")
    )
    bound: float = parameter(
        5.0, "flow is clipped to ± bound pixels and divided by bound", above=0, least=0.0001, limit=10_000
    )
    flow_cache: str = parameter(
        "",
        "folder that keeps TV-L1 flow; video files: filled by `d3d flow`; empty: that of shards, or computed",
    )


@dataclass(frozen=True, kw_only=True)
class FilesConfig(Group):
    """Video files: the data set, where it lies, and how clips are cut from a video."""

    dataset: str = parameter(
        "sprites",
        "sprites, folder, ucf101, hmdb51, jhmdb, kinetics400, kinetics600, table, shards, ava",
        choices=(*RENDERED_DATASETS, *FILE_DATASETS),
    )
    root: str = parameter(
        "",
        "video files: their folder (dataset folder: a subfolder per class) or that of shards; table: the CSV file",
    )
    annotations: str = parameter("", "video files: folder of the data set's annotation files; empty: root")
    split: int = parameter(1, "ucf101, hmdb51 and jhmdb: official split, 1, 2 or 3", low=1, high=3)
    fps: float = parameter(25.0, "video files: frames per second of a clip", above=0, least=0.001, limit=1000)
    short_side: int = parameter(
        0,
        "video files: pixels of the short side after resizing, before a size x size crop; 0: size",
        low=0,
        limit=10_000,
    )
    view_clips: int = parameter(
        1, "video files: clips per test video, over which predictions are averaged", low=1, limit=1000
    )
    view_crops: int = parameter(
        1, "video files: crops per clip of a test video, 1 (centre) or more along the long side", low=1, limit=1000
    )
    memory: str = parameter(
        "auto",
        "video files: yes (decoded once, kept in memory) | no | auto (yes if half of the memory suffices)",
        choices=("auto", "yes", "no"),
    )
    repeated_frames: str = parameter(
        "keep",
        "video files: frames that repeat the one before: keep | drop (only in memory)",
        choices=("keep", "drop"),
    )
    damaged: str = parameter(
        "skip", "video files that cannot be decoded: skip (the record lists them) | raise", choices=("skip", "raise")
    )
    workers: int = parameter(0, "video files: decoding processes; 0: one per core", low=0, limit=1024)

    def check(self) -> None:
        if self.dataset in FILE_DATASETS and not self.root:
            raise ValueError(
                f"dataset {self.dataset!r} needs root: the folder of its videos, or for dataset 'table' the CSV file"
            )
        if self.repeated_frames == "drop" and self.memory == "no":
            raise ValueError("repeated_frames 'drop' needs memory 'yes' or 'auto': it looks at whole clips")
        for name in ("root", "annotations"):
            if self.dataset in RENDERED_DATASETS and getattr(self, name):
                raise ValueError(f"{name} is only for video files, not for dataset {self.dataset!r}")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Group):
    """The clips on which networks are trained and tested."""

    clip: ClipConfig = ClipConfig()
    flow: FlowConfig = FlowConfig()
    files: FilesConfig = FilesConfig()
    train_clips: int = parameter(
        512, "sprites: number of training clips, at least 16", low=SPRITE_CLASSES, limit=MAX_CLIPS
    )
    test_clips: int = parameter(
        256, "sprites: number of clips per test split, at least 16", low=SPRITE_CLASSES, limit=MAX_CLIPS
    )
    unlabelled_clips: int = parameter(
        0, "sprites: further training clips, for the distillation loss only", low=0, limit=MAX_CLIPS
    )
    half: int = parameter(
        0, "training clips in use: 0 (all) | 1 or 2 (one half of each class, drawn by the seed)", low=0, high=2
    )
    augment: str = parameter(
        "none",
        "sprites: none | roll (every epoch shifts each training clip on its torus, RGB and flow alike)",
        choices=("none", "roll"),
    )

    def check(self) -> None:
        if self.files.dataset in FILE_DATASETS and self.unlabelled_clips:
            raise ValueError(
                f"unlabelled_clips are for sprites only, not for dataset {self.files.dataset!r}: set it to 0"
            )
        if self.half and self.unlabelled_clips:
            raise ValueError("unlabelled_clips belong to no half: set them to 0, or half to 0")
        if self.files.dataset in FILE_DATASETS and self.augment != "none":
            raise ValueError(f"augment {self.augment!r} is for sprites only, not for dataset {self.files.dataset!r}")
        if self.files.dataset in FILE_DATASETS and self.flow.flow == "exact":
            raise ValueError(f"flow 'exact' exists for sprites only: dataset {self.files.dataset!r} needs flow 'tvl1'")
        if self.files.repeated_frames == "drop" and self.flow.flow_cache:
            raise ValueError(
                "repeated_frames 'drop' needs an empty flow_cache, which has the flow between all frames: it is "
                "computed at the start"
            )
        if self.files.short_side and self.files.short_side < self.clip.size:
            raise ValueError(
                f"short_side must be 0 (size) or at least size ({self.clip.size}), not {self.files.short_side}"
            )

    def input_spec(self, stream: str) -> dict[str, Any]:
        """Returns the parameters that define the input of a network of this stream.

        A checkpoint stores them; a teacher and its student must agree on them.
        """
        spec: dict[str, Any] = {"frames": self.clip.frames, "size": self.clip.size}
        if self.half:
            spec["half"] = self.half
        if stream == "flow":
            spec |= {"bound": self.flow.bound, "flow": self.flow.flow}
        if self.files.dataset in FILE_DATASETS:
            spec |= {"fps": self.files.fps, "short_side": self.files.short_side or self.clip.size}
            spec |= {"repeated_frames": self.files.repeated_frames}
        return spec


def refuse_boxes(data: DataConfig) -> None:
    """Raises ValueError for a data set whose clips have several actors and labels."""
    if data.files.dataset == "ava":
        raise ValueError(
            "dataset 'ava' has several labels per clip, but this takes one label per clip: use detect.ipynb, which "
            "trains on its boxes"
        )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Group):
    """Input and size of the network."""

    stream: str = parameter(
        "rgb", "input of the network: rgb (spatial stream) | flow (temporal stream)", choices=STREAMS
    )
    width: float = parameter(
        0.25, "multiplies the channels of S3D-G; 1.0: the paper's network", above=0, least=0.001, limit=8
    )
    dropout: float = parameter(0.2, "dropout probability before the classifier, in [0, 1)", low=0, below=1)


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig(Group):
    """SGD with momentum; the learning rate warms up, then follows half a cosine."""

    epochs: int = parameter(8, "passes over the training clips", low=1, limit=10**6)
    batch_size: int = parameter(
        32, "clips per step over all processes, at least 2 because of batch norm", low=2, limit=MAX_CLIPS
    )
    accumulate: int = parameter(
        1, "micro-batches per step and process, computed in turn to save memory", low=1, limit=MAX_CLIPS // 2
    )
    learning_rate: float = parameter(0.03, "peak learning rate, reached after the warm-up", above=0, limit=1e30)
    momentum: float = parameter(0.9, "momentum of SGD, in [0, 1)", low=0, below=1)
    weight_decay: float = parameter(0.0001, "weight decay of SGD", low=0, limit=10_000)
    warmup: float = parameter(0.1, "fraction of the steps in which the learning rate rises, in [0, 1)", low=0, below=1)
    sync_norm: bool = parameter(False, "batch norm statistics over the clips of all processes instead of per process")

    def check(self) -> None:
        if self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"accumulate must lie between 1 and half of batch_size ({self.batch_size // 2}), since batch norm "
                f"needs two clips per micro-batch, not {self.accumulate}"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig(Group):
    """One run: its name, its seed, and where its record is written."""

    arm: str = parameter("", "name of the record; empty: the stream, or for a student d3d (rgb_longer if lambda_ is 0)")
    seed: int = parameter(
        0,
        "0 to 999: seed of training sprites, initial weights and batch order; selects the networks to examine",
        low=0,
        high=MAX_SEED - 1,
    )
    twin: int = parameter(
        0, "1: a second run of the seed, with the same clips, but other initial weights and batch order", low=0, high=1
    )
    processes: int = parameter(
        1, "processes that train one network, one per GPU; 0: all GPUs of this machine", low=0, limit=1024
    )
    save_every: float = parameter(
        60.0, "seconds between saved states, from which a killed run resumes", above=0, limit=10**9
    )
    results: str = parameter("results/local", "folder of the records, weights and predictions")

    def check(self) -> None:
        if self.arm and not NAME.fullmatch(self.arm):
            raise ValueError(
                f"arm must be a name of lower-case letters, digits and _, such as d3d_mine, not {shown(self.arm)}"
            )


NO_TEACHER = DistillationConfig(lambda_=0.0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Group):
    """Training of a stream, or of a student if `distillation` names a teacher or initial weights."""

    run: RunConfig = RunConfig()
    network: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    distillation: DistillationConfig = NO_TEACHER

    def check(self) -> None:
        refuse_boxes(self.data)
        d = self.distillation
        if self.data.unlabelled_clips and (d.lambda_ == 0 or d.outputs == "class_mean" or d.second_teacher):
            raise ValueError(
                "unlabelled_clips are taught one by one, by one teacher: they need lambda_ above 0, outputs 'clip' or "
                "'shuffled', and no second_teacher"
            )


@dataclass(frozen=True, kw_only=True)
class FuseConfig(Group):
    """Ensembles: averages of the predictions of trained networks."""

    run: RunConfig = RunConfig()


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Group):
    """Comparisons of trained students with the flow stream."""

    run: RunConfig = RunConfig()


@dataclass(frozen=True, kw_only=True)
class EndpointConfig(Group):
    """The endpoint at which a network is examined."""

    endpoint: str = parameter("Mixed_4f", "endpoint of S3D-G that the dense decoder or Grad-CAM reads")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Group):
    """Linear probes (sprites only) and flow decoders on frozen endpoints."""

    run: RunConfig = RunConfig()
    network: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    examined: EndpointConfig = EndpointConfig()
    decoder_epochs: int = parameter(
        8,
        "passes over the training clips for training flow decoders and the network tuned for flow",
        low=1,
        limit=10**6,
    )
    pictures: int = parameter(0, "sprites: number of clips whose decoded dense flow is saved", low=0, limit=MAX_CLIPS)

    def check(self) -> None:
        refuse_boxes(self.data)
        if self.data.files.dataset not in RENDERED_DATASETS:
            if self.pictures:
                raise ValueError("pictures are kept of sprites only: set it to 0 for video files")
            return
        for name in ("train_clips", "test_clips"):
            if getattr(self.data, name) < 4 * SPRITE_CLASSES:
                raise ValueError(
                    f"probes compare clips within classes: {name} must be at least {4 * SPRITE_CLASSES}, "
                    f"four per class, not {getattr(self.data, name)}"
                )
        if self.pictures > self.data.test_clips:
            raise ValueError(
                f"pictures must lie between 0 and test_clips ({self.data.test_clips}), not {self.pictures}"
            )


@dataclass(frozen=True, kw_only=True)
class AttributionConfig(Group):
    """Attribution of a network's decision to the pixels of a clip."""

    run: RunConfig = RunConfig()
    network: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    examined: EndpointConfig = EndpointConfig()
    clips: int = parameter(16, "sprites: number of clips to attribute, the first of split iid", low=1, limit=MAX_CLIPS)
    steps: int = parameter(32, "sprites: steps of integrated gradients, at least 2", low=2, limit=10_000)
    films: int = parameter(4, "sprites: number of clips whose maps are kept for films", low=0, limit=100)

    def check(self) -> None:
        refuse_boxes(self.data)
        if self.data.files.dataset in RENDERED_DATASETS and self.clips > self.data.test_clips:
            raise ValueError(f"clips must lie between 1 and test_clips ({self.data.test_clips}), not {self.clips}")


@dataclass(frozen=True, kw_only=True)
class LeakConfig(Group):
    """Leak controls: how well a single frame predicts the class."""

    train: TrainConfig = TrainConfig()
    leak_clips: int = parameter(
        256,
        "number of test clips, at least 16; 16000 resolve two percentage points above chance",
        low=16,
        limit=MAX_CLIPS,
    )

    def check(self) -> None:
        if (frames := self.train.data.clip.frames) < 3:
            raise ValueError(f"leak controls read three frames in a row: frames must be at least 3, not {frames}")


@dataclass(frozen=True, kw_only=True)
class Tvl1Config(Group):
    """TV-L1 with different parameters, compared with exact flow."""

    run: RunConfig = RunConfig()
    clip: ClipConfig = ClipConfig()
    pairs: int = parameter(32, "number of pairs of frames, one per clip", low=1, limit=MAX_CLIPS)
