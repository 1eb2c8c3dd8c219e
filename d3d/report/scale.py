"""What a reproduction on a real data set costs: a model of hours and bytes by stage and number of GPUs.

    values = quantities(changes={"cores_per_gpu": 64})
    stage_cost("d3d", "kinetics400", 64, values).hours

Every input is a `Quantity` that says whether a record measured it or it is assumed, and where it comes from. A stage
works at the speed of its slowest part: the GPUs with their all-reduce, decoding, or the storage.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from d3d.messages import shown
from d3d.study.arms import ARMS, Arm, similar
from d3d.study.plan import BENCH
from d3d.study.records import read_all

HOUR = 3600.0


@dataclass(frozen=True)
class Quantity:
    """An input of the model.

    Attributes:
        value: its value.
        unit: its unit.
        meaning: what it is.
        source: the record that measured it, or why it is assumed.
        measured: whether it comes from a record.
    """

    value: float
    unit: str
    meaning: str
    source: str
    measured: bool = False


@dataclass(frozen=True)
class DataSet:
    """Public numbers of a data set.

    Attributes:
        label: its name.
        videos: number of files whose flow is computed: those of training and validation.
        seconds: mean duration of a file.
        train: clips of an epoch.
        validation: clips that are evaluated.
        source: where the numbers come from.
    """

    label: str
    videos: int
    seconds: float
    train: int
    validation: int
    source: str


DATASETS = {
    "kinetics400": DataSet(
        "Kinetics-400", 261_072, 10.0, 241_190, 19_882,
        "files of the copy hosted by CVDF, as counted in its repository (cvdfoundation/kinetics-dataset, issue 15)",
    ),
    "kinetics600": DataSet(
        "Kinetics-600", 422_623, 10.0, 392_622, 30_001, "annotation files; many videos are no longer available",
    ),
    "ucf101": DataSet(
        "UCF101", 13_320, 7.21, 9_537, 3_783, "Soomro et al. 2012; clips of split 1, flow of all three splits",
    ),
    "hmdb51": DataSet(
        "HMDB-51", 6_766, 3.2, 3_570, 1_530, "official splits; the duration is about 95 frames at 30 per second",
    ),
    "ava": DataSet(
        "AVA v2.1", 299, 900.0, 210_795, 57_408,
        "235 and 64 videos of 15 minutes with 897 key frames each; the RoI head is not counted",
    ),
}  # fmt: skip

ASSUMED = {
    "stream_epochs": Quantity(
        110, "epochs", "of a stream from random weights",
        "S3D-G's authors report 80,000 steps of 56 × 6 clips, 111 epochs of Kinetics-400; the D3D paper's are unknown",
    ),
    "student_epochs": Quantity(30, "epochs", "of a student, with or without a teacher", "unknown for the D3D paper"),
    "view_clips": Quantity(10, "clips", "of a validation video", "usual for Kinetics; unknown for the D3D paper"),
    "view_crops": Quantity(3, "crops", "of each of these clips", "usual for Kinetics; unknown for the D3D paper"),
    "frames": Quantity(64, "frames", "of a clip", "released inference code"),
    "fps": Quantity(25, "1/s", "frames per second of video and flow", "field practice"),
    "cores_per_gpu": Quantity(16, "cores", "that decode for one GPU", "the machines of the records"),
    "gpus_per_host": Quantity(8, "GPUs", "of one host", "usual"),
    "clips_per_gpu": Quantity(
        32, "clips", "of a step, per GPU", "as measured; batches of 2,048 on 64 GPUs need a longer warm-up",
    ),
    "parameters": Quantity(
        9_526_128, "", "parameters of S3D-G for 400 classes, whose gradients are float32", "d3d.s3dg.S3DG",
    ),
    "network_bytes": Quantity(25e9, "byte/s", "between hosts, per host", "one 200 Gbit/s adapter"),
    "storage_bytes": Quantity(2e9, "byte/s", "that the shared storage delivers, to all hosts together", "a guess"),
    "storage_opens": Quantity(
        10_000, "1/s", "files that the shared storage opens, for all hosts together", "a guess; shards need fewer",
    ),
    "video_bytes": Quantity(
        53e3, "byte/s", "of H.264 with short side 256",
        "135 GB for 254,380 videos of Kinetics-400 (PaddleVideo, docs/en/dataset/k400.md)",
    ),
}  # fmt: skip

# The arms of a reproduction with the controls that tell motion from soft labels (`d3d.study.arms`).
NETWORKS = ("rgb", "rgb_twin", "flow", "d3d", "rgb_longer", "class_mean", "flow_shuffled", "rgb_teacher")
EXTRACTION, EVALUATION = "extraction", "evaluation"
STAGES = (EXTRACTION, *NETWORKS, EVALUATION)
# Epochs of views over which the teacher's mean outputs are computed (d3d.train.networks).
CLASS_MEAN_EPOCHS = 4
# A part has stopped scaling where twice the GPUs make the stage less than this many times as fast.
SCALES = 1.5
MAX_GPUS = 1024
GPU, DECODING, STORAGE, OPENS, START = "GPUs", "decoding", "storage: bytes", "storage: files", "start-up"


@dataclass(frozen=True)
class Cost:
    """What a stage costs.

    Attributes:
        stage: one of `STAGES`.
        dataset: one of `DATASETS`.
        gpus: number of GPUs.
        hours: wall-clock hours.
        disk_bytes: what the stage writes to disk and leaves there.
        start_hours: the part of `hours` before the first step.
        speeds: what each part of the machine could do alone, clips (extraction: fields) per second of all GPUs.
    """

    stage: str
    dataset: str
    gpus: int
    hours: float
    disk_bytes: float
    start_hours: float
    speeds: Mapping[str, float]

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.hours * self.gpus

    @property
    def limit(self) -> str:
        """The slowest part."""
        return min(self.speeds, key=self.speeds.get)


def quantities(bench: Path = BENCH, changes: Mapping[str, float] | None = None) -> dict[str, Quantity]:
    """Returns all inputs of the model by name.

    Args:
        bench: records of `make bench`, as a folder or a published file.
        changes: values that replace measured or assumed ones.

    Raises:
        LookupError: a record or a metric is missing.
        ValueError: `changes` names no input, or a value is not positive and finite.
    """
    values = ASSUMED | measured(bench)
    for name, value in (changes or {}).items():
        if name not in values:
            raise ValueError(f"no input {shown(name)} of the model of costs: {similar(name, values)}")
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {shown(value)}")
        values[name] = replace(values[name], value=value, source="changed by the reader", measured=False)
    return values


def measured(bench: Path) -> dict[str, Quantity]:
    """Returns the inputs that records hold; raises LookupError where a record or a metric is missing."""
    records = {record.arm: record for record in read_all(bench, ["bench"])}

    def metric(arm: str, name: str) -> float:
        return records[arm].metrics[name]

    def quantity(value: float, unit: str, meaning: str, arm: str, source: str) -> Quantity:
        return Quantity(value, unit, meaning, f"record `{arm}`: {source}", measured=True)

    workers = records["decode"].params["cores"]
    decoded = metric("decode", f"workers{workers}/clips/clips_per_second")
    shares = [metric("memory", f"{stream}/decoded/clips_per_second") for stream in ("flow", "rgb")]
    batch = int(metric("s3dg", "inference/batch"))
    inference = f"inference/bf16/batch{batch}/s3dg_folded_captured/clips_per_second"
    step, processes, ring = _ring_seconds(records["scaling"].metrics)
    return {
        "train_rate": quantity(
            metric("scaling", "large_clips/processes1/clips_per_second"), "clips/s", "training steps of one GPU",
            "scaling", "32 clips of 64 × 224 × 224",
        ),
        "inference_rate": quantity(
            metric("s3dg", inference), "clips/s", "inference of one GPU", "s3dg", f"{batch} clips of 64 × 224 × 224"
        ),
        "ring_seconds": quantity(
            ring, "s", "by which a step is longer, per 2 (n − 1) / n, on n GPUs of one host", "scaling",
            f"a step takes {1e3 * step:.1f} ms longer on {processes} GPUs than on one",
        ),
        "decode_rate": quantity(
            decoded / workers, "clips/s", "RGB clips decoded by one core", "decode",
            f"{workers} processes, videos of 340 × 256 pixels made for the bench",
        ),
        "flow_decode_ratio": quantity(
            shares[0] / shares[1], "", "flow clips decoded per RGB clip", "memory", "16 × 112 × 112"
        ),
        "flow_rate": quantity(
            metric("flow_set", "set/fields_per_second"), "fields/s", "TV-L1 of one GPU, from file to file", "flow_set",
            "short side 256",
        ),
        "field_bytes": quantity(
            metric("flow_set", "bytes_per_field"), "byte", "of a field in the cache, 8 bits and FFV1", "flow_set",
            "a smooth pan, which compresses far better than real video",
        ),
        "start_seconds": quantity(
            metric("start", "to_first_step/seconds"), "s", "from the start of a process to its first step", "start",
            "without reading files",
        ),
    }  # fmt: skip


def _ring_seconds(scaling: Mapping[str, float]) -> tuple[float, int, float]:
    """What several GPUs cost a step: seconds, on how many GPUs, and per unit of the ring's traffic, 2 (n - 1) / n."""
    counts = [n for n in (2, 4, 8) if f"large_clips/processes{n}/ms_per_step" in scaling]
    count = max(counts, default=2)
    longer = scaling[f"large_clips/processes{count}/ms_per_step"] - scaling["large_clips/processes1/ms_per_step"]
    seconds = max(0.0, longer) / 1e3
    return seconds, count, seconds / _ring(count)


