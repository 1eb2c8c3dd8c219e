"""Scores by hand, and what must hold of them for any logits."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from d3d.train.compare import compare
from d3d.train.scores import accuracy, calibration, likeness, pair_accuracy, score_splits


def test_accuracy_by_hand():
    logits = np.array([[2, 1, 0], [0, 1, 0], [0, 0, 3], [5, 0, 0]], dtype=np.float32)
    metrics = accuracy(logits, np.array([0, 1, 2, 1]), ["motion", "motion", "both", "both"])
    assert metrics == {"top1": 0.75, "motion/top1": 1.0, "both/top1": 0.5}


def test_one_group_adds_no_metric():
    assert accuracy(np.eye(2), np.array([0, 0]), ["all", "all"]) == {"top1": 0.5}


def test_fewer_logits_than_labels_are_an_error():
    with pytest.raises(ValueError, match="3 clips were scored but the split has 4"):
        accuracy(np.eye(3), np.zeros(4), ["all"] * 4)


def test_forced_choice_looks_at_siblings_only():
    logits = np.array([[2.0, 1, 9], [2, 3, 0], [5, 5, 0], [0, 0, 1]])
    labels, groups = np.array([0, 0, 1, 2]), ["motion", "motion", "appearance", "both"]
    scores = pair_accuracy(logits, labels, groups, np.array([1, 0, -1]))
    assert scores == {"motion/pair_accuracy": 0.5, "appearance/pair_accuracy": 0.5}
    assert pair_accuracy(logits[3:], labels[3:], groups[3:], np.array([1, 0, -1])) == {}


def test_calibration_by_hand():
    """Confidences .9 (right), .6 (wrong) and .62 (right): the last two share the bin from .6 to .667."""
    probability = np.array([[0.9, 0.1], [0.6, 0.4], [0.38, 0.62]])
    scores = calibration(np.log(probability) + 3, np.array([0, 1, 1]))
    assert scores["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.62)) / 3)
    assert scores["ece"] == pytest.approx((abs(1 - 0.9) + abs(1 - (0.6 + 0.62))) / 3)


def test_a_network_that_is_always_sure_and_right_is_calibrated():
    logits = 1000.0 * np.eye(3)
    assert calibration(logits, np.arange(3)) == {"nll": 0.0, "ece": 0.0}


def test_pooled_scores_are_those_of_both_splits_together():
    first = {"logits/val": np.eye(2), "labels/val": np.array([0, 1]), "groups/val": np.array(["a", "a"])}
    second = {"logits/iid": np.eye(2)[:1], "labels/iid": np.array([1]), "groups/iid": np.array(["a"])}
    scores = score_splits(first | second | {"siblings": np.array([1, 0])})
    assert (scores["val/top1"], scores["iid/top1"]) == (1.0, 0.0)
    assert scores["pooled/top1"] == scores["pooled/a/pair_accuracy"] == pytest.approx(2 / 3)
    assert not [name for name in score_splits(first) if name.startswith("pooled")]


LABELS = np.repeat([0, 1], 20)
CLIPS = np.random.default_rng(0).normal(size=(3, 40, 4))  # three networks' logits, independent of each other


def likeness_to(teacher, student) -> dict[str, float]:
    return likeness(student, teacher, CLIPS[2], LABELS)


def test_what_the_label_tells_is_no_likeness():
    """Class means and offsets of clips do not count; what is left of the clip does."""
    by_class = np.array([[9.0, 0, 0, 0], [0, 9, 0, 0]])[LABELS]
    offsets = np.random.default_rng(1).normal(size=(40, 1))
    independent = likeness_to(CLIPS[0] + by_class + offsets, CLIPS[1] + by_class + offsets)
    assert abs(independent["residual_correlation"]) < 0.3
    assert independent["agreement"] > 0.9
    shared = likeness_to(CLIPS[0] + by_class, 0.5 * CLIPS[0] - by_class + offsets)
    assert shared["residual_correlation"] == pytest.approx(1)
    assert shared["agreement"] < 0.2


def test_rescued_clips_are_those_that_only_the_control_gets_wrong():
    right, wrong = np.array([[1.0, 0]]), np.array([[0.0, 1]])
    teacher, control = np.concatenate([right, right, right, wrong]), np.concatenate([wrong, wrong, right, wrong])
    student = np.concatenate([right, wrong, wrong, right])
    assert likeness(student, teacher, control, np.zeros(4, int))["rescued"] == 0.5
    assert np.isnan(likeness(student, teacher, teacher, np.zeros(4, int))["rescued"])


@given(arrays(np.float64, (6, 3), elements=st.floats(-50, 50)), st.permutations(range(6)))
def test_scores_do_not_depend_on_the_order_of_clips(logits, order):
    labels, groups = np.array([0, 1, 2, 0, 1, 2]), np.array(["a", "a", "b"] * 2)
    siblings = np.array([1, 0, -1])
    expected, actual = (
        accuracy(x, y, g) | calibration(x, y) | pair_accuracy(x, y, g, siblings)
        for x, y, g in ((logits, labels, groups), (logits[order], labels[order], groups[order]))
    )
    assert actual == pytest.approx(expected)


def test_networks_are_compared_on_the_same_clips_only():
    network = {"logits/iid": CLIPS[0], "labels/iid": LABELS, "groups/iid": LABELS}
    scores = compare(network, network | {"logits/iid": CLIPS[1]}, network | {"logits/iid": CLIPS[2]})
    assert set(scores) == {"iid/agreement", "iid/residual_correlation", "iid/rescued"}
    assert compare(network, network, network)["iid/agreement"] == 1
    with pytest.raises(ValueError, match="did not score the same clips of 'iid'"):
        compare(network, network, network | {"labels/iid": 1 - LABELS})
