"""Sentences that read right whatever was measured."""

import numpy as np
import pandas as pd
import pytest

from d3d.report import labels, prose
from d3d.report.ledger import Claim, Claims, Condition, Finding, Verdict, judge, read_claims
from d3d.report.stats import Interval

CLAIMS = read_claims()
TOP1 = "iid/top1"
# What every arm reaches where the claims H1 to H4 hold: (metric, arm, value).
HOLDING = [
    *[(TOP1, arm, v) for arm, v in {"rgb": 0.7, "rgb_longer": 0.71, "two_stream": 0.8, "d3d": 0.805}.items()],
    *[(TOP1, arm, v) for arm, v in {"rgb_rgb": 0.72, "flow": 0.6}.items()],
    *[("iid/top1_gain", arm, v) for arm, v in {"d3d_d3d": 0.02, "d3d_rgb": 0.01, "rgb_rgb": 0.02}.items()],
]


def table(changes=(), *, seeds=10):
    """Records of all that H1 to H4 ask for, so that they hold; `changes` replace values by (metric, arm)."""
    given = {(metric, arm): v for metric, arm, v in HOLDING}
    for claim in CLAIMS.claims:
        for condition in claim.conditions if claim.id in ("H1", "H2") else ():
            for arm, rank in {"random": 4, "rgb": 3, "rgb_longer": 3, "rgb_teacher": 3, "d3d": 2, "tuned": 1}.items():
                if condition.metric.endswith("target_epe"):
                    given.setdefault((condition.metric, arm), rank / 10)
                elif not condition.metric.endswith("top1"):
                    given.setdefault((condition.metric, arm), 0.5 + (arm == "d3d") / 10)
    given |= dict(changes)
    rng = np.random.default_rng(0)
    rows = [(arm, s, metric, v + 1e-4 * rng.normal()) for (metric, arm), v in given.items() for s in range(seeds)]
    return pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]).assign(stand_in=True)


def sentences(changes=(), *, seeds=10):
    rows = table(changes, seeds=seeds)
    found = judge(CLAIMS, rows)
    return {
        "streams": prose.streams(rows, seeds=CLAIMS.seeds),
        "missing": prose.missing_motion(found, rows),
        "distillation": prose.distillation(found, rows),
        "ensembles": prose.ensembles(found, rows),
        "verdict": prose.verdict(found),
    }


def test_numbers():
    assert labels.number_text(None) == "not measured"
    assert labels.number_text(Interval(-0.5, float("nan"), float("nan"), 1)) == "−0.500 (one value)"
    assert labels.number_text(Interval(0.5, -0.25, 1.25, 4)) == "0.500 [−0.250, 1.250]"
    assert labels.number_text(Interval(0.5, -0.25, 1.25, 4), signed=True) == "+0.500 [−0.250, +1.250]"
    assert labels.number_text(Interval(float("inf"), float("nan"), float("nan"), 4)) == "not defined"


def test_where_all_holds():
    said = sentences()
    assert said["streams"].startswith("The two streams complement each other: their top-1 together is 0.800 [")
    assert said["missing"].startswith("The spatial stream is missing motion that it could hold. At Mixed_4f ")
    # (0.3 - 0.1) / (0.4 - 0.1)
    assert "RGB still has the share m = 0.667 [" in said["missing"]
    assert said["distillation"].startswith(
        "Distillation puts motion into the spatial stream without losing appearance, and D3D is on par with two-stream."
    )
    assert "two-stream that D3D recovers is 1.0" in said["distillation"]
    # (0.71 - 0.7) / (0.8 - 0.7)
    assert "; RGB-longer recovers 0.10" in said["distillation"] or "; RGB-longer recovers 0.09" in said["distillation"]
    assert "gain of D3D + RGB minus that of RGB + RGB is −0.010 [" in said["ensembles"]
    assert said["ensembles"].startswith("Ensembles add to D3D. Top-1 over the better member: D3D + D3D +0.020 [")
    assert said["verdict"].startswith(
        "Of the paper's claims, A1 to A3 are supported on sprites. Of this study's hypotheses, H1 to H4 are supported"
    )


