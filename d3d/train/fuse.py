"""Ensembles: averages the predictions of two trained networks per clip, from the arrays beside their records."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from d3d.study import records
from d3d.study.arms import ARMS
from d3d.study.parameters import DataConfig
from d3d.study.plan import TRAINED
from d3d.study.records import Record
from d3d.study.run import Run
from d3d.study.schema import parameters_of
from d3d.train.evaluate import fuse_logits
from d3d.train.scores import POOLED, logits_of, score_splits, test_splits

# Parameters that must be equal for two networks, of either stream, to have been tested on the same clips.
SAME_CLIPS = tuple(
    name
    for name, _ in parameters_of(DataConfig)
    if name not in ("bound", "flow_cache", "view_clips", "view_crops", "workers")
)
LABELLING = ("labels", "groups")


def run(active_run: Run) -> None:
    """Writes one record per ensemble and seed, for all ensembles whose members are in the run's results."""
    results = active_run.config.run.results
    for arm in ARMS.values():
        for members in matching_records(results, arm.members, must_match=SAME_CLIPS) if arm.members else ():
            member_arrays = [records.read_arrays(results, record) for record in members]
            metrics, arrays = evaluate_ensemble(member_arrays, by=arm.fused_by)
            first = members[0]
            active_run.write(arm.name, metrics, arrays=arrays, seed=first.seed, stand_in=first.stand_in)


def matching_records(results: str | Path, arms: Sequence[str], *, must_match: Sequence[str]) -> list[list[Record]]:
    """Returns the records of several arms for each seed that all of them have.

    Skips records without an .npz file beside them, which come from another machine.

    Args:
        results: the folder of the records.
        arms: names of arms; if one is named twice, its seeds 2k and 2k + 1 match, so that no records are used twice.
        must_match: parameters that must be equal in matching records.

    Raises:
        RecordError: if they differ; the message names the parameters.
    """
    trained = [r for r in records.read_all(results, TRAINED) if r.arm in arms]
    trained = [r for r in trained if (Path(results) / r.experiment / f"{r.name}.npz").is_file()]
    by_arm = [{r.seed: r for r in trained if r.arm == arm} for arm in arms]
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
        if any(not np.array_equal(m[f"labels/{split}"], first[f"labels/{split}"]) for m in members):
            raise ValueError(f"the networks to fuse did not score the same clips of {split!r}")
        logits = fuse_logits([m[f"logits/{split}"] for m in members], by=by).astype(np.float32)
        arrays |= {f"logits/{split}": logits} | {f"{kind}/{split}": first[f"{kind}/{split}"] for kind in LABELLING}
    metrics = score_splits(arrays)
    for split in test_splits(arrays):
        best = max(
            float((logits.argmax(1) == labels).mean()) for logits, labels in (logits_of(m, split) for m in members)
        )
        metrics[f"{split}/top1_gain"] = metrics[f"{split}/top1"] - best
    return metrics, arrays
