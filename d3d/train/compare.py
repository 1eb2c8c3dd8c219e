"""Comparisons of students with the flow stream on test clips, from the arrays beside the records of both."""

from collections.abc import Mapping

import numpy as np

from d3d.study import plan, records
from d3d.study.run import Run
from d3d.train.fuse import SAME_CLIPS, matching_records
from d3d.train.scores import likeness, logits_of, test_splits

CONTROL = "rgb_longer"


def run(active_run: Run) -> None:
    """Writes one record per RGB network and seed, for all that have a flow stream and RGB-longer in the results."""
    results = active_run.config.run.results
    for arm in plan.compared_arms():
        roles = arm, plan.flow_teacher(arm), CONTROL
        # A student of exact flow has seen the clips of a network that knows only TV-L1.
        for student, *others in matching_records(results, roles, must_match=[n for n in SAME_CLIPS if n != "flow"]):
            arrays = [records.read_arrays(results, record) for record in (student, *others)]
            active_run.write(arm, compare(*arrays), seed=student.seed, stand_in=student.stand_in)


def compare(
    student: Mapping[str, np.ndarray], teacher: Mapping[str, np.ndarray], control: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Computes `likeness` on every test split, and on the splits that are scored together.

    Args:
        student, teacher, control: the arrays beside each network's record.

    Returns:
        `<split>/<metric>`; without `rescued` where it is nan.

    Raises:
        ValueError: if the networks did not score the same clips.
    """
    metrics: dict[str, float] = {}
    for split in test_splits(student):
        (logits, labels), *others = (logits_of(arrays, split) for arrays in (student, teacher, control))
        if any(not np.array_equal(labels, other_labels) for _, other_labels in others):
            raise ValueError(f"the networks to compare did not score the same clips of {split!r}")
        scores = likeness(logits, *(other for other, _ in others), labels)
        metrics |= {f"{split}/{name}": value for name, value in scores.items() if not np.isnan(value)}
    return metrics