@pytest.mark.parametrize(
    ("change", "name", "opening"),
    [
        (
            {(TOP1, "two_stream"): 0.6},
            "streams",
            "The two streams complement each other less than two RGB networks do: ",
        ),
        (
            {(TOP1, "two_stream"): 0.6},
            "missing",
            "By the rule fixed beforehand, the spatial stream is not missing motion that it could hold. ",
        ),
        (
            {("Mixed_4f/target_epe", "d3d"): 0.5},
            "distillation",
            "By the rule fixed beforehand, distillation does not put motion into the spatial stream without losing "
            "appearance, and D3D is on par with two-stream. ",
        ),
        (
            {(TOP1, "d3d"): 0.6},
            "distillation",
            "Distillation puts motion into the spatial stream without losing appearance, and D3D does not meet the "
            "conditions of being on par with two-stream. ",
        ),
        (
            {("iid/top1_gain", "d3d_rgb"): -0.1},
            "ensembles",
            "By the rule fixed beforehand, ensembles do not add to D3D. ",
        ),
    ],
)
def test_where_one_fails(change, name, opening):
    assert sentences(change)[name].startswith(opening)


def test_with_too_few_seeds_nothing_is_claimed():
    said = sentences(seeds=2)
    opening = "With 2 of 10 seeds it is not judged yet whether the two streams complement each other: "
    assert said["streams"].startswith(opening)
    opening = "Whether the spatial stream is missing motion that it could hold is undecided: 2 of 10 seeds. "
    assert said["missing"].startswith(opening)
    assert said["distillation"].startswith("It is not shown that distillation puts motion into ")
    assert ", and it is not shown that D3D is on par with two-stream. " in said["distillation"]
    assert said["ensembles"].startswith("It is not shown that ensembles add to D3D. ")
    assert "A1 to A3 are undecided. Of this study's hypotheses, H1 to H4 are undecided and" in said["verdict"]


def test_where_nothing_is_measured_it_says_so():
    said = sentences(seeds=0)
    opening = "Whether the spatial stream is missing motion that it could hold is not measured. "
    assert said["missing"].startswith(opening)
    assert said["verdict"] == (
        "Of the paper's claims, A1 to A3 are waiting for data. Of this study's hypotheses, H1 to H9 are waiting for "
        "data; of the rows of the paper's tables, B1 to B11 are waiting for data."
    )


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["A1"], "A1"),
        (["A1", "A3"], "A1 and A3"),
        (["H1", "H2", "H4"], "H1, H2 and H4"),
        (["H1", "H3", "H4", "H5"], "H1 and H3 to H5"),
        (["B9", "B10", "B11", "H1"], "B9 to B11 and H1"),
        (["H1 is open", "H2 holds", "H3 fails"], "H1 is open, H2 holds and H3 fails"),
    ],
)
def test_lists(names, text):
    assert prose.listed(names) == text


def reason(*findings, seeds=10, judged=True):
    """Why the verdict on a claim of these conditions: (value of a, above)."""
    conditions = tuple(Condition(f"a{i}", TOP1, above if judged else None) for i, (_, above) in enumerate(findings))
    claim = Claim("H1", "", "", "", judged=judged, conditions=conditions)
    rows = [(f"a{i}", s, TOP1, v + 0.01 * (s % 2)) for i, (v, _) in enumerate(findings) for s in range(seeds)]
    rows = pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]).assign(stand_in=True)
    return prose.why(judge(Claims((claim,), 10), rows)[0])


