"""The page on cost quotes the records."""

import pytest

from d3d.report import cost
from d3d.study.plan import BENCH
from d3d.study.records import Record, write
from tests.study.test_records import PROVENANCE


def bench(folder, arm: str, params=None, **metrics: float):
    """Writes a record of `make bench`; `__` in a metric's name stands for `/`."""
    provenance = PROVENANCE | {"device": "a GPU", "dirty": True}
    write(
        folder,
        Record("bench", arm, 0, params or {}, {k.replace("__", "/"): v for k, v in metrics.items()}, False, provenance),
    )


@pytest.fixture
def folder(tmp_path):
    bench(
        tmp_path,
        "s3dg",
        inference__bf16__ratio=6.0,
        training__bf16__ratio=3.5,
        gflop_per_clip=128.4,
        inference__share_of_matrix_rate=0.25,
        matrix_product_tflops=800.0,
        inference__ms_per_clip__convolutions=0.3,
        inference__bf16__batch32__s3dg_folded__clips_per_second=1800.0,
        inference__bf16__batch32__s3dg_folded__working_gb=5.0,
        inference__bf16__batch32__torchvision_s3d__clips_per_second=300.0,
        inference__bf16__batch32__torchvision_s3d__working_gb=9.9,
    )
    decode = {f"workers{n}__clips__ratio": r for n, r in ((1, 0.97), (2, 1.25), (16, 1.5))}
    decode |= {"workers16__clips__clips_per_second": 111.0, "workers16__batches__clips_per_second": 99.0}
    bench(tmp_path, "decode", **decode)
    flow = {"set__fields_per_second": 900.0, "ratio": 0.9, "rms_px": 0.0441, "max_px": 0.0787}
    bench(tmp_path, "flow_set", **flow)
    bench(tmp_path, "s3dg_tf32", inference__tf32__ratio=4.0, training__tf32__ratio=2.0)
    training = {"plain__ms_per_step": 60.0, "eager__ms_per_step": 80.0, "captured__ms_per_step": 12.04}
    training |= {"captured__ratio": 4.98, "fit__clips_per_second": 8321.0, "loss_apart__captured_and_eager": 0.0}
    training |= {"loss_apart__captured_and_plain": 0.013, "loss_apart__plain_and_plain_fused": 0.014}
    training |= {f"loss_apart__float32__{a}": 1.5e-6 for a in ("captured_and_plain", "plain_and_plain_fused")}
    training |= {"two_runs__largest_logit_difference": 0.25, "two_runs__top1_difference": 0.002}
    bench(tmp_path, "training", {"curve_steps": 40}, **training)
    bench(tmp_path, "sharing", **{f"runs{n}__clips_per_second": 8000.0 + n for n in (1, 2, 4)})
    memory = {f"{s}__memory__clips_per_second": n for s, n in (("rgb", 2287.0), ("flow", 2345.0))}
    bench(tmp_path, "memory", **memory, rgb__ratio=14.78, flow__ratio=13.23)
    bench(tmp_path, "start", to_first_step__seconds=6.24, import__torch__seconds=3.3)
    return tmp_path


def test_the_page_quotes_the_records(folder):
    text = " ".join(cost.page(folder).split())
    assert (
        "S3D-G processes 6.0 times as many clips per second as torchvision's `s3d`, and in a training step 3.5" in text
    )
    assert "in bfloat16 on one a GPU" in text
    assert "it is 4.0 and 2.0 times as many" in text
    assert "16 worker processes deliver 111 training clips of 64 × 224 × 224 per second" in text
    assert "in memory trains at 2,287 clips per second** of 16 × 112 × 112 (RGB; flow 2,345), 14.8 times as" in text
    assert "a worker per core (flow 13.2 times)" in text
    assert "1.50 times the rate at which PyAV alone decodes" in text
    assert "with one process it is 0.97 times, with two 1.25 times" in text
    assert "900 fields per second at short side 256, from file to file: 90% of the rate of TV-L1" in text
    assert "root mean square error of 0.044 pixels, and 0.079 pixels at most" in text
    assert "In inference this is 25% of the 800 TFLOP/s" in text
    assert "A step takes 60 ms in a plain loop with PyTorch's own kernels and 80 ms with ours" in text
    assert "In `d3d.train` it takes **12.0 ms, 5.0 times as fast as the plain loop**" in text
    assert "A run trains on 8,321 clips per second." in text
    assert "Over 40 steps the losses with and without capture differ by at most 0, and those of the captured" in text
    assert "step and of the plain loop by at most 0.013. Two plain loops" in text
    assert "differ by 0.014. (In float32 the last two numbers are 1.5e-06 and 1.5e-06.)" in text
    assert "differ by at most 0.25 in a logit of the test clips and by 0.002 in top-1" in text
    assert "1, 2 and 4 runs at once train on 8,001, 8,002 and 8,004 clips per second together" in text
    assert "rendered, it takes 6.2 s. The import of PyTorch takes 3.3 s of them." in text
    assert "Training on several GPUs needs data." in text
    assert "at commit 0123456789 and uncommitted changes." in text
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in cost.page(folder).splitlines()
        if "bf16, 32" in line
    ]
    assert rows == [
        ["inference, bf16, 32", "S3D-G, folded", "1,800", "5.0", "6.00"],
        ["inference, bf16, 32", "torchvision s3d", "300", "9.9", "1.00"],
    ]
    assert cost.kernel_times(folder).to_dict("records") == [{"step": "inference", "part": "convolutions", "ms": 0.3}]


def test_the_published_bench_meets_its_budgets():
    """On one H200: five times torchvision's clips per second in inference, three in training, in no more memory."""
    from d3d.study import records

    value = records.load(BENCH, needs=["bench"]).set_index(["arm", "metric"])["value"]["s3dg"]
    assert value["inference/bf16/ratio"] >= 5
    assert value["training/bf16/ratio"] >= 3
    for case in ("inference/bf16/batch32", "inference/bf16/batch64", "training/bf16/batch32"):
        ours = "s3dg_folded" if case.startswith("inference") else "s3dg"
        assert value[f"{case}/{ours}/working_gb"] <= value[f"{case}/torchvision_s3d/working_gb"]


def test_the_published_step_meets_its_budget():
    """Four times as fast as the plain eager step of the same network, with the losses of the uncaptured step."""
    from d3d.study import records

    value = records.load(BENCH, needs=["bench"]).set_index(["arm", "metric"])["value"]["training"]
    assert value["captured/ratio"] >= 4
    assert value["loss_apart/captured_and_eager"] < 1e-3


def test_missing_bench_records_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="bench"):
        cost.page(tmp_path)
