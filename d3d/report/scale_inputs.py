"""The inputs of the model of costs (d3d/report/scale.py): what records measured, what is assumed; data sets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from d3d.messages import printable, shown
from d3d.study.plan import BENCH
from d3d.study.records import Record, read_all


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


def quantities(bench: Path = BENCH, changes: Mapping[str, float] | None = None) -> dict[str, Quantity]:
    """Returns all inputs of the model by name.

    Args:
        bench: records of `make bench`, as a folder or a published file.
        changes: values that replace measured or assumed ones.

    Raises:
        ValueError: a record or a metric is missing; or `changes` names no input, or a value is not positive and finite.
    """
    values = ASSUMED | measured(bench)
    for name, value in (changes or {}).items():
        if name not in values:
            raise ValueError(f"the model of costs has no input {shown(name)}, but {', '.join(values)}")
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {shown(value)}")
        values[name] = replace(values[name], value=value, source="changed by the reader", measured=False)
    return values


def measured(bench: Path) -> dict[str, Quantity]:
    """Returns the inputs that records hold; raises ValueError where a record or a metric is missing."""
    records = {record.arm: record for record in read_all(bench, ["bench"])}
    try:
        return _measured(records)
    except LookupError as error:
        raise ValueError(
            f"{printable(bench)} lacks {shown(error.args[0])}, which the model of costs needs: give records of "
            "`make bench`"
        ) from None


def _measured(records: Mapping[str, Record]) -> dict[str, Quantity]:
    def metric(arm: str, name: str) -> float:
        return records[arm].metrics[name]

    def quantity(value: float, unit: str, meaning: str, arm: str, source: str) -> Quantity:
        return Quantity(value, unit, meaning, f"record `{arm}`: {source}", measured=True)

    workers = records["decode"].params["cores"]
    decoded = metric("decode", f"workers{workers}/clips/clips_per_second")
    shares = [metric("memory", f"{stream}/decoded/clips_per_second") for stream in ("flow", "rgb")]
    batch = int(metric("s3dg", "inference/batch"))
    inference = f"inference/bf16/batch{batch}/s3dg_folded_captured/clips_per_second"
    step, processes, ring = ring_seconds(records["scaling"].metrics)
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
            metric("flow_bytes", "bytes_per_field"), "byte", "of a field in the cache, 8 bits and FFV1", "flow_bytes",
            f"{records['flow_bytes'].params['videos']} real videos of Kinetics-400, from "
            f"{metric('flow_bytes', 'lowest/bytes_per_field'):,.0f} to "
            f"{metric('flow_bytes', 'highest/bytes_per_field'):,.0f}",
        ),
        "start_seconds": quantity(
            metric("start", "to_first_step/seconds"), "s", "from the start of a process to its first step", "start",
            "without reading files",
        ),
    }  # fmt: skip


def ring_seconds(scaling: Mapping[str, float]) -> tuple[float, int, float]:
    """What several GPUs cost a step: seconds, on how many GPUs, and per unit of the ring's traffic, 2 (n - 1) / n."""
    counts = [n for n in (2, 4, 8) if f"large_clips/processes{n}/ms_per_step" in scaling]
    count = max(counts, default=2)
    longer = scaling[f"large_clips/processes{count}/ms_per_step"] - scaling["large_clips/processes1/ms_per_step"]
    seconds = max(0.0, longer) / 1e3
    return seconds, count, seconds / ring_traffic(count)


def ring_traffic(count: int) -> float:
    """Traffic of a ring all-reduce per process, in multiples of the gradients' bytes."""
    return 2 * (count - 1) / count
