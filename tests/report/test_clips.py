"""Scores of clips, from published predictions: they average to the recorded metrics, and give intervals."""

import re

import numpy as np
import pytest

from d3d.report.claims import Condition
from d3d.report.clips import ClipScores
from d3d.report.evidence import finding_text
from d3d.report.ledger import measure
from d3d.study import archive, records
from d3d.study.plan import TRAINED
from tests.study.test_records import record

CLIPS, CLASSES = 60, 4
LABELS = np.arange(CLIPS) % CLASSES
SIBLINGS = np.array([1, 0, 3, 2])
GROUPS = np.where(LABELS < 2, "motion", "appearance")


def write_networks(folder, *, skill, seeds=4, only_metrics=False):
    """Networks whose true class has a logit that is higher by their skill."""
    for arm, gain in skill.items():
        for seed in range(seeds):
            rng = np.random.default_rng((seed, len(arm)))
            logits = rng.normal(size=(CLIPS, CLASSES)) + gain * np.eye(CLASSES)[LABELS]
            rows = np.arange(CLIPS)
            wins = logits[rows, LABELS] > logits[rows, SIBLINGS[LABELS]]
            metrics = {"iid/top1": float((logits.argmax(1) == LABELS).mean()), "iid/loss": 1.0}
            metrics["iid/motion/top1"] = float((logits.argmax(1) == LABELS)[LABELS < 2].mean())
            metrics["iid/motion/pair_accuracy"] = float(wins[LABELS < 2].mean())
            arrays = {"logits/iid": logits, "labels/iid": LABELS, "groups/iid": GROUPS, "siblings": SIBLINGS}
            records.write(folder, record(experiment="distill", arm=arm, seed=seed, metrics=metrics), arrays)
    return archive.pack(folder, only_metrics=only_metrics)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("study") / "study", skill={"d3d": 3.0, "rgb_longer": 1.0})


@pytest.mark.parametrize("metric", ["iid/top1", "iid/motion/top1", "iid/motion/pair_accuracy"])
def test_the_scores_of_clips_average_to_the_recorded_metric(study, metric):
    for network in records.read_all(study, TRAINED):
        scores = ClipScores(study).scores(network.arm, metric)[network.seed]
        assert scores.mean() == pytest.approx(network.metrics[metric])
        assert len(scores) == (CLIPS if metric == "iid/top1" else CLIPS // 2)


def test_the_interval_of_a_difference_contains_it_and_is_wider_than_over_seeds_of_few_clips(study):
    table = records.load(study).query("metric == 'iid/top1'").pivot(index="seed", columns="arm", values="value")
    differences = table["d3d"] - table["rgb_longer"]
    interval = ClipScores(study).interval(Condition("d3d - rgb_longer", "iid/top1"))
    assert interval.mean == pytest.approx(differences.mean())
    assert 0 < interval.low < interval.mean < interval.high
    # 60 clips alone leave a standard error of about .04.
    assert interval.high - interval.low > 0.1
    half = ClipScores(study).interval(Condition("0.5 * (d3d - rgb_longer)", "iid/top1"))
    assert half.low == pytest.approx(interval.low / 2)


def test_other_metrics_and_arms_have_no_scores_of_clips(study):
    assert ClipScores(study).interval(Condition("d3d - rgb_longer", "iid/loss")) is None
    assert ClipScores(study).interval(Condition("d3d - flow", "iid/top1")) is None
    assert ClipScores(study).interval(Condition("d3d - rgb_longer", "frozen/top1")) is None


def test_an_archive_without_arrays_has_none(tmp_path):
    study = write_networks(tmp_path / "study", skill={"d3d": 1.0, "rgb_longer": 1.0}, seeds=2, only_metrics=True)
    assert ClipScores(study).interval(Condition("d3d - rgb_longer", "iid/top1")) is None


def test_the_evidence_shows_the_interval_over_seeds_and_clips(study):
    table = records.load(study)
    finding = measure(table, Condition("d3d - rgb_longer", "iid/top1", above=0))
    text = finding_text(finding, ClipScores(study))
    low, high = re.fullmatch(
        r".* on iid/top1: .*; detectable .*; over seeds and clips \[\+(.*), \+(.*)\]", text
    ).groups()
    assert 0 < float(low) < finding.interval.mean < float(high)
    assert "clips" not in finding_text(finding)