def test_why():
    assert reason((0.5, 0.1), (0.2, 0.1)).startswith(
        "2 of 2 conditions hold; closest to its bound: a1 in iid top-1: 0.205 ["
    )
    assert reason((0.5, 0.1), (0.0, 0.1)).startswith("1 of 2 conditions hold; refuted: a1 in iid top-1: 0.005 [")
    assert reason((0.5, 0.1), (0.0, 0.1)).endswith("], asked > 0.1")
    assert reason((0.5, 0.1), (0.095, 0.1)).startswith("1 of 2 conditions hold; undecided: a1 in iid top-1: 0.100 [")
    assert reason((0.5, 0.1), seeds=3) == "3 of 10 seeds"
    assert reason((0.5, 0.1), seeds=0) == "not measured: iid top-1"
    assert reason((0.5, 0.1), judged=False) == "reported, not judged"


def test_the_ledger_in_plain_words():
    lines = prose.plainly(judge(CLAIMS, table())).splitlines()
    assert [line.split("|")[1].strip(" *") for line in lines[2:]] == [f"A{i}" for i in (1, 2, 3)] + [
        f"H{i}" for i in range(1, 10)
    ]
    assert lines[2].endswith("| **supported on sprites** | as H1 |")
    assert "| **waiting for data** | not measured: " in lines[9]


def test_every_comparison_is_listed_with_whether_it_was_a_test():
    rows = table()
    found = judge(CLAIMS, rows)
    explored = rows[rows["seed"] >= 5]
    text = prose.every_comparison(found, rows, explored)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    own = [f for v in found if not v.claim.follows for f in v.findings]
    by_claim = [line for line in lines[2:] if line[0] != "—"]
    assert len(by_claim) == len(own)
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
        "not measured",
        "> 0.781",
        "test: needs data",
    ]
    said = {line[6] for line in lines[2:] if line[0] in ("—", "H7", "H8")}
    assert said == {"reported", "explored: the study", *(f"explored: settled, seeds {n}" for n in ("0 to 4", "5 to 9"))}
    assert ["D3D − RGB-longer", "iid top-1", "5"] in [line[1:4] for line in lines if line[6].endswith("5 to 9")]


@pytest.mark.parametrize(
    ("contrast", "text"),
    [
        ("d3d - rgb_longer", "D3D − RGB-longer"),
        ("two_stream - rgb_rgb", "two-stream − (RGB + RGB)"),
        ("d3d_rgb", "D3D + RGB"),
        ("rgb - tuned - 0.1 * (random - tuned)", "RGB − tuned − 0.1 × (random − tuned)"),
    ],
)
def test_contrasts_in_print(contrast, text):
    assert labels.contrast_label(contrast) == text


@pytest.mark.parametrize(
    ("metric", "text", "unit"),
    [
        ("iid/top1", "iid top-1", "top-1"),
        ("iid/motion/top1", "iid top-1, motion pairs", "top-1"),
        ("iid/top1_gain", "iid top-1 over its better member", "top-1"),
        ("Mixed_4f/motion/r2_within", "R² of motion within class, Mixed_4f", "R²"),
        ("Mixed_4f/hue/r2", "R² of hue, Mixed_4f", "R²"),
        ("Mixed_4f/target_epe", "error of decoded flow on the target, Mixed_4f", "px a frame"),
        ("motion_part/frozen", "motion part of the margin, frozen", "standard deviations of the margin"),
        ("boxes/frame_map", "frame mAP, boxes", ""),
        ("clips_per_second", "clips per second", ""),
    ],
)
def test_metrics_in_words(metric, text, unit):
    assert (labels.metric_label(metric), labels.unit(metric)) == (text, unit)


def test_an_arm_without_an_entry_keeps_its_name():
    """A reader's own, named by `-p arm`."""
    assert (labels.label("mine"), labels.colour("mine"), labels.marker("mine")) == ("mine", "0.5", "o")
    assert labels.label("d3d_lambda_0.3") == "D3D, λ = 0.3"
    assert labels.colour("d3d_lambda_0.3") == labels.colour("d3d")


