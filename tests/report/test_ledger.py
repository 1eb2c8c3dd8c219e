"""Verdicts on small tables whose outcome is known."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from d3d.report import ledger
from d3d.report.claims import Condition, Ledger, read_claims
from d3d.report.contrasts import ClaimError, arms_of
from d3d.report.evidence import finding_text
from d3d.report.ledger import Finding, judge, measure, outcome
from d3d.report.stats import Interval, interval


def table(values, metric="iid/top1", stand_in=True):
    """A records table from {arm: [value of seed 0, 1, …]}."""
    rows = [
        ("train", arm, seed, metric, value, stand_in)
        for arm, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]
    return pd.DataFrame(rows, columns=["experiment", "arm", "seed", "metric", "value", "stand_in"])


def claims(tmp_path, *rules, seeds=3, **fields):
    """A ledger with the claims H1, H2, … of these rules."""
    rows = [
        {"id": f"H{i}", "statement": "s", "source": "t", "command": "c", "rule": rule} | fields
        for i, rule in enumerate(rules, 1)
    ]
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"seeds": seeds, "claims": rows}))
    return read_claims(path)


def verdict_on(tmp_path, rule, values, **kwargs):
    """The verdict on one rule and {arm: [value of seed 0, 1, …]}."""
    return judge(claims(tmp_path, rule), table(values, **kwargs))[0]


ABOVE = {"all": [{"contrast": "d3d - rgb", "metric": "iid/top1", "above": 0}]}


@pytest.mark.parametrize(
    ("d3d", "word"),
    [
        ([0.61, 0.62, 0.60], "supported"),
        ([0.41, 0.42, 0.40], "refuted"),
        ([0.61, 0.42, 0.55], "undecided"),
    ],
)
def test_an_interval_against_its_bound(tmp_path, d3d, word):
    verdict = verdict_on(tmp_path, ABOVE, {"rgb": [0.5, 0.5, 0.5], "d3d": d3d})
    assert verdict.word == word
    assert verdict.findings[0].interval.n == 3


def test_differences_are_paired_by_seed(tmp_path):
    """Seeds differ by far more than the two networks of a seed do."""
    verdict = verdict_on(tmp_path, ABOVE, {"rgb": [0.2, 0.5, 0.8], "d3d": [0.23, 0.53, 0.831]})
    assert verdict.word == "supported"
    assert verdict.findings[0].interval.mean == pytest.approx(0.091 / 3)


def test_below_mirrors_above(tmp_path):
    rule = {"all": [{"contrast": "d3d - rgb", "metric": "iid/top1", "below": 0}]}
    assert verdict_on(tmp_path, rule, {"rgb": [0.5] * 3, "d3d": [0.4, 0.41, 0.42]}).word == "supported"
    assert verdict_on(tmp_path, rule, {"rgb": [0.5] * 3, "d3d": [0.6, 0.61, 0.62]}).word == "refuted"


def test_every_condition_must_hold(tmp_path):
    rule = {
        "all": [
            {"contrast": "d3d - rgb", "metric": "iid/top1", "above": 0},
            {"contrast": "d3d - two_stream", "metric": "iid/top1", "above": -0.01},
        ]
    }
    values = {"rgb": [0.5] * 3, "d3d": [0.6, 0.61, 0.62]}
    assert verdict_on(tmp_path, rule, values | {"two_stream": [0.6, 0.61, 0.62]}).word == "supported"
    assert verdict_on(tmp_path, rule, values | {"two_stream": [0.7, 0.71, 0.72]}).word == "refuted"
    assert verdict_on(tmp_path, rule, values | {"two_stream": [0.6, 0.63, 0.62]}).word == "undecided"


def test_too_few_seeds_are_undecided(tmp_path):
    verdict = verdict_on(tmp_path, ABOVE, {"rgb": [0.5] * 2, "d3d": [0.9, 0.91]})
    assert (verdict.word, verdict.reason) == ("undecided", "2 of 3 seeds")


def test_only_seeds_with_all_arms_count(tmp_path):
    verdict = verdict_on(tmp_path, ABOVE, {"rgb": [0.5] * 5, "d3d": [0.6, 0.61, 0.62]})
    assert verdict.findings[0].interval.n == 3


def test_a_claim_that_needs_data_names_the_missing_records(tmp_path):
    assert verdict_on(tmp_path, ABOVE, {"rgb": [0.5] * 3}).reason == "no records of d3d iid/top1"
    assert verdict_on(tmp_path, ABOVE, {}).reason == "no records of iid/top1"
    assert verdict_on(tmp_path, ABOVE, {"rgb": [0.5] * 3}).word == "needs data"


def test_arithmetic_on_arms(tmp_path):
    rule = {"all": [{"contrast": "d3d - rgb - 0.5 * (two_stream - rgb)", "metric": "iid/top1", "above": 0}]}
    values = {"rgb": [0.5] * 3, "two_stream": [0.7] * 3, "d3d": [0.64, 0.65, 0.66]}
    assert verdict_on(tmp_path, rule, values).findings[0].values == pytest.approx([0.04, 0.05, 0.06])
    rule = {"all": [{"contrast": "both - max(d3d, rgb)", "metric": "iid/top1", "above": 0}]}
    values = {"rgb": [0.5, 0.7, 0.5], "d3d": [0.6, 0.6, 0.6], "both": [0.7] * 3}
    assert verdict_on(tmp_path, rule, values).findings[0].values == pytest.approx([0.1, 0.0, 0.1])


def test_a_claim_with_data_ignores_stand_ins(tmp_path):
    rule = {"all": [{"contrast": "d3d", "metric": "ucf101/top1", "above": 0.96}]}
    listed = claims(tmp_path, rule, data="UCF101")
    on_sprites = table({"d3d": [0.99, 0.98, 0.985]}, metric="ucf101/top1")
    assert (judge(listed, on_sprites)[0].word, judge(listed, on_sprites)[0].reason) == (
        "needs data",
        "needs UCF101; the records here are of a stand-in for it",
    )
    on_videos = table({"d3d": [0.97, 0.972, 0.971]}, metric="ucf101/top1", stand_in=False)
    assert judge(listed, on_videos)[0].word == "supported"


def test_a_claim_can_follow_another(tmp_path):
    listed = claims(tmp_path, ABOVE, {"follows": "H1"})
    verdicts = judge(listed, table({"rgb": [0.5] * 3, "d3d": [0.6, 0.61, 0.62]}))
    assert [v.word for v in verdicts] == ["supported", "supported on sprites"]
    verdicts = judge(listed, table({"rgb": [0.5] * 3, "d3d": [0.4, 0.41, 0.42]}))
    assert [v.word for v in verdicts] == ["refuted", "refuted on sprites"]
    assert [v.word for v in judge(listed, table({}))] == ["needs data", "needs data"]


def test_a_reported_rule_is_not_judged(tmp_path):
    rule = {"report": [{"contrast": "d3d / rgb", "metric": "clips_per_second"}]}
    verdict = verdict_on(tmp_path, rule, {"rgb": [10.0], "d3d": [20.0]}, metric="clips_per_second")
    assert (verdict.word, verdict.findings[0].values) == ("reported", (2.0,))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"any": []}, "claim H1: rule must be a rule with one of: all, measured, report, follows, not {'any'"),
        ({"all": [{"contrast": "d3d -", "metric": "m", "above": 0}]}, "'d3d -' is not a contrast such as d3d - rgb"),
        ({"all": [{"contrast": "open('x')", "metric": "m", "above": 0}]}, "arithmetic on arms and numbers"),
        ({"all": [{"contrast": "d3d.x", "metric": "m", "above": 0}]}, "arithmetic on arms and numbers"),
        ({"all": [{"contrast": "max(d3d, key=rgb)", "metric": "m", "above": 0}]}, "arithmetic on arms and numbers"),
        ({"all": [{"contrast": "d3d", "metric": "m"}]}, "a judged condition has one of above and below"),
        ({"report": [{"contrast": "d3d", "metric": "m", "above": 0}]}, "a reported one neither"),
        (
            {"all": [{"contrast": "d3d", "metrik": "m", "above": 0}]},
            "condition 1 has the unknown key 'metrik'; there are contrast, metric",
        ),
        ({"follows": "H9"}, "follows 'H9', which is not a claim"),
        ({"follows": "H1"}, "follows 'H1', which is not a claim with its own conditions"),
        ({"all": []}, r"claim H1: all must list one condition or more, not \[\]"),
        ({"all": [{"contrast": "max()", "metric": "m", "above": 0}]}, r"'max\(\)': max needs one value or more"),
        (
            {"all": [{"contrast": "1 / 0", "metric": "m", "above": 0}]},
            "claim H1, condition 1: '1 / 0': it divides by zero",
        ),
        ({"all": [{"contrast": "0.5", "metric": "m", "above": 0}]}, "'0.5' names no arm"),
        ({"all": [{"contrast": "d3d", "metric": "m", "above": "x"}]}, "above must be a finite number, not 'x'"),
        (
            {"all": [{"contrast": "d3d", "metric": 3, "above": 0}]},
            "metric must be the name of a metric such as iid/top1, not 3",
        ),
    ],
)
def test_a_rule_that_does_not_parse_names_its_claim(tmp_path, rule, message):
    with pytest.raises(ClaimError, match=message):
        claims(tmp_path, rule)


def test_the_ledger_lists_every_claim():
    listed = read_claims()
    assert isinstance(listed, Ledger)
    ids = [claim.id for claim in listed.claims]
    assert ids == [*(f"A{i}" for i in range(1, 4)), *(f"B{i}" for i in range(1, 12)), *(f"H{i}" for i in range(1, 10))]
    rows = {c.id: c for c in listed.claims}
    assert all(rows[f"B{i}"].data and rows[f"B{i}"].claimed for i in range(1, 12))
    assert [rows[f"A{i}"].follows for i in (1, 2, 3)] == ["H1", "H2", "H3"]
    assert listed.seeds == 10
    words = {v.claim.id: v.word for v in judge(listed, table({}))}
    assert set(words.values()) == {ledger.NEEDS_DATA}


def test_a_finding_as_text(tmp_path):
    verdict = verdict_on(tmp_path, ABOVE, {"rgb": [0.5] * 3, "d3d": [0.4, 0.4, 0.4]})
    assert finding_text(verdict.findings[0]) == "d3d - rgb > 0 on iid/top1: −0.100 [−0.100, −0.100]; detectable 0.000"


def test_holm_s_correction_takes_all_claims_with_a_verdict_together(tmp_path):
    """p is .03 alone and .06 beside another claim; the rows of the paper, on other data, are not among them."""
    close, bound = [0.6, 0.632, 0.644, 0.61], 0.0
    while stats.ttest_1samp(np.array(close) - 0.5, bound).pvalue < 0.03:
        bound += 0.0005
    near = {"all": [{"contrast": "d3d - rgb", "metric": "iid/top1", "above": bound}]}
    nearer = {"all": [{"contrast": "d3d - rgb", "metric": "iid/top1", "above": bound + 0.0005}]}
    lost = {"all": [{"contrast": "rgb - d3d", "metric": "iid/top1", "above": 0}]}
    rows = table({"rgb": [0.5] * 4, "d3d": close})

    def words(ledger, **fields):
        return [v.word for v in judge(replace(ledger, **fields), rows)]

    alone = claims(tmp_path, near)
    assert words(alone) == words(alone, correction="holm") == ["supported"]
    lost_as_well = claims(tmp_path, near, lost)
    assert words(lost_as_well, correction="holm") == ["undecided", "refuted"]
    two = claims(tmp_path, near, nearer, ABOVE)
    assert words(two) == ["supported"] * 3
    corrected = judge(replace(two, correction="holm"), rows)
    assert [v.word for v in corrected] == ["undecided", "undecided", "supported"]
    assert corrected[0].reason.endswith("p = 0.06 with Holm's correction for 3 claims")
    of_the_paper = claims(tmp_path, near, nearer, data="UCF101")
    real = rows.assign(stand_in=False)
    assert [v.word for v in judge(replace(of_the_paper, correction="holm"), real)] == ["supported", "supported"]


TOP1 = "iid/top1"


def finding_of(low, high, n=10, *, above=None, below=None):
    return Finding(Condition("a - b", TOP1, above, below), Interval((low + high) / 2, low, high, n), (low, high))


@pytest.mark.parametrize(
    ("finding", "word"),
    [
        (finding_of(0.01, 0.03, above=0.0), "supported"),
        (finding_of(-0.03, -0.01, above=0.0), "refuted"),
        (finding_of(-0.01, 0.01, above=0.0), "undecided"),
        (finding_of(-0.005, 0.01, above=-0.01), "supported"),
        (finding_of(-0.03, -0.01, below=0.0), "supported"),
        (finding_of(0.01, 0.03, below=0.0), "refuted"),
        (finding_of(0.01, 0.03, n=9, above=0.0), "undecided"),
        (finding_of(0.01, 0.03), "reported"),
        (Finding(Condition("a", TOP1, 0.0), None), "needs data"),
        (Finding(Condition("a", TOP1, 0.0), Interval(1.0, float("nan"), float("nan"), 1), (1.0,)), "undecided"),
    ],
)
def test_the_word_on_a_condition(finding, word):
    assert outcome(finding, 10) == word


def equivalence(values, margin, *, above=0.0):
    """The word on a condition with an equivalence margin."""
    condition = Condition("a - b", TOP1, above, equivalence_margin=margin)
    return outcome(Finding(condition, interval(values), tuple(values)), 3)


def test_practically_zero_is_two_one_sided_tests():
    """-.006, 0, .006 have the standard error .0034641, and t(.95, 2) is 2.91999: a 90 % interval of ± .010115."""
    values = [-0.006, 0.0, 0.006]
    assert equivalence(values, 0.0102) == "practically zero"
    assert equivalence(values, 0.0101) == "undecided"
    assert equivalence(values, None) == "undecided"
    # Equivalence to zero is tested only where the bound is zero.
    assert equivalence(values, 0.0102, above=0.001) == "undecided"
    # An interval beyond its bound is supported, however small the difference.
    assert equivalence([0.001, 0.0011, 0.0012], 0.01) == "supported"


def test_the_ledger_sets_the_margin(tmp_path):
    path = tmp_path / "claims.yaml"
    claim = {"id": "H1", "statement": "s", "source": "t", "command": "c", "rule": ABOVE}
    path.write_text(yaml.safe_dump({"seeds": 3, "margins": {"top1": 0.02}, "claims": [claim]}))
    values = {"rgb": [0.5] * 3, "d3d": [0.494, 0.5, 0.506]}
    verdict = judge(read_claims(path), table(values))[0]
    assert verdict.word == "practically zero"
    assert verdict.deciding == verdict.findings
    path.write_text(yaml.safe_dump({"seeds": 3, "claims": [claim]}))
    assert judge(read_claims(path), table(values))[0].word == "undecided"


def test_a_verdict_names_the_condition_that_decided_it(tmp_path):
    rule = {"all": [{"contrast": f"d3d - {arm}", "metric": TOP1, "above": 0} for arm in ("rgb", "flow", "rgb_rgb")]}
    values = {"rgb": [0.5] * 3, "flow": [0.7] * 3, "rgb_rgb": [0.61, 0.60, 0.62], "d3d": [0.6, 0.61, 0.62]}
    verdict = verdict_on(tmp_path, rule, values)
    assert (verdict.word, [f.condition.contrast for f in verdict.deciding]) == ("refuted", ["d3d - flow"])
    assert verdict.reason == "D3D − flow in iid top-1: −0.090 [−0.115, −0.065], must be > 0"
    verdict = verdict_on(tmp_path, rule, values | {"flow": [0.5, 0.51, 0.52]})
    assert (verdict.word, [f.condition.contrast for f in verdict.deciding]) == ("undecided", ["d3d - rgb_rgb"])
    # Where all hold, the condition closest to its bound decides.
    verdict = verdict_on(tmp_path, rule, values | {"flow": [0.5, 0.5, 0.5], "rgb_rgb": [0.57, 0.58, 0.60]})
    assert (verdict.word, [f.condition.contrast for f in verdict.deciding]) == ("supported", ["d3d - rgb_rgb"])


def test_a_contrast_is_computed_seed_by_seed():
    finding = measure(table({"a": [0.5, 0.9], "b": [0.2, 0.5]}), Condition("(a - b) / b", TOP1))
    assert finding.values == pytest.approx((1.5, 0.8))
    assert finding.interval == interval(finding.values)


def test_an_arm_may_have_a_point_in_its_name():
    rows = table({"d3d": [0.5, 0.6, 0.9], "d3d_lambda_0.1": [0.4, 0.7]})
    assert measure(rows, Condition("d3d_lambda_0.1 - d3d", TOP1)).values == pytest.approx((-0.1, 0.1))
    assert measure(rows, Condition("0.5 * d3d_lambda_0.1", TOP1)).values == pytest.approx((0.2, 0.35))
    assert arms_of("max(d3d_lambda_0.1, d3d) - 0.1") == {"d3d_lambda_0.1", "d3d"}


def test_a_missing_ledger_says_where_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no ledger of claims at .*: run this at the root of the repository"):
        read_claims(tmp_path / "claims.yaml")


@pytest.mark.parametrize("content", ["", "- 1", "a: [", "claims: []", "seeds: 3", "seeds: 3\nclaims: 5"])
def test_an_invalid_ledger_is_refused_by_name(tmp_path, content):
    path = tmp_path / "claims.yaml"
    path.write_text(content)
    with pytest.raises(ClaimError, match=r"claims.yaml (must hold seeds and a list of claims|is no YAML file)"):
        read_claims(path)


@pytest.mark.parametrize("contrast", ["d3d -", "rgb − d3d", "lambda - rgb", "max()"])
def test_an_invalid_contrast_is_refused(contrast):
    with pytest.raises(ClaimError, match=r"is not a contrast such as|is arithmetic on arms|needs one value or more"):
        measure(table({"d3d": [0.5], "rgb": [0.4]}), Condition(contrast, TOP1))


def test_arms_whose_names_differ_by_a_dot_are_two_arms():
    rows = table({"d3d_lambda_0.1": [0.5, 0.6], "d3d_lambda_0_dot_1": [0.25, 0.5]})
    difference = measure(rows, Condition("d3d_lambda_0.1 - d3d_lambda_0_dot_1", TOP1))
    assert difference.values == pytest.approx((0.25, 0.1))


def test_a_value_that_is_nan_drops_no_seed():
    with pytest.raises(ValueError, match="iid/top1 of d3d is nan for seed 1"):
        measure(table({"d3d": [0.5, float("nan")], "rgb": [0.4, 0.4]}), Condition("d3d - rgb", TOP1))


def test_a_ratio_whose_denominator_is_zero_is_undecided():
    finding = measure(table({"d3d": [0.5, 0.6], "rgb": [0.4, 0.0]}), Condition("d3d / rgb", TOP1, above=0))
    assert outcome(finding, 2) == "undecided"


ARITHMETIC = st.recursive(
    st.sampled_from(["a", "b_0.1", "2", "0.5", "1e-1"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: f"({' '.join(parts)})"),
        st.tuples(st.sampled_from(["max", "min"]), inner, inner).map("{0[0]}({0[1]}, {0[2]})".format),
        inner.map("(-{})".format),
    ),
    max_leaves=8,
)


@given(ARITHMETIC)
def test_a_contrast_is_what_python_computes(text):
    rows = table({"a": [0.5, 0.6], "b_0.1": [0.25, 0.75]})
    if not arms_in(text):
        with pytest.raises(ClaimError, match="names no arm"):
            measure(rows, Condition(text, TOP1))
        return
    expected = [eval(text.replace("b_0.1", "b"), {"a": a, "b": b}) for a, b in ((0.5, 0.25), (0.6, 0.75))]
    assert measure(rows, Condition(text, TOP1)).values == pytest.approx(expected)


def arms_in(text):
    return {arm for arm in ("a", "b_0.1") if re.search(rf"\b{re.escape(arm)}\b", text)}


def test_max_and_min_take_numbers_too():
    rows = table({"d3d": [0.5, 0.7], "rgb": [0.6, 0.6]})
    assert measure(rows, Condition("max(d3d, rgb, 0.65)", TOP1)).values == pytest.approx((0.65, 0.7))
    assert measure(rows, Condition("min(d3d, 1e-2 * rgb)", TOP1)).values == pytest.approx((0.006, 0.006))


RELEASED = {"contrast": "d3d_released", "metric": "k/val/top1", "above": 0.749, "over": "clips"}
TRAINED = {"contrast": "d3d", "metric": "k/val/top1", "above": 0.749}


def of_a_row(released=None, trained=(), clips=20_000, stand_in=False):
    """Records of released weights evaluated once, and of seeds that were trained."""
    rows = [("distill", "d3d", seed, "k/val/top1", value, stand_in) for seed, value in enumerate(trained)]
    if released is not None:
        scores = (("top1", released), ("clips", float(clips)))
        rows += [("evaluate", "d3d_released", 0, f"k/val/{name}", value, stand_in) for name, value in scores]
    return pd.DataFrame(rows, columns=["experiment", "arm", "seed", "metric", "value", "stand_in"])


def verdict_on_row(tmp_path, table):
    row = claims(tmp_path, {"measured": [RELEASED, TRAINED]}, data="Kinetics", clips=18_000)
    return judge(row, table)[0]


def test_one_network_is_judged_over_its_clips(tmp_path):
    """Wilson's interval of 15,180 of 20,000 clips is [0.7530, 0.7649]."""
    verdict = verdict_on_row(tmp_path, of_a_row(0.759))
    assert verdict.word == "supported"
    assert verdict.findings[0].interval == pytest.approx((0.759, 0.7530, 0.7649, 20_000), abs=1e-4)
    assert verdict.reason.endswith("0.759 [0.753, 0.765] over 20,000 clips, must be > 0.749")
    assert verdict_on_row(tmp_path, of_a_row(0.752)).word == "undecided"
    assert verdict_on_row(tmp_path, of_a_row(0.74)).word == "refuted"
    few = verdict_on_row(tmp_path, of_a_row(0.9, clips=17_999))
    assert (few.word, few.reason) == ("undecided", "17,999 of 18,000 clips")


