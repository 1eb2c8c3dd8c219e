"""The choices made before the second study: the plan's rules on numbers made by hand, and the figure."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from d3d.report import selection
from d3d.study import archive, records
from d3d.study.arms import get_arm
from d3d.study.plan import JHMDB_SEARCHES, SEARCHES, arms_of, seeds_of
from d3d.study.plan import overrides as plan_overrides
from d3d.study.profiles import read_profile
from tests.study.test_records import record

figure = pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 60}, tolerance=4)
NOISE = np.array([-0.002, 0.001, 0.001])


def trials(search, dataset="sprites", **means):
    """Runs on three seeds; `means` are by arm the mean of every value, and every seed differs from it by its NOISE."""
    rows = [
        (dataset, search, arm, value, seed, mean + NOISE[seed])
        for arm, by_value in means.items()
        for value, mean in by_value.items()
        for seed in range(3)
    ]
    return pd.DataFrame(rows, columns=selection.TRIAL_COLUMNS)


@pytest.mark.parametrize(
    ("rgb", "flow", "epochs", "settled"),
    [
        ((0.9, 0.904, 0.905), (0.8, 0.803, 0.9), 40, True),
        ((0.9, 0.904, 0.905), (0.8, 0.81, 0.814), 80, True),
        ((0.9, 0.92, 0.93), (0.8, 0.801, 0.802), 160, False),
        ((0.9, 0.89, 0.88), (0.8, 0.7, 0.6), 40, True),
    ],
)
def test_streams_train_until_doubling_adds_too_little_to_each(rgb, flow, epochs, settled):
    means = {arm: dict(zip((40, 80, 160), values, strict=True)) for arm, values in {"rgb": rgb, "flow": flow}.items()}
    (choice,) = selection.choose(trials("streams", **means)).itertuples()
    assert (choice.arm, choice.value, choice.note == "") == ("", epochs, settled)


def test_a_gain_that_may_still_be_large_does_not_count_as_settled():
    """The mean gain is .002, but the 90 % interval reaches .002 + 2.92 * .0106 / sqrt(3) = .0199."""
    runs = trials("epochs", d3d={12: 0.9, 24: 0.902})
    runs.loc[runs["value"] == 24, "val top-1"] += [-0.0106, 0.0, 0.0106]
    (gain,) = selection.gains_of_doubling(runs, "epochs").itertuples()
    assert (gain.epochs, gain.mean, gain.high) == (12, pytest.approx(0.002), pytest.approx(0.0199, abs=1e-4))
    (choice,) = selection.choose(runs).itertuples()
    assert choice.value == 24
    assert choice.note.startswith("not settled")


@pytest.mark.parametrize(
    ("rgb", "flow", "epochs", "settled"),
    [
        # A gain of .008 is too little here; on sprites it is not.
        ((0.20, 0.208, 0.209), (0.41, 0.418, 0.42), 60, True),
        ((0.20, 0.208, 0.209), (0.41, 0.421, 0.43), 120, True),
        ((0.20, 0.208, 0.209), (0.41, 0.421, 0.431), 240, False),
    ],
)
def test_streams_settle_on_jhmdb_by_the_bounds_of_its_own_plan(rgb, flow, epochs, settled):
    means = {"rgb": dict(zip((60, 120, 240), rgb, strict=True)), "flow": dict(zip((60, 120, 240), flow, strict=True))}
    (choice,) = selection.choose(trials("streams", "jhmdb", **means)).itertuples()
    assert (choice.value, choice.note == "") == (epochs, settled)


def test_on_jhmdb_an_interval_may_reach_two_points_for_streams_and_anything_for_students():
    """The mean gain is .004; its 90 % interval ends at .004 + 2.92 * .0106 / sqrt(3) = .0219."""
    for search, chosen in (("streams", 120), ("epochs", 60)):
        runs = trials(search, "jhmdb", d3d={60: 0.2, 120: 0.204})
        runs.loc[runs["value"] == 120, "val top-1"] += [-0.0106, 0.0, 0.0106]
        (choice,) = selection.choose(runs).itertuples()
        assert (choice.search, choice.value) == (search, chosen)


@pytest.mark.parametrize(("gain", "epochs"), [(0.0099, 20), (0.0101, 40)])
def test_students_train_for_forty_epochs_on_jhmdb_if_that_adds_a_point(gain, epochs):
    (choice,) = selection.choose(trials("epochs", "jhmdb", d3d={20: 0.2, 40: 0.2 + gain})).itertuples()
    assert choice.value == epochs


def test_searches_on_video_files_are_read_by_the_name_of_their_val_split(tmp_path):
    metrics = {"jhmdb/val/moving/top1": 0.9, "jhmdb/val/top1": 0.3, "jhmdb/test/top1": 0.8}
    for arm, params in {
        "rgb": {"epochs": 60},
        "rgb_twin": {"epochs": 60},
        "flow_epochs_120": {"epochs": 120, "stream": "flow"},
        "rgb_teacher_lambda_3": {"lambda_": 3.0, "teacher": "r/train/rgb_twin-seed100.safetensors"},
        "rgb_longer_rate_0.05": {"learning_rate": 0.05, "lambda_": 0.0, "teacher": ""},
    }.items():
        experiment = "distill" if "teacher" in params else "train"
        run = record(experiment=experiment, arm=arm, seed=100, metrics=metrics, params={"dataset": "jhmdb"} | params)
        records.write(tmp_path / "searches", run)
    rows = selection.read_trials(archive.pack(tmp_path / "searches")).values.tolist()
    assert sorted(rows) == [
        ["jhmdb", "lambdas", "rgb_teacher", 3.0, 100, 0.3],
        ["jhmdb", "rates", "rgb_longer", 0.05, 100, 0.3],
        ["jhmdb", "streams", "flow", 120, 100, 0.3],
    ]


def test_the_best_value_is_chosen_by_arm_and_the_smaller_of_equals():
    runs = trials("rates", d3d={0.03: 0.9, 0.1: 0.91, 0.3: 0.91}, rgb_longer={0.03: 0.9, 0.1: 0.89, 0.3: 0.8})
    best, longer = selection.choose(runs).itertuples()
    assert (best.arm, best.value, best.note) == ("d3d", 0.1, "")
    assert (longer.arm, longer.value, longer.note) == ("rgb_longer", 0.03, "an end of the range that was tried")


def test_nothing_is_chosen_while_a_run_is_missing():
    runs = trials("rates", d3d={0.03: 0.9, 0.1: 0.91}, rgb_longer={0.03: 0.9, 0.1: 0.89})
    missing_one = runs[~((runs["arm"] == "rgb_longer") & (runs["value"] == 0.1) & (runs["seed"] == 1))]
    assert selection.choose(missing_one)["arm"].tolist() == ["d3d"]


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [((0.02, 0.12, 0.2), 1), ((0.02, 0.05, 0.04), 1), ((0.11,), 0), ((0.05, 0.08), None), ((0.11, 0.3), 0)],
)
def test_the_first_candidate_in_which_flow_wins_is_chosen_or_the_one_where_it_wins_most(tmp_path, gains, chosen):
    for name, gain in zip(selection.CANDIDATES, gains, strict=False):
        for seed, noise in ((100, 0.01), (101, -0.01)):
            for arm, top1 in (("rgb", 0.5), ("flow", 0.5 + gain + noise)):
                run = record(experiment="train", arm=arm, seed=seed, metrics={"val/top1": top1})
                records.write(tmp_path / "searches" / name, run)
    table = selection.candidate_table(archive.pack(tmp_path / "searches"))
    assert table["flow − RGB"].tolist() == pytest.approx(list(gains))
    assert table["seeds"].tolist() == [2] * len(gains)
    assert table.index[table["chosen"] == "yes"].tolist() == ([] if chosen is None else [chosen])


# The profile that was searched for, by its archive, and the profiles of the searches.
STUDIES = {
    SEARCHES: ("sprites", ("sprites-settle", "sprites-searches")),
    JHMDB_SEARCHES: ("jhmdb-split1", ("jhmdb-searches",)),
}


@pytest.mark.parametrize("searches", STUDIES, ids=lambda path: path.stem)
def test_the_profiles_of_the_second_study_have_what_was_chosen(searches):
    profile = read_profile(f"notebooks/params/{STUDIES[searches][0]}.yaml")
    chosen = {(r.search, r.arm): r.value for r in selection.choose(selection.read_trials(searches)).itertuples()}
    of_arm, students = profile["overrides"], profile["students"]
    in_profile = {
        ("streams", ""): profile["epochs"],
        ("rates", "d3d"): students.get("learning_rate", profile["learning_rate"]),
        ("rates", "rgb_longer"): of_arm.get("rgb_longer", {}).get("learning_rate", students.get("learning_rate")),
        ("epochs", ""): students["epochs"],
        ("lambdas", "d3d"): profile["lambda_"],
        ("lambdas", "rgb_teacher"): of_arm.get("rgb_teacher", {}).get("lambda_", profile["lambda_"]),
        ("lambdas", "class_mean"): of_arm.get("class_mean_own", {}).get("lambda_", profile["lambda_"]),
    }
    assert {key: in_profile[key] for key in chosen} == chosen


@pytest.mark.parametrize("searches", STUDIES, ids=lambda path: path.stem)
def test_the_searches_have_the_seeds_of_their_profiles(searches):
    seeds = {}
    for name in STUDIES[searches][1]:
        profile = read_profile(f"notebooks/params/{name}.yaml")
        assert min(profile["seeds"]) >= 100
        arms = {arm for experiment in selection.TRAINED for arm in arms_of(experiment, profile)}
        seeds |= {arm: set(seeds_of("train", profile, name=arm)) for arm in arms}
    for run in records.read_all(searches, selection.TRAINED):
        assert run.seed in seeds[run.arm], run.name


def test_the_searches_on_jhmdb_are_those_of_its_plan():
    profile = read_profile("notebooks/params/jhmdb-searches.yaml")
    names = [*profile["arms"], *profile["ablations"]]
    tried = {}
    for name in names:
        arm = get_arm(name)
        base, _, value = name.rpartition("_")
        for parameter, override in arm.overrides.items():
            if parameter != "twin":
                assert override == float(value)
                tried.setdefault(base, set()).add(override)
                student = plan_overrides(arm.experiment, name, 100, profile=profile, results="r")
                if base.endswith("_rate"):
                    assert student["epochs"] == 20
                if base in ("d3d_rate", "d3d_epochs"):
                    assert student["lambda_"] == 0.3
    epochs, rates, lambdas = {60, 120, 240}, {0.005, 0.01, 0.02, 0.05}, {0.03, 0.1, 0.3, 1, 3}
    assert tried == {
        "rgb_epochs": epochs, "flow_epochs": epochs, "d3d_epochs": {20, 40}, "rgb_longer_rate": rates,
        "d3d_rate": rates, "d3d_lambda": lambdas, "rgb_teacher_lambda": lambdas, "class_mean_lambda": lambdas,
    }  # fmt: skip
    assert profile["seeds"] == profile["ablation_seeds"] == [100, 101, 102, 103, 104, 105]
    assert (profile["split"], profile["examined_seeds"]) == (1, [])
    # The commands at the head of the profile name its runs.
    head = Path("notebooks/params/jhmdb-searches.yaml").read_text()
    listed = subprocess.run(
        ["bash", "-c", "\n".join(f"printf '%s\\n' {line[9:]}" for line in head.splitlines() if "$run $at/" in line)],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    needed = {"rgb", "rgb_twin", "flow"}
    assert {re.fullmatch(r"/(?:train|distill)/(.+)-seed10[0-5]\.json", path)[1] for path in listed} == {*names} - needed
    assert len(listed) == 6 * len({*names} - needed)


def test_a_mean_over_other_seeds_is_not_drawn():
    """Of 0.9 at .03 and 0.8 at .1, where a seed is missing."""
    runs = trials("rates", d3d={0.03: 0.9, 0.1: 0.8})
    missing_one = runs[~((runs["value"] == 0.1) & (runs["seed"] == 1))]
    axis = selection.draw(missing_one, selection.choose(missing_one)).axes[1]
    (mean,) = (line for line in axis.lines if line.get_label() == "D3D")
    assert list(mean.get_ydata()) == pytest.approx([0.9, np.nan], nan_ok=True)


@figure
def test_selection():
    runs = pd.concat(
        [
            trials("streams", rgb={40: 0.87, 80: 0.89, 160: 0.891}, flow={40: 0.75, 80: 0.79, 160: 0.81}),
            trials("rates", d3d={0.03: 0.9, 0.1: 0.91, 0.3: 0.89}, rgb_longer={0.03: 0.9, 0.1: 0.89, 0.3: 0.8}),
            trials("lambdas", d3d={0.1: 0.9, 0.3: 0.91, 1.0: 0.89}, class_mean={0.1: 0.91, 0.3: 0.9, 1.0: 0.9}),
        ]
    )
    return selection.draw(runs, selection.choose(runs))