def test_what_waits_for_data_is_no_verdict():
    claim = Claim("B1", "", "", "", data="videos")
    assert prose.standing(Verdict(claim, "needs data", "needs videos", (Finding(Condition("a", TOP1), None),))) == (
        "waiting for data"
    )


@pytest.mark.parametrize(("d3d", "said"), [(0.75, "both above zero"), (0.7, "not both above zero")])
def test_an_exploration_is_confirmed_by_its_later_seeds_alone(d3d, said):
    """In the first five D3D is ahead in both cases."""
    rng = np.random.default_rng(0)
    means = {"rgb": 0.68, "rgb_longer": 0.7, "rgb_teacher": 0.7}
    rows = [(arm, s, TOP1, v + 1e-3 * rng.normal()) for arm, v in means.items() for s in range(10)]
    rows += [("d3d", s, TOP1, (0.75 if s < 5 else d3d) + 1e-3 * rng.normal()) for s in range(10)]
    text = prose.exploration(pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]))
    assert f", {said}; on the seeds that explored, D3D minus two-stream is not measured." in text
    assert "RGB-longer minus RGB is +0.02" in text or "RGB-longer minus RGB is +0.019" in text


def test_an_exploration_that_was_not_run_is_not_told():
    assert prose.exploration(pd.DataFrame(columns=["arm", "seed", "metric", "value"])) == ""


def test_the_best_ablation_is_held_against_the_control():
    values = {"rgb_longer": [0.5, 0.6], "d3d": [0.9, 0.9], "d3d_kl": [0.5, 0.5], "d3d_lambda_0.1": [0.6, 0.7]}
    rows = [(arm, seed, TOP1, v) for arm, given in values.items() for seed, v in enumerate(given)]
    said = prose.best_ablation(pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]))
    assert said.startswith("The best of the 2 students that differ from D3D in one thing is D3D, λ = 0.1: ")
    assert "minus RGB-longer it is +0.100 [+0.100, +0.100] in top-1" in said
    assert prose.best_ablation(pd.DataFrame(columns=["arm", "seed", "metric", "value"])) == ""


def test_endpoints_where_a_student_differs():
    def metric(name, score, difference):
        rows = [("rgb_longer", s, f"{name}/{score}", 0.5) for s in range(3)]
        return rows + [("d3d", s, f"{name}/{score}", 0.5 + difference + 0.001 * s) for s in range(3)]

    rows = metric("Mixed_3b", "motion/r2_within", 0.1) + metric("Mixed_4f", "motion/r2_within", -0.1)
    rows += metric("Mixed_3b", "target_epe", -0.1) + metric("Mixed_4f", "target_epe", 0.1)
    rows += metric("Mixed_4f", "texture/accuracy", 0.1)
    titles = {"motion/r2_within": "R² of motion within class", "target_epe": "error of decoded flow on the target"}
    titles |= {"texture/accuracy": "accuracy for texture", "hue/r2": "R² of hue"}
    lines = prose.changes(pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]), titles).splitlines()
    assert "| R² of motion within class | above zero at Mixed_3b; below at Mixed_4f | nowhere |" in lines
    assert "| error of decoded flow on the target | above zero at Mixed_4f; below at Mixed_3b | nowhere |" in lines
    assert "| accuracy for texture | above zero at Mixed_4f | nowhere |" in lines
    assert "| R² of hue | nowhere | nowhere |" in lines


def test_what_a_student_has_where_looks_do_not_help():
    values = {"d3d": [0.7, 0.8], "rgb_longer": [0.6, 0.7]}
    rows = [(arm, seed, "decorrelated/top1", v) for arm, given in values.items() for seed, v in enumerate(given)]
    text = prose.without_looks(pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]))
    assert text.endswith("RGB-longer is +0.100 [+0.100, +0.100] and D3D minus RGB-teacher not measured in top-1.")
