"""The choices made before the second study: the plan's rules on numbers made by hand, and the figure."""

import numpy as np
import pandas as pd
import pytest

from d3d.report import selection
from d3d.study import archive, records
from d3d.study.plan import SEARCHES
from d3d.study.profiles import read_profile
from tests.study.test_records import record

figure = pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 60}, tolerance=4)
NOISE = np.array([-0.002, 0.001, 0.001])


def trials(search, **means):
    """Runs on three seeds; `means` are by arm the mean of every value, and every seed differs from it by its NOISE."""
    rows = [
        (search, arm, value, seed, mean + NOISE[seed])
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


def test_the_profile_of_the_second_study_has_what_was_chosen():
    profile, trials = read_profile("notebooks/params/sprites.yaml"), selection.read_trials(SEARCHES)
    chosen = {(row.search, row.arm): row.value for row in selection.choose(trials).itertuples()}
    assert profile["epochs"] == chosen["streams", ""]
    in_profile = {
        ("rates", "d3d"): profile["students"].get("learning_rate", profile["learning_rate"]),
        ("rates", "rgb_longer"): profile["overrides"].get("rgb_longer", {}).get("learning_rate"),
        ("epochs", ""): profile["students"]["epochs"],
        ("lambdas", "d3d"): profile["lambda_"],
        ("lambdas", "rgb_teacher"): profile["overrides"]["rgb_teacher"]["lambda_"],
        ("lambdas", "class_mean"): profile["overrides"]["class_mean_own"]["lambda_"],
    }
    assert {key: value for key, value in in_profile.items() if key in chosen} == {
        key: value for key, value in chosen.items() if key in in_profile
    }


def test_the_searches_have_the_seeds_of_their_profiles():
    trials = selection.read_trials(SEARCHES)
    for profile, searches in {
        "sprites-settle": ["streams"],
        "sprites-searches": ["rates", "epochs", "lambdas"],
    }.items():
        rows = trials[trials["search"].isin(searches)]
        assert set(rows["seed"]) <= set(read_profile(f"notebooks/params/{profile}.yaml")["seeds"])
    assert trials["seed"].min() >= 100


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