def _ring(count: int) -> float:
    """Traffic of a ring all-reduce per process, in multiples of the gradients' bytes."""
    return 2 * (count - 1) / count


def stage_cost(
    stage: str,
    dataset: str = "kinetics400",
    gpus: int = 1,
    values: Mapping[str, Quantity] | None = None,
    *,
    evaluated: Sequence[str] = NETWORKS,
) -> Cost:
    """Computes what one stage of a reproduction costs.

    Args:
        stage: `extraction` (TV-L1 of all videos), an arm of `NETWORKS` (training it once, and its test views after),
            or `evaluation` (on many views).
        dataset: a key of `DATASETS`.
        gpus: number of GPUs, of as few hosts as possible.
        values: the inputs; None: `quantities()`.
        evaluated: the arms of stage `evaluation`.

    Raises:
        ValueError: there is no such stage or data set, or `gpus` is not positive.
    """
    for name, value, known in (("stage", stage, STAGES), ("dataset", dataset, DATASETS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {shown(value)}")
    if gpus < 1:
        raise ValueError(f"gpus must be at least 1, not {shown(gpus)}")
    model = _Model(DATASETS[dataset], gpus, values or quantities())
    return replace(model.cost(stage, evaluated), dataset=dataset)


def disk_bytes(dataset: str, values: Mapping[str, Quantity]) -> dict[str, float]:
    """Returns the bytes of a data set's videos and of its flow."""
    model = _Model(DATASETS[dataset], 1, values)
    return {"videos": model.video_bytes, "flow": model.flow_bytes}


def stops_scaling(stage: str, dataset: str, values: Mapping[str, Quantity]) -> dict[str, int | None]:
    """Finds for each part how many GPUs it can serve, if GPUs and their cores are all else that counts.

    Returns:
        For each part the smallest power of two from which twice the GPUs make the stage less than 1.5 times as fast;
        None: no such number up to 1,024.
    """
    one = stage_cost(stage, dataset, 1, values)
    work = one.speeds[one.limit] * (one.hours - one.start_hours)
    base = min(one.speeds[GPU], one.speeds.get(DECODING, math.inf))

    def hours(part: str) -> Callable[[int], float]:
        def on(gpus: int) -> float:
            cost = stage_cost(stage, dataset, gpus, values)
            if part == START:
                return work / (base * gpus) + cost.start_hours
            return work / (cost.speeds[part] if part in (GPU, DECODING) else min(base * gpus, cost.speeds[part]))

        return on

    counts = [2**k for k in range(int(math.log2(MAX_GPUS)))]
    return {
        part: next((n for n in counts if on(n) / on(2 * n) < SCALES), None)
        for part, on in ((part, hours(part)) for part in (*one.speeds, START))
    }


class _Model:
    """The costs of one data set on one number of GPUs."""

    def __init__(self, dataset: DataSet, gpus: int, values: Mapping[str, Quantity]) -> None:
        self.dataset, self.gpus = dataset, gpus
        self.q = {name: quantity.value for name, quantity in values.items()}
        self.hosts = math.ceil(gpus / self.q["gpus_per_host"])
        self.fields = dataset.videos * (round(dataset.seconds * self.q["fps"]) - 1)
        self.flow_bytes = self.fields * self.q["field_bytes"]
        self.video_bytes = dataset.videos * dataset.seconds * self.q["video_bytes"]
        self.network_bytes = 4 * self.q["parameters"]

    def cost(self, stage: str, evaluated: Sequence[str]) -> Cost:
        if stage == EXTRACTION:
            return self._extraction()
        if stage != EVALUATION:
            return self._training(ARMS[stage])
        each = [self._evaluation(ARMS[name]) for name in evaluated]
        hours, start_hours = (sum(getattr(c, name) for c in each) for name in ("hours", "start_hours"))
        return replace(each[0], hours=hours, start_hours=start_hours)

    def _extraction(self) -> Cost:
        per_field = (self.flow_bytes + self.video_bytes) / self.fields
        speeds = {
            GPU: self.gpus * self.q["flow_rate"],
            STORAGE: self.q["storage_bytes"] / per_field,
            # The video is opened, and its flow is written to another file.
            OPENS: self.q["storage_opens"] * self.fields / (2 * self.dataset.videos),
        }
        # Every host lists its own part of the videos.
        start = self.q["start_seconds"]
        return self._cost(EXTRACTION, [(self.fields, speeds)], start, self.flow_bytes)

    def _training(self, arm: Arm) -> Cost:
        teacher = ARMS[arm.teacher].stream if arm.teacher else ""
        each_step = teacher if arm.outputs != "class_mean" else ""
        steps = self._speeds({arm.stream, each_step} - {""}, teacher=bool(each_step), training=True)
        epochs = self.q["student_epochs" if arm.start else "stream_epochs"]
        tests = self._speeds({arm.stream}, teacher=False, training=False)
        work = [(epochs * self.dataset.train, steps), (self.dataset.validation, tests)]
        if arm.outputs == "class_mean":
            passes = self._speeds({teacher}, teacher=False, training=False)
            work.append((CLASS_MEAN_EPOCHS * self.dataset.train, passes))
        # Weights, and two states with momenta.
        return self._cost(arm.name, work, self._start({arm.stream, teacher}), 5 * self.network_bytes)

    def _evaluation(self, arm: Arm) -> Cost:
        crops = self.q["view_crops"]
        speeds = self._speeds({arm.stream}, teacher=False, training=False)
        speeds |= {GPU: speeds[GPU] / crops}  # the crops of a clip are decoded once
        clips = self.dataset.validation * self.q["view_clips"]
        return self._cost(EVALUATION, [(clips, speeds)], self._start({arm.stream}), 0.0)

    def _speeds(self, streams: set[str], *, teacher: bool, training: bool) -> dict[str, float]:
        """Clips per second of all GPUs by part.

        Args:
            streams: what is read of each clip, rgb or flow.
            teacher: whether a teacher sees each clip.
            training: whether the network is trained or evaluated.
        """
        q = self.q
        forward = 1 / q["inference_rate"]
        step = 1 / q["train_rate"] + teacher * forward + self._reduce_seconds() / q["clips_per_gpu"]
        seconds = step if training else forward
        decode_rates = {"rgb": q["decode_rate"], "flow": q["decode_rate"] * q["flow_decode_ratio"]}
        clip_bytes = {"rgb": q["video_bytes"] * self.dataset.seconds, "flow": (q["frames"] - 1) * q["field_bytes"]}
        if self.dataset.seconds > 60:  # only the part around a key frame is read
            clip_bytes["rgb"] = q["video_bytes"] * q["frames"] / q["fps"]
        return {
            GPU: self.gpus / seconds,
            DECODING: self.gpus * q["cores_per_gpu"] / sum(1 / decode_rates[stream] for stream in streams),
            STORAGE: q["storage_bytes"] / sum(clip_bytes[stream] for stream in streams),
            OPENS: q["storage_opens"] / len(streams),
        }

    def _reduce_seconds(self) -> float:
        """Seconds that the all-reduce of the gradients adds to a step: within a host, then between hosts."""
        local = min(self.gpus, self.q["gpus_per_host"])
        between = _ring(self.hosts) * self.network_bytes / self.q["network_bytes"]
        return self.q["ring_seconds"] * _ring(local) + between

    def _start(self, streams: set[str]) -> float:
        """Seconds before the first step: every host opens each video and, if flow is read, checks the whole cache."""
        seconds = self.q["start_seconds"] + self.hosts * self.dataset.videos / self.q["storage_opens"]
        if "flow" in streams:
            seconds += self.hosts * self.flow_bytes / self.q["storage_bytes"]
        return seconds

    def _cost(self, stage: str, work: Sequence[tuple[float, Mapping[str, float]]], start: float, disk: float) -> Cost:
        seconds = start + sum(count / min(speeds.values()) for count, speeds in work)
        return Cost(stage, "", self.gpus, seconds / HOUR, disk, start / HOUR, work[0][1])
