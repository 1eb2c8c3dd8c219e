"""Ensembles: averages the predictions of two trained networks per clip, from the arrays beside their records."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from d3d.messages import printable
from d3d.study import records
from d3d.study.arms import ARMS
from d3d.study.parameters import DataConfig
from d3d.study.plan import TESTED
from d3d.study.records import Record
from d3d.study.run import Run
from d3d.study.schema import parameters_of
from d3d.train.evaluate import fuse_logits
from d3d.train.scores import POOLED, logits_of, score_splits, test_splits

# Parameters that must be equal for two networks, of either stream, to have been tested on the same clips.
SAME_CLIPS = tuple(
    name
    for name, _ in parameters_of(DataConfig)
    if name not in ("bound", "flow_cache", "view_clips", "view_crops", "workers", "half", "unlabelled_clips")
)
LABELLING = ("labels", "groups", "videos", "sources")


def run(active_run: Run) -> None:
    """Writes one record per ensemble and seed, for all ensembles whose members are in the run's results."""
    results = active_run.config.run.results
    for arm in ARMS.values():
        for members in matching_records(results, arm.members, must_match=SAME_CLIPS) if arm.members else ():
            member_arrays = [records.read_arrays(results, record) for record in members]
            metrics, arrays = evaluate_ensemble(member_arrays, by=arm.fused_by)
            first = members[0]
            stand_in = any(member.stand_in for member in members)
            active_run.write(arm.name, metrics, arrays=arrays, seed=first.seed, stand_in=stand_in)


def matching_records(results: str | Path, arms: Sequence[str], *, must_match: Sequence[str]) -> list[list[Record]]:
    """Returns the records of several arms for each seed that all of them have.

    Skips records without an .npz file beside them, which come from another machine.

    Args:
        results: the folder of the records.
        arms: names of arms; if one is named twice, its seeds 2k and 2k + 1 match, so that no records are used twice.
        must_match: parameters that must be equal in matching records.

    Raises:
        RecordError: if they differ; the message names the parameters. Or if a network was both trained and evaluated.
    """
    tested = [r for r in records.read_all(results, TESTED) if r.arm in arms]
    tested = [r for r in tested if (Path(results) / r.experiment / f"{r.name}.npz").is_file()]
    if twice := [name for name, count in Counter(r.name for r in tested).items() if count > 1]:
        raise records.RecordError(
            f"{printable(results)} has {twice[0]} both trained and evaluated: keep one of them there"
        )
    by_arm = [{r.seed: r for r in tested if r.arm == arm} for arm in arms]
    if len(set(arms)) == 1 < len(arms):
        (first, second) = by_arm
        by_arm = [{s: r for s, r in first.items() if s % 2 == 0}, {s - 1: r for s, r in second.items() if s % 2}]
    matching = [[of_arm[seed] for of_arm in by_arm] for seed in sorted(set.intersection(*map(set, by_arm)))]
    for first, *others in matching:
        for other in others:
            if differing := [name for name in must_match if first.params.get(name) != other.params.get(name)]:
                raise records.RecordError(
                    f"{first.name} and {other.name} saw different clips: {', '.join(differing)} differ"
                )
    return matching


def same_clips(first: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], split: str) -> bool:
    """Whether two networks scored the same clips of a split, by their labels and, where both have them, their names."""
    both = [name for name in (f"labels/{split}", f"videos/{split}") if name in first and name in other]
    return f"labels/{split}" in both and all(np.array_equal(first[name], other[name]) for name in both)


def evaluate_ensemble(
    members: Sequence[Mapping[str, np.ndarray]], *, by: str = "softmax"
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Fuses the logits of networks on every test split and evaluates the result.

    Args:
        members: the arrays beside each network's record.
        by: softmax or logits, as for `fuse_logits`.

    Returns:
        The metrics of `score_splits`, with `<split>/top1_gain`, the top-1 of the ensemble minus that of its best
        member; and the arrays of the ensemble.

    Raises:
        ValueError: if the networks did not score the same clips.
    """
    first = members[0]
    splits = [split for split in test_splits(first) if split not in POOLED]
    arrays = {"siblings": first["siblings"]} if "siblings" in first else {}
    for split in splits:
        if not all(same_clips(first, member, split) for member in members):
            raise ValueError(f"the networks to fuse did not score the same clips of {split!r}")
        logits = fuse_logits([m[f"logits/{split}"] for m in members], by=by).astype(np.float32)
        arrays |= {f"logits/{split}": logits} | {
            name: first[name] for name in (f"{kind}/{split}" for kind in LABELLING) if name in first
        }
    if "classes" in first:
        arrays["classes"] = first["classes"]
    metrics = score_splits(arrays)
    for split in test_splits(arrays):
        best = max(
            float((logits.argmax(1) == labels).mean()) for logits, labels in (logits_of(m, split) for m in members)
        )
        metrics[f"{split}/top1_gain"] = metrics[f"{split}/top1"] - best
    return metrics, arrays
