"""The book's page "From here to Kinetics" and the output of `d3d report scale`, from the model in scale.py."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from d3d.messages import shown
from d3d.report import scale
from d3d.report.labels import colour, label
from d3d.report.scale import (
    DECODING,
    EVALUATION,
    EXTRACTION,
    GPU,
    NETWORKS,
    OPENS,
    STAGES,
    START,
    STORAGE,
    stage_cost,
)
from d3d.report.scale_inputs import DATASETS, Quantity, quantities
from d3d.study.plan import BENCH

KINETICS, COUNTS = "kinetics400", (1, 8, 64)
TB = 1e12
PAGE = """# From here to Kinetics

**A reproduction on Kinetics-400 with its controls takes {hours1:,.0f} GPU-hours and {terabytes:.1f} TB for one seed:
{days1:.0f} days on one GPU, {days8:.1f} days on 8 and {hours64:.0f} hours on 64.** This is a model. Its speeds were
measured on one and two GPUs; nobody has run it at this size. Everything that it takes from a record, and everything
that it assumes, stands below.

{table}

*Wall-clock hours of each stage on 1, 8 and 64 GPUs, GPU-hours on one and on 64, and the slowest part. Extraction
computes TV-L1 of all videos. "RGB", "RGB, twin" and "flow" are streams from random weights; the others are students.
Each control is trained as D3D is: without it, one cannot tell whether motion was distilled or soft labels
([the plan](../plan.md)). Evaluation runs all {networks} networks on {view_clips:.0f} clips × {view_crops:.0f} crops of
every validation video. Several seeds cost as many times as much, except for the extraction.*

```{{image}} scale.svg
:alt: Wall-clock hours of each stage over the number of GPUs, on logarithmic axes, beside perfect scaling.
```

*Wall-clock hours over the number of GPUs. The dashed line is the total if twice the GPUs took half the time.*

## Which part stops scaling first

{stops}

*The number of GPUs from which twice as many make a stage less than 1.5 times as fast, if the GPUs and their cores are
all else that counts; "no" means not up to 1,024.*

- **Decoding is the slowest part of training from the first GPU on**, but it scales, since every host brings cores. One
  core decodes {core_rate:.1f} clips per second; a GPU trains on {train_rate:.0f}, so it keeps {cores_rgb:.0f} cores
  busy, and {cores_d3d:.0f} for D3D, which reads flow too. With {cores:.0f} cores per GPU, the GPU computes
  {gpu_share:.0%} of the time in the RGB stream. To see it: all cores are busy, the GPU is not (`nvidia-smi dmon`), and
  the clips per second in the log grow with `workers`.
- **The storage stops first**, since all hosts share it. At 64 GPUs the RGB stream reads {gigabytes64:.1f} GB and opens
  {opens64:,.0f} files per second. To see it: cores and GPUs wait (`vmstat`, column `wa`), and a second run on other
  hosts slows the first one down.
- **The start stays as it is**, since the processes divide the check of the files before the first step: each video is
  opened and the flow read once between them, which takes {start8:.0f} minutes for D3D, on 8 GPUs as on 64. Every host
  must therefore see the same files. To see it: `seconds/data` among the metrics of a record.
- **The all-reduce never stops it**: {gradient_mb:.0f} MB of gradients take {reduce8:.1%} of a step on 8 GPUs and
  {reduce64:.1%} on 64, with {clips_per_gpu:.0f} clips per GPU. With 6, as S3D-G's authors had, it would take
  {reduce64_6:.0%}. To see it: `python benchmarks/bench.py scaling` on one host.

## Measured

{measured}

## Assumed

{assumed}

{datasets}

*Videos are taken to have short side 256. Disk: videos, and flow as `d3d flow` stores it (8 bits, FFV1). Hours: all
stages, one GPU.*

## How a stage is computed

- A training step takes the time of its clips, forwards of the teacher, and the all-reduce: within a host by what a step
  took longer on several GPUs, in proportion to a ring's traffic, 2 (n − 1) / n; between hosts by the bytes of the
  gradients over the network, not overlapped with anything.
