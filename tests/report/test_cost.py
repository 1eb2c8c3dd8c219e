"""The page on cost quotes the records."""

import pytest

from d3d.report import cost, cost_tables
from d3d.study.plan import BENCH
from d3d.study.records import Record, read_all, write
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
        inference__batch=32,
        training__batch=16,
        training__share_of_matrix_rate=0.21,
        inference__share_of_time_in_kernels=0.91,
        training__share_of_time_in_kernels=0.82,
        inference__ms_per_clip__convolutions=0.3,
        inference__bf16__batch32__s3dg_folded__clips_per_second=1800.0,
        inference__bf16__batch32__s3dg_folded__working_gb=5.0,
        inference__bf16__batch32__torchvision_s3d__clips_per_second=300.0,
        inference__bf16__batch32__torchvision_s3d__working_gb=9.9,
    )
    decode = {f"workers{n}__clips__ratio": r for n, r in ((1, 0.97), (16, 1.5))}
    decode |= {"workers16__clips__clips_per_second": 111.0, "workers16__batches__clips_per_second": 99.0}
    bench(tmp_path, "decode", **decode)
    flow = {"set__fields_per_second": 900.0, "ratio": 0.9, "rms_px": 0.0441, "max_px": 0.0787}
    bench(tmp_path, "flow_set", **flow)
    training = {"plain__ms_per_step": 60.0, "eager__ms_per_step": 80.0, "captured__ms_per_step": 12.04}
    training |= {"captured__ratio": 4.98, "fit__clips_per_second": 8321.0, "loss_apart__captured_and_eager": 0.0}
    training |= {"loss_apart__captured_and_plain": 0.013, "loss_apart__plain_and_plain_fused": 0.014}
    training |= {f"loss_apart__float32__{a}": 1.5e-6 for a in ("captured_and_plain", "plain_and_plain_fused")}
    training |= {"two_runs__largest_logit_difference": 0.25, "two_runs__top1_difference": 0.002}
    bench(tmp_path, "training", {"curve_steps": 40}, **training)
    sharing = {"runs1": 8001.0, "runs4": 8004.0, "mps2": 9002.0, "mps4": 9004.0, "mps8": 9008.0}
    bench(tmp_path, "sharing", **{f"{way}__clips_per_second": rate for way, rate in sharing.items()})
    memory = {f"{s}__memory__clips_per_second": n for s, n in (("rgb", 2287.0), ("flow", 2345.0))}
    bench(tmp_path, "memory", **memory, rgb__ratio=14.78, flow__ratio=13.23)
    bench(tmp_path, "start", to_first_step__seconds=6.24, import__torch__seconds=3.3)
    return tmp_path


def test_the_page_quotes_the_records(folder):
    text = " ".join(cost.page(folder).split())
    assert (
        "S3D-G processes 6.0 times as many clips per second as torchvision's `s3d` compiled by `torch.compile`, "
        "and in a training step 3.5 times as many, in bfloat16 on one a GPU" in text
    )
    assert "with 32 clips per batch in inference and 16 in training" in text
    assert "16 worker processes deliver 111 training clips of 64 × 224 × 224 per second" in text
    assert "in memory trains at 2,287 clips per second** of 16 × 112 × 112 (RGB; flow 2,345), 14.8 times as" in text
    assert "a worker per core (flow 13.2 times)" in text
    assert "1.50 times the rate at which PyAV alone decodes" in text
    assert "with one process it is 0.97 times. As batches" in text
    assert "900 fields per second at short side 256, from file to file: 90% of the rate of TV-L1" in text
    assert "root mean square error of 0.044 pixels, and 0.079 pixels at most" in text
    assert "In inference this is 25% of the 800 TFLOP/s" in text
    assert "and two, four and eight runs train on 9,002, 9,004 and 9,008; `make study` starts MPS" in text
    assert "A step takes 60 ms in a plain loop with PyTorch's own kernels and 80 ms with ours" in text
    assert "In `d3d.train` it takes **12.0 ms, 5.0 times as fast as the plain loop**" in text
    assert "A run trains on 8,321 clips per second." in text
    assert "Over 40 steps the losses with and without capture differ by at most 0, and those of the captured" in text
    assert "step and of the plain loop by at most 0.013. Two plain loops" in text
    assert "differ by 0.014. (In float32 the last two numbers are 1.5e-06 and 1.5e-06.)" in text
    assert "differ by at most 0.25 in a logit of the test clips and by 0.002 in top-1" in text
    assert "rendered, it takes 6.2 s. The import of PyTorch takes 3.3 s of them." in text
    assert "In training it is 21%. The kernels take 91% of the time of the fastest inference and 82% of that" in text
    assert "at commit 0123456789 and uncommitted changes; several runs on one GPU" in text
    assert "{" not in text.replace("```{image}", "")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in cost.page(folder).splitlines()
        if "bf16, 32" in line
    ]
    assert rows == [
        ["inference, bf16, 32", "S3D-G, folded", "1,800", "17.8", "5.0", "6.00"],
        ["inference, bf16, 32", "torchvision s3d", "300", "106.7", "9.9", "1.00"],
    ]
    assert "\n\nPeer: torchvision s3d; card: a GPU.\n" in cost.page(folder)
    assert cost.kernel_times(folder).to_dict("records") == [{"step": "inference", "part": "convolutions", "ms": 0.3}]


