"""Sentences and tables of the chapters: what they say when claims hold, fail, or need data."""

import re

import numpy as np
import pandas as pd
import pytest

from d3d.report import evidence, front, labels, prose, wording
from d3d.report.claims import read_claims
from d3d.report.ledger import judge
from d3d.report.stats import Interval
from d3d.study.plan import SMOKE

CLAIMS = read_claims()
TOP1 = "iid/top1"
# (metric, arm, value) for which the claims H1 to H4 hold; `table` adds the metrics of the probes.
HOLDING = [
    *[(TOP1, arm, v) for arm, v in {"rgb": 0.7, "rgb_longer": 0.71, "two_stream": 0.8, "d3d": 0.805}.items()],
    *[(TOP1, arm, v) for arm, v in {"rgb_rgb": 0.72, "flow": 0.6}.items()],
    *[("iid/top1_gain", arm, v) for arm, v in {"d3d_d3d": 0.02, "d3d_rgb": 0.01, "rgb_rgb": 0.02}.items()],
]


def table(changes=(), *, seeds=10):
    """Records for which H1 to H4 hold; `changes` replaces values by (metric, arm)."""
    values = {(metric, arm): v for metric, arm, v in HOLDING}
    for claim in CLAIMS.claims:
        for condition in claim.conditions if claim.id in ("H1", "H2") else ():
            for arm, rank in {"random": 4, "rgb": 3, "rgb_longer": 3, "rgb_teacher": 3, "d3d": 2, "tuned": 1}.items():
                if condition.metric.endswith("target_epe"):
                    values.setdefault((condition.metric, arm), rank / 10)
                elif not condition.metric.endswith("top1"):
                    values.setdefault((condition.metric, arm), 0.5 + (arm == "d3d") / 10)
    values |= dict(changes)
    rng = np.random.default_rng(0)
    rows = [(arm, s, metric, v + 1e-4 * rng.normal()) for (metric, arm), v in values.items() for s in range(seeds)]
    return pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]).assign(stand_in=True)


def sentences(changes=(), *, seeds=10):
    rows = table(changes, seeds=seeds)
    verdicts = judge(CLAIMS, rows)
    return {
        "streams": prose.streams(rows, seeds=CLAIMS.seeds),
        "missing": prose.missing_motion(verdicts, rows),
        "distillation": prose.distillation(verdicts, rows),
        "ensembles": prose.ensembles(verdicts, rows),
        "summary": prose.ledger_summary(verdicts),
    }


def test_numbers():
    assert labels.number_text(None) == "needs data"
    assert labels.number_text(Interval(-0.5, float("nan"), float("nan"), 1)) == "−0.500 (one value)"
    assert labels.number_text(Interval(0.5, -0.25, 1.25, 4)) == "0.500 [−0.250, 1.250]"
    assert labels.number_text(Interval(0.5, -0.25, 1.25, 4), signed=True) == "+0.500 [−0.250, +1.250]"
    assert labels.number_text(Interval(float("inf"), float("nan"), float("nan"), 4)) == "not defined"
    assert labels.percent_text(None) == "needs data"
    assert labels.percent_text(Interval(0.5, float("nan"), float("nan"), 1)) == "50 % (one value)"
    assert labels.percent_text(Interval(0.5, -0.25, 1.25, 4)) == "50 % [−25, 125]"
    assert labels.percent_text(Interval(float("inf"), float("nan"), float("nan"), 4)) == "not defined"


def test_where_all_claims_hold():
    text = sentences()
    assert text["streams"].startswith("The two streams complement each other. Two-stream averages ")
    assert "The top-1 of two-stream is 0.800 [" in text["streams"]
    assert "Top-1 is 0.080 [0.0" in text["streams"]
    assert "] higher for two-stream than for RGB + RGB. " in text["streams"]
    assert text["missing"].startswith("The spatial stream is missing motion that it could hold. ")
    assert " at Mixed_4f, a layer of S3D-G. Its error on the target, in px per frame: RGB 0.300 [" in text["missing"]
    # (0.3 - 0.1) / (0.4 - 0.1)
    assert "The missing part, m = (RGB − tuned) / (random − tuned), is 0.667 [" in text["missing"]
    assert (
        " Distillation adds motion to the spatial stream without losing appearance. Its conditions at Mixed_4f, a "
        "layer of S3D-G: on motion 6 met; on appearance 3 met. " in text["distillation"]
    )
    assert " D3D is on par with two-stream. Top-1 is 0.005 [" in text["distillation"]
    # (0.805 - 0.7) / (0.8 - 0.7) and (0.71 - 0.7) / (0.8 - 0.7)
    assert re.search(r" that is closed: D3D 105 % \[\d+, \d+\]; RGB-longer 10 % \[\d+, \d+\]\.$", text["distillation"])
    assert text["ensembles"].startswith(
        "Ensembling improves D3D. Gain in top-1 over the better of the two networks: D3D + D3D +0.020 ["
    )
    assert "This gain is 0.010 [" in text["ensembles"]
    assert "] lower for D3D + RGB than for RGB + RGB." in text["ensembles"]
    assert text["summary"].startswith(
        "The paper's claims: supported on sprites (A1 to A3). This study's hypotheses: supported (H1 to H4), needs data"
    )


