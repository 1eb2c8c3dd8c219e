"""What the network costs: the book's page, made from the records of `make bench`."""

from pathlib import Path

import pandas as pd

from d3d.study import records

PAGE = """# Cost

**S3D-G gives {inference:.1f} times as many clips a second as torchvision's `s3d` in inference and {training:.1f} times
as many in a training step, in bfloat16 on one {device}, with less memory at the same batch.** With TF32 it is
{inference_tf32:.1f} and {training_tf32:.1f} times as many. (What a whole two-stream pipeline costs beside one D3D is
still to come.)

{table}

*Clips of 64 × 224 × 224 in one process, the networks taking turns, medians; SGD step for training. Working memory is
what a step needs beyond weights and clips. torchvision's network is as it comes, under autocast for bf16; it has no
gates, and its stem is separable too. "Folded" has its batch norms in the convolutions, `d3d.s3dg.fold`. Made by
`make bench` at commit {commit}.*

## Where the time goes

A clip takes {gflop:.0f} GFLOP in the convolutions as the original defines them; in inference that is {share:.0%} of the
{matrix:.0f} TFLOP/s that one large bf16 matrix product reaches on the same device.

```{{image}} cost.svg
:alt: Milliseconds a clip that the GPU spends on convolutions and between them, in inference and in training.
```

*Milliseconds a clip on the GPU at 32 clips a batch, by the names of the kernels. Convolutions are cuDNN's and
cuBLAS's, two-dimensional over space or over time, with the channels innermost in memory. The rest moves memory: pools,
gates, norms, and the taps of the stem (two axes of its kernel as channels, so that a slow convolution of 3 channels
and stride 2 becomes a fast one of 64).*

## Training at the study's scale

With 128 clips of 16 × 64 × 64 the GPU waits for Python: a step takes {plain_ms:.0f} ms in a plain loop with PyTorch's
own kernels, {eager_ms:.0f} ms with ours, whose launches cost more, and **{captured_ms:.1f} ms, {times_captured:.1f}
times as fast as the plain loop**, as `d3d.train` runs it: the whole step, from gathering the clips to the update, in
one CUDA graph. A run trains on {fit:,.0f} clips a second.

- **The same losses.** Over {curve_steps:.0f} steps captured and uncaptured losses differ by {apart_eager:.2g}; from the
  plain loop's by {apart_plain:.2g} at most, where two plain loops whose kernels only round otherwise differ by
  {apart_rounding:.2g} (in float32 {apart_plain_32:.2g} and {apart_rounding_32:.2g}).
- **The same seed.** Two runs of one seed on one GPU, in one process, differ by {apart_runs:.2g} in any logit of the
  test clips and by {apart_top1:.2g} in top-1. Another machine may choose kernels that round otherwise, and then it is
  another network.
- **Several runs on one GPU** share it rather than add to it: 1, 2 and 4 at once train on {runs1:,.0f}, {runs2:,.0f} and
  {runs4:,.0f} clips a second together. What they gain is that one computes while another starts, loads or tests.
- **The start.** From the start of a process to the end of its first step, 6,000 clips rendered, {first_step:.1f} s,
  {import_torch:.1f} s of them the import of PyTorch.

*Made by `make bench` at commit {training_commit}. Several GPUs were not measured.*

## Video files

{workers} worker processes deliver {clips:.0f} training clips of 64 × 224 × 224 a second from H.264 of 340 × 256 pixels,
{times:.2f} times what PyAV alone decodes of the same frames in as many processes; one process {times_one:.2f} and two
{times_two:.2f} times. As batches on the GPU they are {batches:.0f} a second. `d3d flow` computes
{fields:.0f} fields a second at short side 256, from file to file, {of_alone:.0%} of what TV-L1 alone does on the same
GPU. Eight bits over ± 20 pixels cost a root mean square error of {rms:.3f} pixels, {largest:.3f} at most.

*Made by `make bench` at commits {decode_commit} and {flow_commit}.*

## What could be wrong

One machine, one run, batch sizes that a short lease could hold: 32 and 64 clips for inference, where torchvision's
rate no longer grows, 32 for training, 16 with TF32, where launches already cost ours a part of its speed.
`torch.compile` of torchvision's network is not in the comparison. Decoding was measured on videos that this study
encoded itself, which cost less than many of the field's.
"""
# The numbers of the section on training: arm and metric of their records.
TRAINING = {
    **{f"{name}_ms": ("training", f"{name}/ms_per_step") for name in ("plain", "eager", "captured")},
    "times_captured": ("training", "captured/ratio"),
    "fit": ("training", "fit/clips_per_second"),
    "apart_eager": ("training", "loss_apart/captured_and_eager"),
    "apart_plain": ("training", "loss_apart/captured_and_plain"),
    "apart_rounding": ("training", "loss_apart/plain_and_plain_fused"),
    "apart_plain_32": ("training", "loss_apart/float32/captured_and_plain"),
    "apart_rounding_32": ("training", "loss_apart/float32/plain_and_plain_fused"),
    "apart_runs": ("training", "two_runs/largest_logit_difference"),
    "apart_top1": ("training", "two_runs/top1_difference"),
    **{f"runs{n}": ("sharing", f"runs{n}/clips_per_second") for n in (1, 2, 4)},
    "first_step": ("start", "to_first_step/seconds"),
    "import_torch": ("start", "import/torch/seconds"),
}
NETWORKS = {"s3dg_folded": "S3D-G, folded", "s3dg": "S3D-G", "torchvision_s3d": "torchvision s3d"}