def test_alternatives_that_the_records_cannot_decide_are_left_out(tmp_path):
    trained = [0.76, 0.761, 0.762]
    assert verdict_on_row(tmp_path, of_a_row(trained=trained)).word == "supported"
    # One seed more does not undo what the released weights show.
    assert verdict_on_row(tmp_path, of_a_row(0.759, trained[:1])).word == "supported"
    assert verdict_on_row(tmp_path, of_a_row(0.5, trained[:1], clips=10)).reason == "1 of 3 seeds"
    # What is decided must hold for both.
    both = verdict_on_row(tmp_path, of_a_row(0.74, trained))
    assert (both.word, [f.condition.contrast for f in both.deciding]) == ("refuted", ["d3d_released"])
    assert verdict_on_row(tmp_path, of_a_row(0.759, [0.7, 0.701, 0.702])).word == "refuted"
    assert verdict_on_row(tmp_path, of_a_row()).reason == "needs Kinetics"


@given(
    real=st.one_of(st.none(), st.floats(0, 1)),
    trained=st.lists(st.floats(0, 1), max_size=4),
    stand_ins=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9)), min_size=1, max_size=4),
)
def test_a_stand_in_never_changes_the_verdict_on_a_row(tmp_path_factory, real, trained, stand_ins):
    row = claims(tmp_path_factory.mktemp("row"), {"measured": [RELEASED, TRAINED]}, data="Kinetics", clips=18_000)
    table = of_a_row(real, trained)
    fakes = [of_a_row(value, [value] * seeds, stand_in=True) for value, seeds in stand_ins]
    alone, mixed = judge(row, table)[0], judge(row, pd.concat([table, *fakes], ignore_index=True))[0]
    # As text, because of one seed the ends of the interval are nan.
    assert [str(x) for x in (alone.word, alone.findings)] == [str(x) for x in (mixed.word, mixed.findings)]
    if alone.word == "needs data":
        assert mixed.reason == "needs Kinetics; the records here are of a stand-in for it"


def test_two_values_of_one_network_are_an_error(tmp_path):
    twice = pd.concat([of_a_row(0.759), of_a_row(0.7)])
    with pytest.raises(ValueError, match="k/val/top1 of d3d_released has 2 values, but it is about one network"):
        verdict_on_row(tmp_path, twice)


@pytest.mark.parametrize(
    ("condition", "fields", "message"),
    [
        (RELEASED | {"contrast": "d3d - rgb"}, {"clips": 9}, "only the top1 of one arm has an interval over clips"),
        (RELEASED | {"metric": "k/val/nll"}, {"clips": 9}, "only the top1 of one arm has an interval over clips"),
        (RELEASED | {"over": "seeds"}, {"clips": 9}, "over must be clips"),
        (RELEASED, {}, "clips, a number, and conditions over clips need each other"),
        (TRAINED, {"clips": 9}, "clips, a number, and conditions over clips need each other"),
        (RELEASED, {"clips": 0}, "clips must be a whole number from 1 on"),
    ],
)
def test_conditions_over_clips_are_checked(tmp_path, condition, fields, message):
    with pytest.raises(ClaimError, match=message):
        claims(tmp_path, {"all": [condition]}, **fields)
