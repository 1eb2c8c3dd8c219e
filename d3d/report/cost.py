"""The book's page on cost, made from the records of `make bench`."""

from pathlib import Path

import pandas as pd

from d3d.report import cost_tables
from d3d.report.markdown import text
from d3d.study import records

PAGE = """# Cost

**In inference S3D-G processes {inference:.1f} times as many clips per second as torchvision's `s3d` compiled by
`torch.compile`, and in a training step {training:.1f} times as many, in bfloat16 on one {device}.** Each ratio is that
of the fastest of both, with {inference_batch:.0f} clips per batch in inference and {training_batch:.0f} in training.

{table}

*Clips of 64 × 224 × 224 in one process. The networks take turns, and the numbers are medians; a training step includes
the SGD update. Working memory is the memory of a step beyond weights and clips. torchvision's network is unmodified,
under autocast for bf16; it has no gates, and its stem is separable too. "Folded" means that the batch norms are part of
the convolutions (`d3d.s3dg.fold`), "captured" that a step is one CUDA graph, and "compiled" that `torch.compile` made
it, with channels last in memory. The peer of a row is the fastest of torchvision's at its batch size. Made by
`make bench` at {networks_made}.*

## Where the time goes

A clip takes {gflop:.0f} GFLOP in the convolutions as the original defines them. In inference this is
{inference_matrix:.0%} of the {matrix:.0f} TFLOP/s that one large bf16 matrix product reaches on the same
device. In training it is {training_matrix:.0%}. The kernels take {inference_kernels:.0%} of the time of the
fastest inference and {training_kernels:.0%} of that of the fastest training step; the rest of the time, the GPU waits.

```{{image}} cost.svg
:alt: Milliseconds per clip that the GPU spends on convolutions and between them, in inference and in training.
```

*Milliseconds per clip on the GPU, by the names of the kernels. The convolutions are cuDNN's and cuBLAS's:
two-dimensional over space or over time, with channels last in memory. The rest moves memory: pooling, gates, norms, and
the taps of the stem (two axes of its kernel become channels, which turns a slow convolution of 3 channels and stride 2
into a fast one of 64 channels).*

## Training at the study's scale

With 128 clips of 16 × 64 × 64 the GPU waits for Python. A step takes {plain_ms:.0f} ms in a plain loop with PyTorch's
own kernels and {eager_ms:.0f} ms with ours, whose launches cost more. In `d3d.train` it takes **{captured_ms:.1f} ms,
{times_captured:.1f} times as fast as the plain loop**, because one CUDA graph holds the whole step, from gathering the
clips to the update. A run trains on {fit:,.0f} clips per second.

- **The same losses.** Over {curve_steps:.0f} steps the losses with and without capture differ by at most
  {captured_eager:.2g}, and those of the captured step and of the plain loop by at most {captured_plain:.2g}. Two plain
  loops whose kernels only round differently differ by {plain_rounding:.2g}. (In float32 the last two numbers are
  {captured_plain_32:.2g} and {plain_rounding_32:.2g}.)
- **The same seed.** Two runs of one seed on one GPU, in one process, differ by at most {logit_difference:.2g} in a
  logit of the test clips and by {top1_difference:.2g} in top-1. Another machine may choose kernels that round
  differently, and the result is then another network.
- **Several runs on one GPU.** One run trains on {runs1:,.0f} clips per second, and four on {runs4:,.0f} together if
  they take turns.{mps}
- **The start.** From the start of a process to the end of its first step, with 6,000 clips rendered, it takes
  {first_step:.1f} s. The import of PyTorch takes {import_torch:.1f} s of them.

{scaling}

*Made by `make bench` at {training_made}; several runs on one GPU, and the start, at {sharing_made}.*

## Video files

{workers} worker processes deliver {clips:.0f} training clips of 64 × 224 × 224 per second from H.264 of 340 × 256
pixels. This is {times:.2f} times the rate at which PyAV alone decodes the same frames in as many processes; with one
process it is {times_one:.2f} times. As batches on the GPU it is {batches:.0f} clips per
second. `d3d flow` computes {fields:.0f} fields per second at short side 256, from file to file: {of_alone:.0%} of the
rate of TV-L1 alone on the same GPU. Storing flow of ± 20 pixels in eight bits costs a root mean square error of
{rms:.3f} pixels, and {largest:.3f} pixels at most.

**A set that is kept in memory trains at {memory_rgb:,.0f} clips per second** of 16 × 112 × 112 (RGB; flow
{memory_flow:,.0f}), {memory_times_rgb:.1f} times as fast as if its files are decoded in every epoch, by a worker per
core (flow {memory_times_flow:.1f} times), with the same views to the bit.

{videos}

*Made by `make bench` at {videos_made}.*

## From a video file to a decision

{end_to_end}

*Clips per second with every core decoding for one GPU, 64 × 224 × 224 from H.264 of 340 × 256 pixels. Two streams need
flow, which OpenCV's TV-L1 computes on every core. Joules are the GPU's. The percentages divide the time of one video,
decoded by one core, among its stages.*

## What could be wrong

Every comparison is one run on one machine. Compiling takes minutes, so torchvision's network was compiled only for the
rows that say so. Its last pool, of a fixed size, was made smaller for clips that are smaller than it. Videos were
measured that this study encoded itself, which are cheaper to decode than many of the field's.
"""
# The numbers of the page, each with the arm and the metric of its record.
NUMBERS = {
    **{step: ("s3dg", f"{step}/bf16/ratio") for step in ("inference", "training")},
    **{f"{step}_batch": ("s3dg", f"{step}/batch") for step in ("inference", "training")},
    **{f"{step}_matrix": ("s3dg", f"{step}/share_of_matrix_rate") for step in ("inference", "training")},
    **{f"{step}_kernels": ("s3dg", f"{step}/share_of_time_in_kernels") for step in ("inference", "training")},
    "gflop": ("s3dg", "gflop_per_clip"),
    "matrix": ("s3dg", "matrix_product_tflops"),
    **{f"{name}_ms": ("training", f"{name}/ms_per_step") for name in ("plain", "eager", "captured")},
    "times_captured": ("training", "captured/ratio"),
    "fit": ("training", "fit/clips_per_second"),
    "captured_eager": ("training", "loss_apart/captured_and_eager"),
    "captured_plain": ("training", "loss_apart/captured_and_plain"),
    "plain_rounding": ("training", "loss_apart/plain_and_plain_fused"),
    "captured_plain_32": ("training", "loss_apart/float32/captured_and_plain"),
    "plain_rounding_32": ("training", "loss_apart/float32/plain_and_plain_fused"),
    "logit_difference": ("training", "two_runs/largest_logit_difference"),
    "top1_difference": ("training", "two_runs/top1_difference"),
    **{name: ("sharing", f"{name}/clips_per_second") for name in ("runs1", "runs4")},
    "first_step": ("start", "to_first_step/seconds"),
    "import_torch": ("start", "import/torch/seconds"),
    "times_one": ("decode", "workers1/clips/ratio"),
    "fields": ("flow_set", "set/fields_per_second"),
    "of_alone": ("flow_set", "ratio"),
    "rms": ("flow_set", "rms_px"),
    "largest": ("flow_set", "max_px"),
    **{f"memory_{stream}": ("memory", f"{stream}/memory/clips_per_second") for stream in ("rgb", "flow")},
    **{f"memory_times_{stream}": ("memory", f"{stream}/ratio") for stream in ("rgb", "flow")},
}
# Where MPS can be started.
THROUGH_MPS = """ Through NVIDIA's MPS their kernels run at the same time, and two, four and eight runs
  train on {mps2:,.0f}, {mps4:,.0f} and {mps8:,.0f}; `make study` starts MPS where it can."""