@pytest.mark.parametrize(
    ("change", "name", "conclusion"),
    [
        (
            {(TOP1, "two_stream"): 0.6},
            "streams",
            "The two streams complement each other less than two RGB networks do. ",
        ),
        (
            {(TOP1, "two_stream"): 0.6},
            "missing",
            "By the rule fixed beforehand, the spatial stream is not missing motion that it could hold. ",
        ),
        (
            {("Mixed_4f/target_epe", "d3d"): 0.5},
            "distillation",
            "H2, which asks for more motion and no loss of appearance, is refuted by the rule fixed beforehand. Its "
            "conditions at Mixed_4f, a layer of S3D-G: on motion 3 met, 3 violated; on "
            "appearance 3 met. Violated: D3D − RGB in error of decoded flow on the target, Mixed_4f: ",
        ),
        (
            {(TOP1, "d3d"): 0.6},
            "distillation",
            "By the rule fixed beforehand, D3D is not on par with two-stream, the average of the predictions of RGB "
            "and flow. Top-1 is 0.200 [",
        ),
        (
            {("iid/top1_gain", "d3d_rgb"): -0.1},
            "ensembles",
            "By the rule fixed beforehand, ensembling does not improve D3D. ",
        ),
    ],
)
def test_where_one_claim_fails(change, name, conclusion):
    text = sentences(change)[name]
    # The paragraph on distillation defines its networks first, and has two conclusions.
    assert conclusion in text
    assert name == "distillation" or text.startswith(conclusion)


def test_with_too_few_seeds_nothing_is_claimed():
    text = sentences(seeds=2)
    few = "(undecided: 2 of 10 seeds)"
    assert text["streams"].startswith(f"It is not shown that the two streams complement each other {few}. ")
    assert text["missing"].startswith(
        f"It is not shown that the spatial stream is missing motion that it could hold {few}. "
    )
    assert " It is not shown that distillation adds motion to the spatial stream " in text["distillation"]
    assert f" It is not shown that D3D is on par with two-stream {few}. " in text["distillation"]
    assert text["ensembles"].startswith("It is not shown that ensembling improves D3D (undecided: 2 of 5 seeds). ")
    assert (
        "claims: undecided (A1 to A3). This study's hypotheses: undecided (H1 to H4), needs data (" in text["summary"]
    )


def test_an_undecided_claim_with_enough_seeds_gives_its_word():
    rows = table({("iid/top1_gain", "d3d_rgb"): 0.0})
    text = prose.ensembles(judge(CLAIMS, rows), rows)
    assert text.startswith("It is not shown that ensembling improves D3D (undecided). ")


def test_without_records_every_sentence_needs_data():
    text = sentences(seeds=0)
    assert text["streams"].startswith("Whether the two streams complement each other needs data. ")
    assert text["missing"].startswith("Whether the spatial stream is missing motion that it could hold needs data. ")
    assert " Its error on the target, in px per frame: RGB needs data; " in text["missing"]
    assert "Whether D3D is on par with two-stream needs data. " in text["distillation"]
    assert "Top-1 for D3D against two-stream needs data. " in text["distillation"]
    assert text["distillation"].endswith(" closed: D3D needs data; RGB-longer needs data.")
    assert text["ensembles"].startswith("Whether ensembling improves D3D needs data. ")
    assert text["summary"] == (
        "The paper's claims: needs data (A1 to A3). This study's hypotheses: needs data (H1 to H9). "
        "The rows of the paper's tables: needs data (B1 to B11)."
    )


def test_what_has_no_data_has_one_word():
    rows = table(seeds=0)
    verdicts = judge(CLAIMS, rows)
    texts = [*sentences(seeds=0).values(), prose.decorrelated(rows), wording.claim_table(verdicts)]
    texts += [
        prose.comparison_table(verdicts, rows, rows),
        front.claims_text(verdicts),
        evidence.page(verdicts, SMOKE),
    ]
    for text in texts:
        assert "needs data" in text
        assert not re.search("not measured|waiting|inconclusive|undecided", text)


