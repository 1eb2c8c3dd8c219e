"""The ledger of this study: its commands write the metrics of its rules, and its rules can be met."""

import os
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

from d3d.report import selection
from d3d.report.claims import Condition, read_claims
from d3d.report.contrasts import arms_of
from d3d.report.labels import split_of
from d3d.report.ledger import judge, measure
from d3d.report.scale_inputs import ASSUMED
from d3d.study import plan, records
from d3d.study.arms import ARMS
from d3d.study.experiments import EXPERIMENTS, field_of, make_config, with_defaults
from d3d.study.plan import JHMDB, PUBLISHED
from d3d.study.profiles import read_profile
from d3d.video import annotations
from tests.study.test_records import PROVENANCE
from tests.video import official

CLAIMS = {claim.id: claim for claim in read_claims().claims}
# The rows of the paper's tables whose commands run something; those but B7 are about top-1, B7 is about boxes.
ROWS = [name for name, claim in CLAIMS.items() if claim.data and not claim.command.startswith("#")]
TOP1 = [name for name in ROWS if name != "B7"]
# Their commands: the one that answers a row, and of some another that trains every network.
ROUTES = [(name, kind) for name in TOP1 for kind in ("command", "training") if getattr(CLAIMS[name], kind)]
JUDGED = [name for name, claim in CLAIMS.items() if "make study" in claim.command and not claim.follows]


@cache
def calls(command: str) -> tuple[tuple[str, ...], ...]:
    """The arguments of every papermill call of a claim's command, from a shell in which papermill only prints them."""
    script = f'papermill() {{ printf "%s\\n" "$*"; }}; {command}'
    process = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    return tuple(tuple(shlex.split(line)) for line in process.stdout.splitlines())