- A stage works at the speed of its slowest part: GPUs, decoding, bytes or files from the storage. Waiting for one part
  is not hidden behind another's start.
- Whole videos are read, though a clip is a part of each; of flow, the clip's fields alone.
- `class_mean` runs the teacher over the training clips {class_mean_epochs} times and needs no flow during training.

Left out: failures, queues of a cluster, searches for λ and learning rate, and what a batch of 64 GPUs does to accuracy.

## With your own numbers

```sh
d3d report scale --gpus 1 8 64 --set cores_per_gpu=64 storage_bytes=1e10
d3d report scale --dataset ucf101 --gpus 1 4
```

## The commands

Flow as a job array, one GPU each. A job that is killed resumes when it is started again, at the first video without
flow; each writes its own log, so they need no lock between hosts:

```sh
sbatch --array=1-64 --gpus=1 --cpus-per-task=16 --wrap \\
  'd3d flow --dataset kinetics400 --root VIDEOS --annotations LISTS --out FLOW --shard $SLURM_ARRAY_TASK_ID/64'
```

A stream on eight hosts of eight GPUs; on every host the same command (see [several hosts](../howto.md)):

```sh
torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m d3d.train \\
  --dataset kinetics400 --root VIDEOS --annotations LISTS --flow-cache FLOW --frames 64 --size 224 --short-side 256 \\
  --bound 20 --width 1 --batch-size 2048 --epochs 110 --stream rgb --results results/kinetics
```