def test_the_table_of_claims():
    lines = wording.claim_table(judge(CLAIMS, table())).splitlines()
    assert [line.split("|")[1].strip(" *") for line in lines[2:]] == [f"A{i}" for i in (1, 2, 3)] + [
        f"H{i}" for i in range(1, 10)
    ]
    assert lines[2].endswith("| **supported on sprites** | follows H1 |")
    assert "| **needs data** | no records of " in lines[9]


def test_every_comparison_is_listed_with_its_status():
    rows = table()
    verdicts = judge(CLAIMS, rows)
    explored = rows[rows["seed"] >= 5]
    text = prose.comparison_table(verdicts, rows, explored)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    findings = [f for v in verdicts if not v.claim.follows for f in v.findings]
    by_claim = [line for line in lines[2:] if line[0] != "—"]
    assert len(by_claim) == len(findings)
    assert by_claim[0][:4] == [
        "H1",
        "RGB − tuned − 0.1 × (random − tuned)",
        "error of decoded flow on the target, Mixed_4f",
        "10",
    ]
    assert by_claim[0][5:] == ["> 0", "test: supported"]
    assert by_claim[-1] == [
        "B11",
        "D3D + RGB",
        "kinetics600 top-1",
        "0",
        "needs data",
        "> 0.781",
        "test: needs data",
    ]
    statuses = {line[6] for line in lines[2:] if line[0] in ("—", "H7", "H8")}
    halves = (f"explored: longer training, seeds {n}" for n in ("0 to 4", "5 to 9"))
    assert statuses == {"reported", "explored: the study", *halves}
    assert ["D3D − RGB-longer", "iid top-1", "5"] in [line[1:4] for line in lines if line[6].endswith("5 to 9")]


@pytest.mark.parametrize(
    ("contrast", "text"),
    [
        ("d3d - rgb_longer", "D3D − RGB-longer"),
        ("two_stream - rgb_rgb", "two-stream − (RGB + RGB)"),
        ("d3d_rgb", "D3D + RGB"),
        ("rgb - tuned - 0.1 * (random - tuned)", "RGB − tuned − 0.1 × (random − tuned)"),
        ("two_stream_logits - rgb_rgb_logits", "two-stream by logits − (RGB + RGB by logits)"),
    ],
)
def test_contrast_labels(contrast, text):
    assert labels.contrast_label(contrast) == text


@pytest.mark.parametrize(
    ("metric", "text", "unit"),
    [
        ("iid/top1", "iid top-1", "top-1"),
        ("iid/motion/top1", "iid top-1, motion pairs", "top-1"),
        ("iid/top1_gain", "iid top-1 gain over the better member", "top-1"),
        ("iid/motion/pair_accuracy", "iid forced choice, motion pairs", "forced choice"),
        ("decorrelated/residual_correlation", "decorrelated correlation with flow beyond the class", "correlation"),
        ("target_share", "share of the attribution on the target", "share"),
        ("Mixed_4f/motion/r2_within", "R² of motion within class, Mixed_4f", "R²"),
        ("Mixed_4f/hue/r2", "R² of hue, Mixed_4f", "R²"),
        ("Mixed_4f/target_epe", "error of decoded flow on the target, Mixed_4f", "px per frame"),
        ("motion_part/frozen", "motion part of the margin, frozen", "standard deviations of the logits"),
        ("boxes/frame_map", "frame mAP, true boxes", "frame mAP"),
        ("clips_per_second", "clips per second", ""),
    ],
)
def test_metric_labels(metric, text, unit):
    assert (labels.metric_label(metric), labels.unit(metric)) == (text, unit)


def test_an_unregistered_arm_keeps_its_name():
    """Such as one named by `-p arm`."""
    assert (labels.label("mine"), labels.colour("mine"), labels.marker("mine")) == ("mine", "0.5", "o")
    assert labels.label("d3d_lambda_0.3") == "D3D, λ = 0.3"
    assert labels.colour("d3d_lambda_0.3") == labels.colour("d3d")


