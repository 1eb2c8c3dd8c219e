"""The parts of D3D's gain: they add up, cells without an arm are left out, and the figure."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from d3d.report import regimes
from d3d.study import archive, records
from d3d.study.profiles import read_profile
from tests.study.test_records import record

figure = pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 60}, tolerance=4)
METRIC = "pooled/top1"


def cell(seeds=5, gains=(0.0, 0.02, 0.02, 0.021), rng=0):
    """Records of a cell: RGB-longer, class mean, flow shuffled and D3D, by how much each lies above the first."""
    noise = np.random.default_rng(rng).normal(0, 0.005, (4, seeds))
    rows = [
        ("distill", arm, seed, METRIC, 0.8 + gain + noise[i, seed], True)
        for i, (arm, gain) in enumerate(zip(("rgb_longer", "class_mean", "flow_shuffled", "d3d"), gains, strict=True))
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["experiment", "arm", "seed", "metric", "value", "stand_in"])


CELLS = {
    "anchor": cell(12),
    "ρ .5": cell(rng=1),
    "ρ .95": cell(rng=2),
    "flow wins": cell(gains=(0.0, 0.01, 0.01, 0.05), rng=3),
}


def test_the_parts_add_up_to_the_whole_gain_seed_by_seed():
    parts = regimes.decomposition(CELLS, METRIC).set_index(["part", "cell"])
    for name in CELLS:
        whole, *others = (np.array(parts.loc[(part, name), "values"]) for part in regimes.PARTS)
        assert sum(others) == pytest.approx(whole)
    assert parts.loc[("motion", "flow wins"), "mean"] == pytest.approx(0.04, abs=0.01)
    assert parts.loc[("whole gain", "anchor"), "n"] == 12


def test_a_cell_without_a_control_has_no_part_that_needs_it():
    without = CELLS | {"old": CELLS["anchor"][CELLS["anchor"]["arm"] != "class_mean"]}
    parts = regimes.decomposition(without, METRIC)
    assert set(parts[parts["cell"] == "old"]["part"]) == {"whole gain", "motion"}


def test_every_part_is_combined_over_its_cells():
    parts = regimes.decomposition(CELLS, METRIC)
    combined = regimes.over_cells(parts)
    assert list(combined) == list(regimes.PARTS)
    soft = combined["soft labels"]
    assert soft.cells == 4
    assert soft.low < 0.0175 < soft.high
    # One cell of four differs in motion: another cell may as well.
    assert combined["motion"].next_high > 0.04


def test_a_form_of_d3d_is_compared_with_the_partner_that_differs_in_the_clips_only():
    arms = (
        "d3d",
        "flow_shuffled",
        "d3d_kl",
        "d3d_kl_shuffled",
        "d3d_lambda_1",
        "flow_shuffled_lambda_1",
        "d3d_scratch",
    )
    arms += ("rgb_teacher", "class_mean", "d3d_exact_shuffled", "rgb_longer")
    rows = [("distill", arm, seed, METRIC, i + 0.1 * seed, True) for i, arm in enumerate(arms) for seed in range(3)]
    table = pd.DataFrame(rows, columns=["experiment", "arm", "seed", "metric", "value", "stand_in"])
    assert regimes.partners(table) == {
        "d3d": "flow_shuffled",
        "d3d_kl": "d3d_kl_shuffled",
        "d3d_lambda_1": "flow_shuffled_lambda_1",
    }
    measured = dict(regimes.motion_parts(table, METRIC))
    assert measured["D3D by KL"].values == pytest.approx((-1, -1, -1))
    assert set(measured) == {"D3D", "D3D by KL", "D3D, λ = 1"}


def test_every_ablation_of_the_second_study_that_flow_teaches_has_its_partner():
    profile = read_profile("notebooks/params/sprites.yaml")
    listed = [*profile["arms"], *profile["ablations"]]
    pairs = regimes.partners(pd.DataFrame({"arm": listed}))
    students = {name for name in listed if name.startswith("d3d") and not name.endswith("_shuffled")}
    assert set(pairs) == students
    assert set(pairs.values()) <= set(listed)


def packed(folder, name, *, top1, trained, seeds=(0, 1)):
    """The archive of a cell with both streams; `top1` by arm, `trained` flow's in its last epoch of training."""
    for seed in seeds:
        for arm, value in top1.items():
            run = record(experiment="train", arm=arm, seed=seed, metrics={"iid/top1": value + 0.01 * seed})
            path = records.write(folder / name, run)
            rows = [{"epoch": e, "loss": 1.0, "top1": trained - 0.1 * (2 - e), "time": 0.0, "step": e} for e in (1, 2)]
            path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Other experiments have records of the same arms.
    records.write(folder / name, record(experiment="probe", arm="flow", seed=0, metrics={"Mixed_4b/target_epe": 0.1}))
    return archive.pack(folder / name)


@pytest.fixture
def archives(tmp_path):
    anchor = packed(tmp_path, "sprites", top1={"flow": 0.8, "rgb": 0.9}, trained=0.95)
    parts = [
        packed(tmp_path, name, top1={"flow": 0.5, "rgb": 0.4}, trained=1.0)
        for name in ("sprites-rho0.5", "sprites-clips1000")
    ]
    return anchor, archive.merge(parts, tmp_path / "cells", as_cells=True)


def test_cells_are_read_in_the_order_of_the_study(archives):
    cells = regimes.read_cells(*archives)
    assert list(cells) == ["anchor", "1,000 clips", "appearance tells less"]
    flow = cells["appearance tells less"].query("arm == 'flow' and metric == 'iid/top1'")
    assert flow["value"].tolist() == pytest.approx([0.5, 0.51])


def test_what_the_teacher_knows_by_heart_is_tabulated(archives):
    table = regimes.teachers(*archives).set_index("cell")
    assert table.loc["anchor"].tolist() == pytest.approx([0.95, 0.805, 0.905])
    assert table.loc["1,000 clips"].tolist() == pytest.approx([1.0, 0.505, 0.405])
    assert len(table) == 3


def test_the_cells_of_the_figures_are_those_of_the_profiles():
    profiles = {p.stem: read_profile(p) for p in Path("notebooks/params").glob("sprites*.yaml")}
    assert set(regimes.CELLS) == {name for name, profile in profiles.items() if min(profile["seeds"]) < 100}


@figure
def test_decomposition():
    parts = regimes.decomposition(CELLS, METRIC)
    return regimes.draw(parts, regimes.over_cells(parts), xlabel="top-1")


@figure
def test_parts():
    choice = CELLS["anchor"].assign(metric="iid/motion/pair_accuracy", value=CELLS["anchor"]["value"] ** 2)
    rows = pd.concat([CELLS["anchor"], choice])
    return regimes.draw_parts(rows, {METRIC: "top-1", "iid/motion/pair_accuracy": "forced choice on motion pairs"})