A student and its controls differ in one parameter: `--experiment distill --student RGB.safetensors --teacher
FLOW.safetensors --epochs 30` with `--outputs clip` (D3D), `shuffled` or `class_mean`; `--lambda 0` (RGB-longer); or
`--teacher TWIN.safetensors` (RGB-teacher; the twin is `--twin 1`). `--view-clips 10 --view-crops 3` sets the views of
the evaluation at the end.
"""


def page(bench: Path) -> str:
    """Returns the page as Markdown.

    Args:
        bench: records of `make bench`, as a folder or a published file.

    Raises:
        ValueError: a record or a metric is missing, or the model says something else than a sentence of the page.
    """
    values = quantities(bench)
    total = {n: sum(cost.hours for cost in _costs(KINETICS, n, values)) for n in COUNTS}
    costs = {(stage, n): stage_cost(stage, KINETICS, n, values) for stage in STAGES for n in COUNTS}
    stops = {stage: scale.stops_scaling(stage, KINETICS, values) for stage in (EXTRACTION, "rgb", "flow", "d3d")}
    q = {name: quantity.value for name, quantity in values.items()}
    rgb, d3d = (costs[name, 1].speeds for name in ("rgb", "d3d"))
    core_rate = {name: speeds[DECODING] / q["cores_per_gpu"] for name, speeds in (("rgb", rgb), ("d3d", d3d))}
    rgb64 = costs["rgb", 64]
    clips64 = rgb64.speeds[rgb64.limit]
    _check_sentences(costs, stops)
    disk = scale.disk_bytes(KINETICS, values)
    return PAGE.format(
        hours1=total[1],
        terabytes=sum(disk.values()) / TB,
        days1=total[1] / 24,
        days8=total[8] / 24,
        hours64=total[64],
        table=_markdown(cost_table(KINETICS, COUNTS, values)),
        networks=len(NETWORKS),
        view_clips=q["view_clips"],
        view_crops=q["view_crops"],
        stops=_markdown(_stops_table(stops)),
        core_rate=q["decode_rate"],
        train_rate=q["train_rate"],
        cores=q["cores_per_gpu"],
        cores_rgb=rgb[GPU] / core_rate["rgb"],
        cores_d3d=d3d[GPU] / core_rate["d3d"],
        gpu_share=min(1.0, rgb[DECODING] / rgb[GPU]),
        gigabytes64=clips64 * q["storage_bytes"] / rgb64.speeds[STORAGE] / 1e9,
        opens64=clips64 * q["storage_opens"] / rgb64.speeds[OPENS],
        start8=60 * costs["d3d", 8].start_hours,
        gradient_mb=4 * q["parameters"] / 1e6,
        reduce8=_reduce_share(8, values),
        reduce64=_reduce_share(64, values),
        clips_per_gpu=q["clips_per_gpu"],
        reduce64_6=_reduce_share(64, values | {"clips_per_gpu": Quantity(6, "", "", "")}),
        measured=_markdown(quantity_table({k: v for k, v in values.items() if v.measured})),
        assumed=_markdown(quantity_table({k: v for k, v in values.items() if not v.measured})),
        datasets=_markdown(_dataset_table(values)),
        class_mean_epochs=scale.CLASS_MEAN_EPOCHS,
    )


def _check_sentences(
    costs: Mapping[tuple[str, int], scale.Cost], stops: Mapping[str, Mapping[str, int | None]]
) -> None:
    """Raises ValueError if the model no longer says what the page does."""
    never = scale.MAX_GPUS
    first = {name: {part: n or never for part, n in by_part.items()} for name, by_part in stops.items()}
    storage = {name: min(parts[STORAGE], parts[OPENS]) for name, parts in first.items()}
    sentences = {
        "decoding is the slowest part of training from the first GPU on": all(
            costs[name, 1].limit == DECODING for name in NETWORKS
        ),
        "the storage stops first": storage["rgb"] < min(first["rgb"][p] for p in (GPU, DECODING, START)),
        "the start stays as it is": costs["d3d", 64].start_hours == costs["d3d", 8].start_hours,
        "the all-reduce never stops it": all(parts[GPU] == never for parts in first.values()),
    }
    if wrong := [sentence for sentence, holds in sentences.items() if not holds]:
        raise ValueError(
            f"the page on Kinetics says {shown(wrong[0])}, and by the records that is no longer so: rewrite the "
            "sentence in d3d/report/scale_page.py"
        )


def _reduce_share(gpus: int, values: Mapping[str, Quantity]) -> float:
    """The part of an RGB training step that is the all-reduce."""
    alone, together = (stage_cost("rgb", KINETICS, n, values).speeds[GPU] / n for n in (1, gpus))
    return 1 - together / alone


def _costs(dataset: str, gpus: int, values: Mapping[str, Quantity]) -> list[scale.Cost]:
    return [stage_cost(stage, dataset, gpus, values) for stage in STAGES]


def _stage_label(stage: str) -> str:
    return stage if stage in (EXTRACTION, EVALUATION) else label(stage)


def cost_table(dataset: str, counts: Sequence[int], values: Mapping[str, Quantity]) -> pd.DataFrame:
    """Tabulates hours, GPU-hours and the slowest part of every stage and of all together, by number of GPUs."""
    fewest, most = min(counts), max(counts)
    rows = []
    for stage in STAGES:
        by_count = {n: stage_cost(stage, dataset, n, values) for n in counts}
        limits = dict.fromkeys(by_count[n].limit for n in (fewest, most))
        rows.append(
            {"stage": _stage_label(stage)}
            | {_hours_column(n): cost.hours for n, cost in by_count.items()}
            | {_gpu_hours_column(n): by_count[n].gpu_hours for n in dict.fromkeys((fewest, most))}
            | {"slowest part": ", then ".join(limits)}
        )
    table = pd.DataFrame(rows)
    sums = table.select_dtypes("number").sum().to_dict()
    return pd.concat([table, pd.DataFrame([{"stage": "all", **sums, "slowest part": ""}])], ignore_index=True)


def _hours_column(gpus: int) -> str:
    return f"hours on {gpus} GPU{'s' * (gpus > 1)}"


def _gpu_hours_column(gpus: int) -> str:
    return f"GPU-hours on {gpus}"


def scaling_curves(bench: Path) -> pd.DataFrame:
    """Returns wall-clock hours by stage and number of GPUs on Kinetics-400, in the columns of `plots.scaling`."""
    values = quantities(bench)
    # Stages that cost the same stand in one line.
    lines = {
        "extraction": ((EXTRACTION,), "0.6"),
        "RGB, or its twin": (("rgb",), colour("rgb")),
        "flow": (("flow",), colour("flow")),
        "D3D, or flow shuffled": (("d3d",), colour("d3d")),
        "RGB-longer": (("rgb_longer",), colour("rgb_longer")),
        "evaluation of all": ((EVALUATION,), "0.8"),
        "all stages": (STAGES, "0.2"),
    }
    return pd.DataFrame(
        {
            "line": name,
            "colour": shade,
            "gpus": n,
            "hours": sum(stage_cost(stage, KINETICS, n, values).hours for stage in stages),
        }
        for name, (stages, shade) in lines.items()
        for n in (2**k for k in range(9))
    )


def _stops_table(stops: Mapping[str, Mapping[str, int | None]]) -> pd.DataFrame:
    parts = {GPU: "GPUs with all-reduce", DECODING: DECODING, STORAGE: STORAGE, OPENS: OPENS, START: START}
    return pd.DataFrame(
        {"part": name}
        | {
            _stage_label(stage): "—" if part not in by_part else f"{by_part[part]} GPUs" if by_part[part] else "no"
            for stage, by_part in stops.items()
        }
        for part, name in parts.items()
    )


def quantity_table(values: Mapping[str, Quantity]) -> pd.DataFrame:
    """Tabulates inputs of the model: name, value, unit, meaning and source."""
    return pd.DataFrame(
        {
            "input": f"`{name}`",
            "value": f"{_number(q.value)} {q.unit}".strip(),
            "meaning": q.meaning,
            "source": q.source,
        }
        for name, q in values.items()
    )


def _dataset_table(values: Mapping[str, Quantity]) -> pd.DataFrame:
    rows = []
    for name, dataset in DATASETS.items():
        disk = scale.disk_bytes(name, values)
        rows.append(
            {
                "data set": dataset.label,
                "videos": f"{dataset.videos:,} of {dataset.seconds:g} s",
                "training clips": f"{dataset.train:,}",
                "videos (TB)": _number(disk["videos"] / TB),
                "flow (TB)": _number(disk["flow"] / TB),
                "hours": _number(sum(cost.hours for cost in _costs(name, 1, values))),
                "numbers from": dataset.source,
            }
        )
    return pd.DataFrame(rows)


def _number(value: float) -> str:
    """Three digits, with an exponent from ten million on."""
    if value >= 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _markdown(table: pd.DataFrame) -> str:
    cells = table.map(lambda cell: _number(cell) if isinstance(cell, float) else cell)
    return cells.to_markdown(index=False, disable_numparse=True)


def add_parser(commands) -> None:
    """Adds the subcommand `scale` to those of `d3d report`."""
    parser = commands.add_parser("scale", help="print what a reproduction costs, by stage and number of GPUs")
    parser.add_argument("--dataset", default=KINETICS, help=f"{', '.join(DATASETS)} (default {KINETICS})")
    parser.add_argument("--gpus", type=int, nargs="+", default=COUNTS, help="numbers of GPUs (default 1 8 64)")
    parser.add_argument("--bench", type=Path, default=BENCH, help="records of `make bench` (default: the published)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="inputs of the model to change, as listed"
    )


def command_text(args: argparse.Namespace) -> str:
    """Returns the output of `d3d report scale`: the costs, and every input of the model.

    Raises:
        ValueError: an argument is wrong, or the records lack an input; the message names it.
    """
    values = quantities(args.bench, dict(_parse_change(change) for change in args.set))
    counts = sorted(set(args.gpus))
    table = cost_table(args.dataset, counts, values)
    disk = scale.disk_bytes(args.dataset, values)
    return "\n".join(
        [
            f"{DATASETS[args.dataset].label}, one seed; a model, whose inputs are listed below",
            "",
            _markdown(table),
            "",
            f"On disk: videos {disk['videos'] / TB:.3g} TB, flow {disk['flow'] / TB:.3g} TB.",
            "",
            _markdown(quantity_table(values)),
        ]
    )


def _parse_change(change: str) -> tuple[str, float]:
    name, _, value = change.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(
            f"--set takes NAME=VALUE with a number, such as cores_per_gpu=64, not {shown(change)}"
        ) from None