@pytest.mark.parametrize(("d3d", "conclusion"), [(0.75, "Both"), (0.7, "Not both")])
def test_only_the_later_seeds_confirm_the_exploration(d3d, conclusion):
    """On the first five seeds D3D is ahead in both cases."""
    rng = np.random.default_rng(0)
    means = {"rgb": 0.68, "rgb_longer": 0.7, "rgb_teacher": 0.7}
    rows = [(arm, s, TOP1, v + 1e-3 * rng.normal()) for arm, v in means.items() for s in range(10)]
    rows += [("d3d", s, TOP1, (0.75 if s < 5 else d3d) + 1e-3 * rng.normal()) for s in range(10)]
    text = prose.exploration(pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]))
    assert text.endswith(f". {conclusion} of the last two intervals lie above zero.")
    assert "On seeds 0 to 4, the first that were run, top-1 for D3D against two-stream needs data." in text
    assert re.search(r"There, top-1 is 0\.0(20|19) \[.*?\] higher for RGB-longer than for RGB\.", text)


def test_an_exploration_that_was_not_run_has_no_sentence():
    assert prose.exploration(pd.DataFrame(columns=["arm", "seed", "metric", "value"])) == ""


def test_the_best_ablation_is_compared_with_the_controls():
    values = {"rgb_longer": [0.5, 0.6], "d3d": [0.9, 0.9], "d3d_kl": [0.5, 0.5], "d3d_lambda_0.1": [0.6, 0.7]}
    rows = [(arm, seed, TOP1, v) for arm, by_seed in values.items() for seed, v in enumerate(by_seed)]
    text = prose.best_ablation(pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]))
    assert text.startswith("Of the 2 variants of D3D, other values of λ included, D3D, λ = 0.1 has the highest top-1. ")
    assert " Top-1 is 0.100 [0.100, 0.100] higher for D3D, λ = 0.1 than for RGB-longer. " in text
    assert " Top-1 for D3D, λ = 0.1 against RGB-teacher needs data. " in text
    assert prose.best_ablation(pd.DataFrame(columns=["arm", "seed", "metric", "value"])) == ""


def test_endpoints_where_a_student_differs():
    def metric(name, score, difference):
        rows = [("rgb_longer", s, f"{name}/{score}", 0.5) for s in range(3)]
        return rows + [("d3d", s, f"{name}/{score}", 0.5 + difference + 0.001 * s) for s in range(3)]

    rows = metric("Mixed_3b", "motion/r2_within", 0.1) + metric("Mixed_4f", "motion/r2_within", -0.1)
    rows += metric("Mixed_3b", "target_epe", -0.1) + metric("Mixed_4f", "target_epe", 0.1)
    rows += metric("Mixed_4f", "texture/accuracy", 0.1) + metric("Mixed_4f", "shape/accuracy", -0.001)
    titles = {"motion/r2_within": "R² of motion within class", "target_epe": "error of decoded flow on the target"}
    titles |= {
        "texture/accuracy": "probe accuracy for texture",
        "hue/r2": "R² of hue",
        "shape/accuracy": "probe accuracy for shape",
    }
    lines = prose.endpoint_changes(pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]), titles).splitlines()
    assert "| R² of motion within class | better at Mixed_3b; worse at Mixed_4f | needs data |" in lines
    assert "| error of decoded flow on the target | better at Mixed_3b; worse at Mixed_4f | needs data |" in lines
    assert "| probe accuracy for texture | better at Mixed_4f | needs data |" in lines
    assert "| R² of hue | needs data | needs data |" in lines
    assert "| probe accuracy for shape | no difference shown | needs data |" in lines


def test_a_difference_has_a_word_for_its_direction():
    values = {"d3d": [0.5, 0.7], "rgb": [0.7, 0.8]}  # −0.2 and −0.1: −0.15 ± 12.7 * 0.05
    rows = [(arm, seed, TOP1, v) for arm, by_seed in values.items() for seed, v in enumerate(by_seed)]
    rows = pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"])
    assert wording.amount_text(rows, "d3d - rgb", TOP1) == "0.150 [−0.485, 0.785] lower"
    assert wording.amount_text(rows, "rgb - d3d", TOP1, more="worse", less="better") == "0.150 [−0.485, 0.785] worse"
    assert wording.amount_text(rows, "d3d - flow", TOP1) == "needs data"
    clause = prose.comparison_text(rows, "d3d - rgb", TOP1, quantity="accuracy")
    assert clause == "accuracy is 0.150 [−0.485, 0.785] lower for D3D than for RGB"


def test_decorrelated_clips_are_reported():
    values = {"d3d": [0.7, 0.8], "rgb_longer": [0.6, 0.7]}
    rows = [(arm, seed, "decorrelated/top1", v) for arm, by_seed in values.items() for seed, v in enumerate(by_seed)]
    text = prose.decorrelated(pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]))
    assert " top-1 is 0.100 [0.100, 0.100] higher for D3D than for RGB-longer. " in text
    assert text.endswith(" top-1 for D3D against RGB-teacher needs data.")