def test_compiled_peers_are_the_ones_that_count(folder):
    """The peer of a row is the fastest of its case."""
    case = "inference__bf16__batch32"
    rates = {"s3dg_folded_captured": 1900.0, "torchvision_s3d": 300.0, "torchvision_s3d_compiled": 380.0}
    bench(folder, "s3dg", **{f"{case}__{name}__clips_per_second": rate for name, rate in rates.items()})
    bench(folder, "batches", inference__bf16__batch8__s3dg_folded__clips_per_second=1700.0)
    table = cost_tables.fastest(read_all(folder, ["bench"])).set_index("network")
    assert table["clips per second"].tolist() == [1700.0, 1900.0, 300.0, 380.0]
    table = table[1:]
    assert set(table["peer"]) == {"torchvision s3d, compiled"}
    assert table["× peer"].to_dict() == {
        "S3D-G, folded and captured": 5.0,
        "torchvision s3d": pytest.approx(300 / 380),
        "torchvision s3d, compiled": 1.0,
    }


def test_scaling_and_videos_have_a_table_once_they_are_measured(folder):
    provenance = PROVENANCE | {"device": "a GPU", "host": "a CPU, 16 cores"}
    study = {"study": "128 clips per process"}
    two = {f"study/processes2/{name}": value for name, value in (("ms_per_step", 14.0), ("ratio", 1.9))}
    two["study/processes2/clips_per_second"] = 18286.0
    write(folder, Record("bench", "scaling", 0, study, two, False, provenance | {"device": "another"}))
    rates = {"one_network/clips_per_second": 50.0, "two_streams_opencv/clips_per_second": 0.5}
    rates |= {"one_network/joules_per_clip": 1.5, "one_network/one_video/share/decode": 0.536}
    write(folder, Record("bench", "end_to_end", 0, {}, rates, False, provenance))
    text = cost.page(folder)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    case = ["128 clips per process", "2 processes", "18,286", "14.0", "1 process", "1.90", "another", "a CPU, 16 cores"]
    assert case in rows
    peer = "two streams, OpenCV's TV-L1"
    assert ["one network (RGB or D3D)", "50", "100.00", "1.5", "54"] in rows
    assert [peer, "0.5", "1.00", "", ""] in rows
    assert f"\n\nPeer: {peer}; card: a GPU; host: a CPU, 16 cores.\n" in text


def test_the_published_bench_meets_its_budgets():
    """On one GPU, against torchvision's network compiled, in no more memory."""
    from d3d.study import records

    rows = records.load(BENCH, needs=["bench"])
    value = rows[rows["arm"] == "s3dg"].set_index("metric")["value"]
    assert value["inference/bf16/ratio"] >= 4.5
    assert value["training/bf16/ratio"] >= 3.5
    for case, ours in (("inference/bf16/batch32", "s3dg_folded"), ("training/bf16/batch16", "s3dg")):
        for contestant in (ours, f"{ours}_captured"):
            compiled = value[f"{case}/torchvision_s3d_compiled/working_gb"]
            assert value[f"{case}/{contestant}/working_gb"] <= compiled


def test_the_published_step_meets_its_budget():
    """Four times as fast as the plain eager step of the same network, with the losses of the uncaptured step."""
    from d3d.study import records

    value = records.load(BENCH, needs=["bench"]).set_index(["arm", "metric"])["value"]["training"]
    assert value["captured/ratio"] >= 4
    assert value["loss_apart/captured_and_eager"] < 1e-3


def test_missing_bench_records_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="bench"):
        cost.page(tmp_path)
