"""What a reproduction on a real data set costs: a model of hours and bytes by stage and number of GPUs.

    values = quantities(changes={"cores_per_gpu": 64})
    stage_cost("d3d", "kinetics400", 64, values).hours

Every input is a `Quantity` that says whether a record measured it or it is assumed, and where it comes from. A stage
works at the speed of its slowest part: the GPUs with their all-reduce, decoding, or the storage.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from d3d.messages import shown
from d3d.report.scale_inputs import DATASETS, DataSet, Quantity, quantities, ring_traffic
from d3d.study.arms import ARMS, Arm

HOUR = 3600.0


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
        between = ring_traffic(self.hosts) * self.network_bytes / self.q["network_bytes"]
        return self.q["ring_seconds"] * ring_traffic(local) + between

    def _start(self, streams: set[str]) -> float:
        """Seconds before the first step: the processes open each video once and, if flow is read, check the cache."""
        seconds = self.q["start_seconds"] + self.dataset.videos / self.q["storage_opens"]
        if "flow" in streams:
            seconds += self.flow_bytes / self.q["storage_bytes"]
        return seconds

    def _cost(self, stage: str, work: Sequence[tuple[float, Mapping[str, float]]], start: float, disk: float) -> Cost:
        seconds = start + sum(count / min(speeds.values()) for count, speeds in work)
        return Cost(stage, "", self.gpus, seconds / HOUR, disk, start / HOUR, work[0][1])
