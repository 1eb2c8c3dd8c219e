"""The model of what a reproduction costs: numbers by hand, and that every part can be the slowest."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3d.report import scale, scale_inputs
from d3d.report.scale import DECODING, GPU, OPENS, STAGES, START, STORAGE, stage_cost
from d3d.report.scale_inputs import DATASETS, Quantity
from d3d.study.arms import ARMS
from d3d.study.plan import BENCH

# Round numbers, from which hours are easily computed by hand.
ROUND = {
    "stream_epochs": 100, "student_epochs": 10, "view_clips": 10, "view_crops": 3, "frames": 64, "fps": 25,
    "cores_per_gpu": 10, "gpus_per_host": 8, "clips_per_gpu": 32, "parameters": 10e6, "network_bytes": 1e9,
    "storage_bytes": 1e12, "storage_opens": 1e9, "video_bytes": 50e3, "train_rate": 400, "inference_rate": 2000,
    "ring_seconds": 0.008, "decode_rate": 1000, "flow_decode_ratio": 2, "flow_rate": 1000, "field_bytes": 10e3,
    "start_seconds": 10,
}  # fmt: skip
CHANGED = ("decode_rate", "storage_bytes", "ring_seconds")
SMALL = replace(DATASETS["kinetics400"], videos=1000, train=900, validation=100)


@pytest.fixture
def small(monkeypatch):
    """A data set of 1,000 videos of 10 s: 900 train, 100 are evaluated."""
    monkeypatch.setitem(scale.DATASETS, "kinetics400", SMALL)


def values(**changes: float) -> dict[str, Quantity]:
    return {name: Quantity(value, "", "", "") for name, value in (ROUND | changes).items()}


def seconds(cost: scale.Cost) -> float:
    return cost.hours * 3600


def test_extraction_by_hand(small):
    # 1,000 videos of 249 fields, at 1,000 fields per second on each of two GPUs.
    cost = stage_cost("extraction", gpus=2, values=values())
    assert seconds(cost) == pytest.approx(10 + 249_000 / 2000)
    assert cost.gpu_hours == pytest.approx(2 * cost.hours)
    assert cost.disk_bytes == 249_000 * 10e3
    assert scale.disk_bytes("kinetics400", values()) == {"videos": 1000 * 10 * 50e3, "flow": 249_000 * 10e3}
    # The storage takes 10 kB of each field, and gives 10 s of 50 kB/s per 249 fields.
    slow = stage_cost("extraction", gpus=2, values=values(storage_bytes=1e6))
    assert slow.limit == STORAGE
    assert seconds(slow) == pytest.approx(10 + (249_000 * 10e3 + 1000 * 500e3) / 1e6)


def test_streams_and_students_by_hand(small):
    # One GPU: the start opens 1,000 videos; 100 epochs of 900 clips at 400 per second; 100 clips are evaluated.
    opens = 1000 / 1e9
    assert seconds(stage_cost("rgb", values=values())) == pytest.approx(10 + opens + 90_000 / 400 + 100 / 2000)
    # The flow stream first reads the whole cache.
    check = 249_000 * 10e3 / 1e12
    flow = stage_cost("flow", values=values())
    assert seconds(flow) == pytest.approx(10 + opens + check + 90_000 / 400 + 100 / 2000)
    assert flow.start_hours * 3600 == pytest.approx(10 + opens + check)
    # More processes divide the check of the same files, which the storage limits.
    assert stage_cost("flow", gpus=64, values=values()).start_hours == flow.start_hours
    # A student sees each clip once more, through its teacher; one of class means does so in four epochs only.
    student = 9000 * (1 / 400 + 1 / 2000)
    assert seconds(stage_cost("d3d", values=values())) == pytest.approx(10 + opens + check + student + 100 / 2000)
    assert seconds(stage_cost("rgb_teacher", values=values())) == pytest.approx(10 + opens + student + 100 / 2000)
    assert seconds(stage_cost("rgb_longer", values=values())) == pytest.approx(10 + opens + 9000 / 400 + 100 / 2000)
    class_mean = 9000 / 400 + 4 * 900 / 2000
    assert seconds(stage_cost("class_mean", values=values())) == pytest.approx(
        10 + opens + check + class_mean + 100 / 2000
    )


def test_all_reduce_by_hand(small):
    # Two GPUs: the step of 32 clips takes 80 ms and 8 ms more. A ring's traffic is 2 (n - 1) / n.
    assert stage_cost("rgb", gpus=2, values=values()).speeds[GPU] == pytest.approx(2 * 32 / 0.088)
    assert stage_cost("rgb", gpus=8, values=values()).speeds[GPU] == pytest.approx(8 * 32 / (0.080 + 0.008 * 14 / 8))
    # Two hosts: 40 MB of gradients, once over a network of 1 GB/s.
    expected = 16 * 32 / (0.080 + 0.008 * 14 / 8 + 40e6 / 1e9)
    assert stage_cost("rgb", gpus=16, values=values()).speeds[GPU] == pytest.approx(expected)
    # One GPU more than a host has needs a second host.
    assert (
        stage_cost("rgb", gpus=9, values=values()).speeds[GPU] < stage_cost("rgb", gpus=8, values=values()).speeds[GPU]
    )


def test_evaluation_by_hand(small):
    # 8 networks x 100 videos x 10 clips x 3 crops; that of flow reads the cache first.
    expected = 8 * (10 + 1000 / 1e9 + 3000 / 2000) + 249_000 * 10e3 / 1e12
    assert seconds(stage_cost("evaluation", values=values())) == pytest.approx(expected)
    # Crops are decoded once: ten cores decode one clip per second each.
    slow = stage_cost("evaluation", values=values(decode_rate=1))
    assert slow.limit == DECODING
    assert seconds(slow) == pytest.approx(8 * (10 + 1e-6) + 7 * 1000 / 10 + 1000 / 20 + 249_000 * 10e3 / 1e12)


@pytest.mark.parametrize(
    ("part", "change"),
    [(DECODING, {"decode_rate": 1}), (STORAGE, {"storage_bytes": 1e6}), (OPENS, {"storage_opens": 10}), (GPU, {})],
)
def test_each_part_can_be_the_slowest(small, part, change):
    cost = stage_cost("d3d", values=values(**change))
    assert cost.limit == part
    # RGB and flow of a clip are decoded in turn, read both, and are two files.
    by_hand = {DECODING: 10 / (1 + 1 / 2), STORAGE: 1e6 / (500e3 + 63 * 10e3), OPENS: 5}
    assert part == GPU or cost.speeds[part] == pytest.approx(by_hand[part])


def test_where_scaling_stops_by_hand(small):
    stops = scale.stops_scaling(
        "rgb", "kinetics400", values(storage_bytes=500e3 * 1000, start_seconds=1, ring_seconds=1e-9)
    )
    # The storage serves 1,000 clips per second, a GPU 400: two GPUs use 800, four 1,000.
    assert stops[STORAGE] == 2
    assert stops[DECODING] is None
    # 225 s of work, 1 s of start: half the work on n GPUs is no longer a third of the whole from n = 225 / 2 on.
    assert stops[START] == 128


def test_a_change_replaces_one_input_and_names_a_typo():
    values = scale_inputs.quantities(BENCH, {"cores_per_gpu": 64})
    assert values["cores_per_gpu"].value == 64
    assert not values["cores_per_gpu"].measured
    assert values["train_rate"] == scale_inputs.quantities(BENCH)["train_rate"]
    with pytest.raises(ValueError, match=r"no input 'core_per_gpu', but .*cores_per_gpu"):
        scale_inputs.quantities(BENCH, {"core_per_gpu": 64})
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="cores_per_gpu must be positive and finite"):
            scale_inputs.quantities(BENCH, {"cores_per_gpu": bad})
    with pytest.raises(ValueError, match=r"stage must be one of extraction, rgb, .* not 'train'"):
        stage_cost("train")
    with pytest.raises(ValueError, match=r"dataset must be one of kinetics400, .* not 'k400'"):
        stage_cost("rgb", "k400")
    with pytest.raises(ValueError, match="gpus must be at least 1, not 0"):
        stage_cost("rgb", gpus=0)


def test_records_give_the_measured_inputs():
    """The published records have all of them, each with its source; the ring of two GPUs has a traffic of one."""
    measured = scale_inputs.measured(BENCH)
    assert {name for name, q in scale_inputs.quantities(BENCH).items() if q.measured} == set(measured)
    assert all(q.source.startswith("record `") and q.value > 0 for q in measured.values())
    one, two, four = 70.0, 71.0, 73.0
    steps = {f"large_clips/processes{n}/ms_per_step": ms for n, ms in ((1, one), (2, two))}
    assert scale_inputs.ring_seconds(steps) == pytest.approx((0.001, 2, 0.001))
    # The most GPUs that were measured count: four have a traffic of 1.5.
    assert scale_inputs.ring_seconds(steps | {"large_clips/processes4/ms_per_step": four}) == pytest.approx(
        (0.003, 4, 0.002)
    )


def test_the_network_has_as_many_parameters_as_the_model_says():
    import torch

    from d3d.s3dg.network import S3DG
    from d3d.train.networks import CLASS_MEAN_EPOCHS

    with torch.device("meta"):
        network = S3DG(400, 3, 1.0, 0.5)
    assert sum(p.numel() for p in network.parameters()) == scale_inputs.ASSUMED["parameters"].value
    assert scale.CLASS_MEAN_EPOCHS == CLASS_MEAN_EPOCHS
    assert set(scale.NETWORKS) <= set(ARMS)


@given(
    stage=st.sampled_from(STAGES),
    dataset=st.sampled_from(list(DATASETS)),
    gpus=st.integers(1, 512),
    change=st.fixed_dictionaries(
        {name: st.floats(0.1, 10) for name in ("decode_rate", "storage_bytes", "ring_seconds")}
    ),
)
def test_no_gpu_is_worth_more_than_itself(stage, dataset, gpus, change):
    """More GPUs never need fewer GPU-hours than one, and what is faster never takes longer."""
    base = {name: ROUND[name] * factor for name, factor in change.items()}
    one, many = (stage_cost(stage, dataset, n, values(**base)) for n in (1, gpus))
    assert many.gpu_hours >= one.gpu_hours * (1 - 1e-9)
    faster = stage_cost(stage, dataset, gpus, values(**base | {"decode_rate": 2 * base["decode_rate"]}))
    assert faster.hours <= many.hours
    assert many.speeds[many.limit] == min(many.speeds.values())
