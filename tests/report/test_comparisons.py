"""The tables behind the chapters, against numbers computed by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from d3d.report import comparisons
from d3d.report.claims import Claim, Condition, Ledger
from d3d.report.contrasts import ClaimError
from d3d.report.ledger import Finding, judge, measure
from d3d.report.stats import Interval
from d3d.study import archive, records
from d3d.study.records import Record
from tests.study.test_records import PROVENANCE

TOP1 = "iid/top1"


def table(values, metric=TOP1):
    """A table of records from {arm: [value of seed 0, 1, …]}."""
    rows = [(arm, seed, metric, v) for arm, by_seed in values.items() for seed, v in enumerate(by_seed)]
    return pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]).assign(stand_in=True)


def finding_of(low, high, n=10, *, above=None, below=None):
    return Finding(Condition("a - b", TOP1, above, below), Interval((low + high) / 2, low, high, n), (low, high))


def test_an_arm_without_records_has_no_interval():
    assert measure(table({"a": [0.5]}), Condition("a - b", TOP1)).interval is None
    assert comparisons.differences_from(table({"a": [0.5]}), ["a"], TOP1, base="b")[0][1].interval is None


def test_a_ratio_over_zero_is_left_out_without_a_warning():
    finding = measure(table({"a": [0.5, 0.6], "b": [0.5, 0.5]}), Condition("a / (b - 0.5)", TOP1))
    assert not np.isfinite(finding.interval.mean)
    assert comparisons.difference_table([("ratio", finding)]).empty


def test_a_linear_condition_is_rewritten_as_a_ratio():
    conditions = (Condition("a - b", TOP1, 0.0), Condition("a - b - 0.1 * (c - b)", TOP1, 0.0))
    claim = Claim("H1", "", "", "", conditions=conditions)
    # a = b + 0.25 (c - b) for the first seed, b + 0.75 (c - b) for the second.
    rows = table({"a": [0.3, 0.35], "b": [0.2, 0.2], "c": [0.6, 0.4]})
    ratio = comparisons.ratio_condition(judge(Ledger((claim,), 3), rows), "H1")
    assert (ratio.metric, ratio.above) == (TOP1, 0.1)
    assert measure(rows, Condition(ratio.contrast, ratio.metric)).values == pytest.approx((0.25, 0.75))
    without = judge(Ledger((Claim("H2", "", "", "", conditions=conditions[:1]),), 3), rows)
    with pytest.raises(ClaimError, match="H2 has no condition of the form"):
        comparisons.ratio_condition(without, "H2")


def test_arms_with_a_point_in_their_names_are_paired_by_seed():
    rows = table({"d3d": [0.5, 0.6, 0.9], "d3d_lambda_0.1": [0.4, 0.7]})
    ((label, finding),) = comparisons.differences_from(rows, ["d3d_lambda_0.1"], TOP1, base="d3d")
    assert label == "D3D, λ = 0.1 − D3D"
    assert finding.values == pytest.approx((-0.1, 0.1))


def test_difference_table_has_bounds_units_and_no_missing_findings():
    measured = finding_of(-0.2, 0.4, below=0.1)
    ratio = Finding(Condition("a / b", TOP1), Interval(2.0, 1.0, 3.0, 2), (1.5, 2.5))
    rows = comparisons.difference_table([("x", measured), ("y", Finding(Condition("a", TOP1), None)), ("z", ratio)])
    assert rows["label"].to_list() == ["x", "z"]
    assert rows["unit"].to_list() == ["top-1", "ratio"]
    assert rows.loc[0, ["mean", "low", "high", "bound", "side"]].to_list() == pytest.approx([0.1, -0.2, 0.4, 0.1, -1])
    assert rows.loc[1, "side"] == 0


def test_a_condition_of_two_claims_comes_once():
    conditions = (Condition("a - b", TOP1, 0.0),)
    claims = tuple(Claim(name, "", "", "", conditions=conditions) for name in ("H1", "H2", "H3"))
    verdicts = judge(Ledger(claims, 2), table({"a": [0.5, 0.6], "b": [0.2, 0.5]}))
    assert comparisons.claim_differences(verdicts, ["H2", "H3"])["label"].to_list() == ["H2: a − b\niid top-1"]


def test_a_contrast_over_endpoints():
    tables = [table({"a": [x, x], "b": [0.0, 1.0]}, f"{e}/hue/r2") for e, x in (("Mixed_4f", 3.0), ("Mixed_3c", 2.0))]
    tables.append(table({"a": [1.0]}, "Conv2d_1a_7x7/hue/r2"))
    result = comparisons.contrast_by_endpoint(pd.concat(tables), "a - b", "hue/r2", bound=0.5)
    assert result["endpoint"].to_list() == ["Mixed_3c", "Mixed_4f"]
    assert result["mean"].to_list() == [1.5, 2.5]
    assert result["values"].to_list() == [(2.0, 1.0), (3.0, 2.0)]
    assert set(result["bound"]) == {0.5}


def test_ablations_and_variants_are_those_of_the_records():
    arms = ["d3d", "d3d_rgb", "d3d_d3d", "d3d_kl", "d3d_lambda_10", "d3d_lambda_0.3", "d3d_lambda_3", "rgb"]
    rows = table({arm: [0.5] for arm in arms})
    assert comparisons.ablations(rows) == ["d3d_kl"]
    assert comparisons.variants(rows) == ["d3d_kl", "d3d_lambda_0.3", "d3d_lambda_3", "d3d_lambda_10"]


def test_lambda_is_that_of_the_records(tmp_path):
    for arm, lambda_, seeds in (("d3d", 3.0, 3), ("d3d_lambda_0.1", 0.1, 2), ("rgb_longer", 0.0, 3)):
        for seed in range(seeds):
            records.write(
                tmp_path,
                Record(
                    "distill", arm, seed, {"lambda_": lambda_, "seed": seed}, {TOP1: lambda_ + seed}, True, PROVENANCE
                ),
            )
    by_lambda = comparisons.lambda_table(tmp_path, [TOP1, "val/top1"])
    assert sorted(zip(by_lambda["lambda_"], by_lambda["seed"], by_lambda["value"], strict=True)) == [
        *((0.1, seed, 0.1 + seed) for seed in range(2)),
        *((3.0, seed, 3.0 + seed) for seed in range(3)),
    ]
    assert comparisons.seeds_at_every_lambda(by_lambda) == [0, 1]
    assert comparisons.seeds_at_every_lambda(comparisons.lambda_table(tmp_path / "none", [TOP1])) == []


def test_training_histories_have_one_row_per_epoch(tmp_path):
    for seed in (0, 1):
        path = records.write(tmp_path, Record("train", "rgb", seed, {}, {TOP1: 0.5}, True, PROVENANCE))
    lines = [{"event": "start"}, {"epoch": 0.5, "loss": 9.0}, {"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    histories = comparisons.training_histories(tmp_path, ["rgb"])
    assert list(histories) == [("rgb", 1)]
    assert histories["rgb", 1]["loss"].to_list() == [3.0, 2.0]
    assert comparisons.training_histories(tmp_path, ["flow"]) == {}


def test_score_table_prints_mean_and_half_interval():
    rows = pd.concat([table({"rgb": [0.4, 0.6], "d3d": [0.5]}), table({"rgb": [0.1, 0.1]}, "frozen/top1")])
    text = comparisons.score_table(rows, arms=["rgb", "d3d"], metrics=[TOP1, "frozen/top1"])
    # t of one degree of freedom is 12.706: half of the interval is that times 0.1.
    assert text.loc["RGB"].to_list() == ["0.500 ± 1.271", "0.100 ± 0.000"]
    assert text.loc["D3D"].to_list() == ["0.500", "—"]
    assert list(text.columns) == ["iid", "frozen"]


def test_a_run_that_writes_several_records_is_counted_once(tmp_path, monkeypatch):
    def record(experiment, arm, seed, seconds, params, folder="h200"):
        provenance = PROVENANCE | {"seconds": seconds, "device": "gpu"}
        records.write(tmp_path / folder, Record(experiment, arm, seed, params, {TOP1: 0.5}, True, provenance))

    record("probe", "rgb", 0, 1800.0, {"seed": 0})
    record("probe", "d3d", 0, 3600.0, {"seed": 0})
    record("train", "rgb", 0, 900.0, {"arm": "rgb"})
    record("train", "flow", 0, 900.0, {"arm": "flow"})
    record("train", "rgb", 100, 360.0, {"arm": "rgb"}, "regime/a1")
    record("distill", "d3d", 100, 720.0, {"arm": "d3d"}, "lambda/first")
    record("train", "rgb", 0, 180.0, {"arm": "rgb"}, "settled")
    record("train", "rgb", 100, 36.0, {"arm": "rgb"}, "jhmdb/keep-split1")
    folders = {"REGIME": "regime", "TUNING": "lambda", "SETTLED": "settled", "JHMDB": "jhmdb"}
    for name, folder in folders.items():
        monkeypatch.setattr(comparisons, name, archive.pack(tmp_path / folder))
    computed = comparisons.compute_table(tmp_path / "h200").set_index("experiment")
    search, schedule = "search for the knobs", "search for the students' schedule"
    others = {"exploration": 1, "pilot on JHMDB": 1}
    assert computed["runs"].to_dict() == {"probe": 1, "train": 2, search: 1, schedule: 1} | others
    hours = {"probe": 1.0, "train": 0.5, search: 0.1, schedule: 0.2, "exploration": 0.05, "pilot on JHMDB": 0.01}
    assert computed["hours"].to_dict() == pytest.approx(hours)


def test_the_exploration_is_split_into_two_halves_of_seeds():
    rgb, longer, teacher = [0.5] * 10, [0.5] * 5 + [0.6] * 5, [0.5] * 10
    settled = table({"rgb": rgb, "rgb_longer": longer, "rgb_teacher": teacher, "d3d": [0.7] * 10})
    findings = comparisons.exploration_findings(table({"rgb": [0.5], "rgb_longer": [0.9]}), settled)
    by_label = dict(comparisons.labelled(finding, source) for source, finding in findings)
    assert by_label["RGB-longer − RGB\nthe study"].values == pytest.approx((0.4,))
    assert by_label["RGB-longer − RGB\nlonger training, seeds 0 to 4"].values == (0.0,) * 5
    assert by_label["D3D − RGB-longer\nlonger training, seeds 5 to 9"].values == pytest.approx((0.1,) * 5)
    assert by_label["D3D − two-stream\nlonger training, seeds 0 to 4"].interval is None


def test_hours_of_overlapping_runs_are_counted_once(tmp_path):
    """Ten minutes, ten minutes that overlap them by five, two minutes within these, and later thirty minutes."""
    for seed, (start, minutes) in enumerate([("10:00:00", 10), ("10:05:00", 10), ("10:06:00", 2), ("11:00:00", 30)]):
        provenance = PROVENANCE | {"started": f"2026-01-01T{start}+00:00", "seconds": 60.0 * minutes}
        records.write(tmp_path, Record("train", "rgb", seed, {}, {TOP1: 0.5}, True, provenance))
    assert comparisons.busy_hours(tmp_path) == pytest.approx(0.75)