def page(folder: Path) -> str:
    """Returns the page as Markdown.

    Args:
        folder: records of `make bench`, as a folder or a published file.

    Raises:
        FileNotFoundError: there are no such records.
        LookupError: a record lacks a metric or a parameter.
    """
    bench, rows = records.read_all(folder, ["bench"]), records.load(folder, needs=["bench"])
    by_arm = {record.arm: record for record in bench}
    value = rows.set_index(["arm", "metric"])["value"]
    numbers = {name: value[of_record] for name, of_record in NUMBERS.items()}
    through_mps = {f"mps{n}": value.get(("sharing", f"mps{n}/clips_per_second")) for n in (2, 4, 8)}
    workers = max((int(n) for n in rows["metric"].str.extract(r"^workers(\d+)/clips/ratio$")[0].dropna()), default=0)
    numbers |= {
        "mps": THROUGH_MPS.format(**through_mps) if all(through_mps.values()) else "",
        "device": text(by_arm["s3dg"].provenance["device"]),
        "curve_steps": by_arm["training"].params["curve_steps"],
        "workers": workers,
        "clips": value["decode", f"workers{workers}/clips/clips_per_second"],
        "batches": value["decode", f"workers{workers}/batches/clips_per_second"],
        "times": value["decode", f"workers{workers}/clips/ratio"],
        "networks_made": _made(by_arm["s3dg"]),
        "training_made": _made(by_arm["training"]),
        "sharing_made": _made(by_arm["sharing"], by_arm["start"]),
        "videos_made": _made(*(by_arm[arm] for arm in ("decode", "flow_set", "memory"))),
    }
    tables = {
        "table": cost_tables.fastest,
        "scaling": cost_tables.scaling,
        "videos": cost_tables.videos,
        "end_to_end": cost_tables.end_to_end,
    }
    return PAGE.format(**{name: cost_tables.markdown(make(bench)) for name, make in tables.items()}, **numbers)


def _made(*by: records.Record) -> str:
    """The commits at which records were made."""
    commits = dict.fromkeys(
        text(record.provenance["commit"][:10]) + " and uncommitted changes" * record.provenance["dirty"]
        for record in by
    )
    return "commit " + ", ".join(commits)


def kernel_times(folder: Path) -> pd.DataFrame:
    """Returns milliseconds per clip in bf16 by step and kind of kernel, in the columns that `plots.cost` draws."""
    rows = records.load(folder, needs=["bench"])
    rows = rows[rows["arm"] == "s3dg"]
    times = rows["metric"].str.extract(r"^(?P<step>\w+)/ms_per_clip/(?P<part>.+)$").assign(ms=rows["value"])
    return times.dropna().reset_index(drop=True)