def parsed(call: tuple[str, ...]) -> tuple[str, dict]:
    """The experiment of a call, and its parameters as papermill passes them on."""
    experiment, options = Path(call[0]).stem, call[2:]
    assert options[::3] == ("-p",) * (len(options) // 3)
    texts = dict(zip(options[1::3], options[2::3], strict=True))
    types = {name: field_of(experiment, name).type for name in texts}
    return experiment, with_defaults(experiment, {name: types[name](text) for name, text in texts.items()})


def written_by_rows(results: str) -> dict[str, set[int]]:
    """The seeds of every network that the commands of the rows train or evaluate into a folder, by arm."""
    seeds: dict[str, set[int]] = {}
    for name, kind in ROUTES:
        for experiment, params in map(parsed, calls(getattr(CLAIMS[name], kind))):
            if experiment in plan.TESTED and params["results"] == results:
                seeds.setdefault(plan.arm_name(experiment, params), set()).add(params["seed"])
    return seeds


def conditions_of(claim, kind: str):
    """The conditions that a command of a row answers: over clips those of its evaluation, else over seeds."""
    over = "clips" if claim.training and kind == "command" else "seeds"
    return [condition for condition in claim.conditions if condition.over == over]


def splits_of(dataset: str, folder: Path) -> set[str]:
    """The test splits of a data set with its official annotation files."""
    layout = official.SETS["kinetics400" if dataset.startswith("kinetics") else dataset](folder)
    table = annotations.read(dataset, layout["root"], annotations=layout["annotations"]).table
    return set(table["split"]) - {"train", ""}


@pytest.mark.parametrize(("name", "kind"), ROUTES)
def test_the_command_of_a_row_writes_the_metrics_of_its_rule(name, kind, tmp_path):
    claim = CLAIMS[name]
    runs = [parsed(call) for call in calls(getattr(claim, kind))]
    (results,) = {params["results"] for _, params in runs}
    dataset = Path(results).name
    written = written_by_rows(results)
    for experiment, params in runs:
        make_config(experiment, params)
        assert params.get("dataset", dataset) == dataset
        if experiment in plan.TRAINED:  # as the page of the rows prices it
            assert params["epochs"] == ASSUMED["student_epochs" if experiment == "distill" else "stream_epochs"].value
        if "view_clips" in params and dataset.startswith("kinetics"):
            assert [params[n] for n in ("view_clips", "view_crops")] == [
                ASSUMED[n].value for n in ("view_clips", "view_crops")
            ]
    if runs[-1][0] == "fuse":
        fused = {arm.name for arm in ARMS.values() if arm.members and set(arm.members) <= set(written)}
        written = {arm: set.intersection(*(written[m] for m in ARMS[arm].members)) for arm in fused}
    conditions = conditions_of(claim, kind)
    assert conditions
    for condition in conditions:
        assert condition.metric in {f"{dataset}/{split}/top1" for split in splits_of(dataset, tmp_path)}
        for arm in arms_of(condition.contrast):
            assert len(written[arm]) >= (claim.seeds if condition.over == "seeds" else 1), arm
            assert ARMS[arm].experiment == runs[-1][0]


def test_the_command_of_b7_is_complete():
    """tests/test_rehearsal_detection.py runs it on a tiny copy."""
    runs = [parsed(call) for call in calls(CLAIMS["B7"].command)]
    assert [(name, params["seed"]) for name, params in runs] == [("detect", seed) for seed in range(CLAIMS["B7"].seeds)]
    for _, params in runs:
        config = make_config("detect", params)
        assert config.data.files.dataset == "ava"
        assert config.detection.boxes  # the true boxes would answer an easier question
    assert [(c.contrast, c.metric) for c in CLAIMS["B7"].conditions] == [("d3d", "ava/frame_map")]


@pytest.mark.parametrize(("name", "kind"), [*ROUTES, ("B7", "command")])
def test_a_row_of_the_paper_can_be_met(name, kind, tmp_path):
    """The row is judged on records as its commands write them, and ignores them as stand-ins."""
    claim = CLAIMS[name]
    for stand_in, word in ((False, "supported"), (True, "needs data")):
        for condition in conditions_of(claim, kind):
            metrics = {condition.metric.replace("/top1", "/clips"): float(claim.clips or 1)}
            for arm in arms_of(condition.contrast):
                for seed in range(claim.seeds if condition.over == "seeds" else 1):
                    measured = metrics | {condition.metric: 0.99 + seed / 1000}
                    record = records.Record(ARMS[arm].experiment, arm, seed, {}, measured, stand_in, PROVENANCE)
                    records.write(tmp_path / str(stand_in), record)
        verdicts = judge(read_claims(), records.load(tmp_path / str(stand_in)))
        assert {v.claim.id: v.word for v in verdicts}[name] == word


@pytest.mark.parametrize("name", JUDGED)
def test_the_study_writes_the_metrics_of_a_hypothesis(name):
    claim = CLAIMS[name]
    (profile,) = (word.removeprefix("PROFILE=") for word in claim.command.split() if word.startswith("PROFILE="))
    study = read_profile(f"notebooks/params/{profile}.yaml")
    arms = {arm for experiment in EXPERIMENTS for arm in plan.arms_of(experiment, study)}
    table = records.load(PUBLISHED)
    recorded = {(row.arm, row.metric) for row in table.itertuples()}
    for condition in claim.conditions:
        for arm in arms_of(condition.contrast):
            assert arm in arms
            if condition.metric.startswith("motion_part/"):  # attribution was not part of the first study
                assert arm in plan.arms_of("attribution", study)
            elif condition.metric.startswith("boxes/"):  # nor was detection
                assert arm in plan.arms_of("detect", study)
                assert len(plan.seeds_of("detect", study)) >= read_claims().seeds
            else:
                assert (arm, condition.metric) in recorded


def test_the_rules_of_the_second_study_are_about_arms_that_it_has():
    """Its metrics are compared with those of a rehearsal in tests/test_rehearsal.py."""
    for claim in read_claims("book/claims_second.yaml").claims:
        (profile,) = (word.removeprefix("PROFILE=") for word in claim.command.split() if word.startswith("PROFILE="))
        study = read_profile(f"notebooks/params/{profile}.yaml")
        arms = {arm for experiment in EXPERIMENTS for arm in plan.arms_of(experiment, study)}
        for condition in claim.conditions:
            assert arms_of(condition.contrast) <= arms
            if condition.metric.startswith("motion_part/"):
                assert arms_of(condition.contrast) <= set(plan.arms_of("attribution", study))


def test_the_rules_for_real_video_are_about_what_its_profiles_record():
    studies = [read_profile(f"notebooks/params/jhmdb-split{split}.yaml") for split in (1, 2, 3)]
    assert [study["split"] for study in studies] == [1, 2, 3]
    arms = {arm for experiment in EXPERIMENTS for arm in plan.arms_of(experiment, studies[0])}
    recorded = {metric for cell in records.read_cells(JHMDB).values() for record in cell for metric in record.metrics}
    recorded |= {"jhmdb/test/top1_gain", "jhmdb/test/residual_correlation", "Mixed_4b/epe"}  # of ensembles and probes
    for claim in read_claims("book/claims_jhmdb.yaml").claims:
        assert "PROFILE=jhmdb-split" in claim.command
        for condition in claim.conditions:
            assert arms_of(condition.contrast) <= arms
            assert condition.metric in recorded
            if condition.metric == "Mixed_4b/epe":
                assert arms_of(condition.contrast) <= set(plan.arms_of("probe", studies[0]))


def test_the_rule_of_transfer_is_about_what_its_profiles_record():
    study = read_profile("notebooks/params/transfer.yaml")
    arms = {split_of(arm) for experiment in EXPERIMENTS for arm in plan.arms_of(experiment, study)}
    claims = read_claims("book/claims_transfer.yaml").claims
    assert [claim.id for claim in claims] == ["H5", "H5a"]
    for condition in (condition for claim in claims for condition in claim.conditions):
        assert {(arm, f"s{split}") for arm in arms_of(condition.contrast) for split in (1, 2, 3)} <= arms
    # The paper's rows have the same arms, so that the same command measures them.
    rows = [claim for claim in read_claims().claims if claim.id in ("B1", "B2", "B3", "B4", "B5", "B6")]
    assert {split_of(arm) for claim in rows for arm in arms_of(claim.conditions[0].contrast)} <= arms


def test_transfer_trains_its_sources_as_sprites_and_fine_tunes_as_long_as_a_stream():
    study, sprites = (read_profile(f"notebooks/params/{name}.yaml") for name in ("transfer", "sprites"))
    assert study["students"] == {"epochs": study["epochs"], "learning_rate": study["students"]["learning_rate"]}
    appearance = {}
    for name, source in study["sources"].items():
        profile = read_profile(f"notebooks/params/{Path(source).name}.yaml")
        assert source == f"results/transfer-source{name[1:]}"
        assert profile["seeds"] == study["seeds"]
        # A profile replaces `overrides` as a whole, and may only name arms that it has.
        assert profile["overrides"] == {a: v for a, v in sprites["overrides"].items() if a in profile["arms"]}
        runs = ("seeds", "examined_seeds", "ablation_seeds", "arms", "ablations", "overrides", "flow_cache")
        appearance[name] = {k: v for k, v in profile.items() if v != sprites.get(k) and k not in runs}
    assert appearance["k400"] == {}
    assert set(appearance["k600"]) == {"extent", "contrast", "noise"}


def test_the_verdicts_of_the_first_study_stand():
    """Its rules are kept beside the ledger; whatever is judged later, its archive gives these words."""
    verdicts = judge(read_claims("book/claims_first.yaml"), records.load(PUBLISHED))
    words = {v.claim.id: v.word for v in verdicts}
    assert words == {"H1": "supported", "H2": "refuted", "H3": "refuted", "H4": "supported"}


def test_the_cells_of_the_second_study_change_one_thing_of_its_anchor():
    anchor = read_profile("notebooks/params/sprites.yaml")
    cells = {p.stem: read_profile(p) for p in sorted(Path("notebooks/params").glob("sprites-*.yaml"))}
    searches = {name for name, cell in cells.items() if min(cell["seeds"]) >= 100}
    assert searches == {"sprites-settle", "sprites-searches", "sprites-lessons", *selection.CANDIDATES}
    cells = {name: cell for name, cell in cells.items() if name not in searches}
    seeds = [seed for profile in (anchor, *cells.values()) for seed in profile["seeds"]]
    assert len(set(seeds)) == len(seeds)
    assert 9 < min(seeds) <= max(seeds) < 100
    steps = anchor["train_clips"] * anchor["epochs"], anchor["train_clips"] * anchor["students"]["epochs"]
    for name, cell in cells.items():
        assert cell["flow_cache"] == f"results/{name}/flow"
        assert (cell["train_clips"] * cell["epochs"], cell["train_clips"] * cell["students"]["epochs"]) == steps
        assert cell["students"] | {"epochs": 0} == anchor["students"] | {"epochs": 0}
        # A profile replaces `overrides` as a whole, and may only name arms that it has.
        assert cell["overrides"] == {arm: v for arm, v in anchor["overrides"].items() if arm in cell["arms"]}
        runs = ("seeds", "examined_seeds", "ablation_seeds", "arms", "ablations", "overrides")
        changed = {k for k in anchor if anchor[k] != cell.get(k)} | (cell.keys() - anchor.keys())
        changed -= {*runs, "flow_cache"} | ({"epochs", "students"} if "train_clips" in changed else set())
        assert len(changed) == 1, (name, changed)


def test_the_lessons_are_explored_and_confirmed_with_equal_effort():
    """Each has a partner that differs in its outputs alone, five weights around its own, and new seeds."""
    exploration, confirmation = (
        read_profile(f"notebooks/params/{name}.yaml") for name in ("sprites-lessons", "lessons")
    )
    claims = [claim for claim in read_claims("book/claims_lessons.yaml").claims if claim.judged]
    lessons = [claim.conditions[0].contrast.split(" - ")[0] for claim in claims]
    assert len(set(lessons)) == 8
    for claim, lesson in zip(claims, lessons, strict=True):
        contrasts = [condition.contrast for condition in claim.conditions]
        assert contrasts == [f"{lesson} - {lesson}_shuffled"] * 2 + [f"{lesson} - rgb_longer"]
        for study in (exploration, confirmation):
            own, partner = (
                plan.overrides("distill", name, 0, profile=study, results="r")
                for name in (lesson, f"{lesson}_shuffled")
            )
            assert partner == own | {"arm": f"{lesson}_shuffled", "outputs": "shuffled"}
        assert {lesson, f"{lesson}_shuffled", "rgb_longer", "flow"} <= set(confirmation["arms"])
        names = [name for name in exploration["ablations"] if name.startswith(f"{lesson}_lambda_")]
        others = [plan.get_arm(name).overrides["lambda_"] for name in names]
        assert sorted([*others, own["lambda_"]]).index(own["lambda_"]) == 2
        assert len(others) == 4
    for claim in read_claims("book/claims_lessons.yaml").claims:
        for condition in claim.conditions:
            assert arms_of(condition.contrast) <= set(confirmation["arms"])
    steps = [exploration["train_clips"] * exploration["epochs"]]
    steps += [study["train_clips"] // 2 * study["overrides"][f"flow_half_{h}"]["epochs"]
              for study in (exploration, confirmation) for h in (1, 2)]  # fmt: skip
    assert len(set(steps)) == 1
    paths = [p for p in Path("notebooks/params").glob("*.yaml") if p.stem.startswith(("sprites", "h200", "settled"))]
    used = {seed for p in paths if p.stem != "sprites-lessons" for seed in read_profile(p)["seeds"]}
    # To 43, if twelve seeds of the anchor are too few.
    used |= {*range(32, 44)}
    seeds = [*exploration["seeds"], *confirmation["seeds"]]
    assert len(set(seeds) - used) == len(seeds) == 15
    assert min(exploration["seeds"]) >= 100 > max(confirmation["seeds"])


def test_the_second_plan_quotes_the_first_study():
    """Its numbers are typed, because a plan may not change with the records."""
    text, table = " ".join(Path("book/plan_second.md").read_text().split()), records.load(PUBLISHED)

    def mean(contrast, metric):
        return measure(table, Condition(contrast, metric)).interval.mean

    fused = (f"{mean(arm, 'iid/top1'):.3f}"[1:] for arm in ("two_stream_logits", "two_stream"))
    assert "two-stream more accurate ({}, against {} by softmax)".format(*fused) in text
    errors = (abs(mean("d3d - rgb_longer", f"{endpoint}/target_epe")) for endpoint in ("Mixed_4b", "Mixed_4f"))
    assert "D3D − RGB-longer was −{} px at 4b and {} at 4f".format(*(f"{e:.3f}"[1:] for e in errors)) in text