def page(folder: Path) -> str:
    """The page as Markdown, from a folder of records of `make bench`. Raises as `records.load` where there are none."""
    rows = records.load(folder, needs=["bench"])
    value = rows.set_index(["arm", "metric"])["value"]
    made = records.of_first_seed(folder, "bench", ["s3dg"])[0]
    numbers = {
        "inference": value["s3dg", "inference/bf16/ratio"],
        "training": value["s3dg", "training/bf16/ratio"],
        "inference_tf32": value["s3dg_tf32", "inference/tf32/ratio"],
        "training_tf32": value["s3dg_tf32", "training/tf32/ratio"],
        "gflop": value["s3dg", "gflop_per_clip"],
        "share": value["s3dg", "inference/share_of_matrix_rate"],
        "matrix": value["s3dg", "matrix_product_tflops"],
    }
    numbers |= {name: value[arm, metric] for name, (arm, metric) in TRAINING.items()}
    training = records.of_first_seed(folder, "bench", ["training"])[0]
    numbers |= {"training_commit": _commit(training), "curve_steps": training.params["curve_steps"]}
    most = max(int(n) for n in rows["metric"].str.extract(r"^workers(\d+)/clips/ratio$")[0].dropna())
    numbers |= {
        "workers": most,
        "clips": value["decode", f"workers{most}/clips/clips_per_second"],
        "batches": value["decode", f"workers{most}/batches/clips_per_second"],
        "times": value["decode", f"workers{most}/clips/ratio"],
        "times_one": value["decode", "workers1/clips/ratio"],
        "times_two": value["decode", "workers2/clips/ratio"],
        "fields": value["flow_set", "set/fields_per_second"],
        "of_alone": value["flow_set", "ratio"],
        "rms": value["flow_set", "rms_px"],
        "largest": value["flow_set", "max_px"],
        "decode_commit": _commit(records.of_first_seed(folder, "bench", ["decode"])[0]),
        "flow_commit": _commit(records.of_first_seed(folder, "bench", ["flow_set"])[0]),
    }
    return PAGE.format(**numbers, device=made.provenance["device"], commit=_commit(made), table=rates(rows))


def _commit(record: records.Record) -> str:
    return record.provenance["commit"][:10] + " and uncommitted changes" * record.provenance["dirty"]


def rates(rows: pd.DataFrame) -> str:
    """Clips a second and working memory by step, precision, batch size and network, as Markdown."""
    case = ["step", "precision", "batch"]
    name = r"(?P<step>\w+)/(?P<precision>\w+)/batch(?P<batch>\d+)/(?P<network>\w+)/(?P<what>\w+)"
    found = rows["metric"].str.extract(f"^{name}$").assign(value=rows["value"]).dropna()
    wide = found.pivot_table(index=[*case, "network"], columns="what", values="value").reset_index()
    peer = wide[wide["network"] == "torchvision_s3d"].set_index(case)["clips_per_second"].rename("peer")
    wide = wide.join(peer, on=case)
    shown = pd.DataFrame(
        {
            "step, precision, batch": wide[case].agg(", ".join, axis=1),
            "network": wide["network"].map(NETWORKS),
            "clips a second": wide["clips_per_second"].map("{:,.0f}".format),
            "working memory (GB)": wide["working_gb"].map("{:.1f}".format),
            "× torchvision": (wide["clips_per_second"] / wide["peer"]).map("{:.2f}".format),
        }
    )
    return shown.to_markdown(index=False, disable_numparse=True)


def parts(folder: Path) -> pd.DataFrame:
    """Milliseconds a clip by step and part, as `plots.cost` takes them."""
    rows = records.load(folder, needs=["bench"])
    found = rows["metric"].str.extract(r"^(?P<step>\w+)/ms_per_clip/(?P<part>.+)$").assign(ms=rows["value"])
    return found.dropna().reset_index(drop=True)
