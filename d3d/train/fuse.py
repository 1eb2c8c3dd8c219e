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
from d3d.train.evaluate import accuracy, fuse_logits

# Parameters that must be equal for two networks, of either stream, to have been tested on the same clips.
SAME_CLIPS = tuple(
    name
    for name, _ in parameters_of(DataConfig)
    if name not in ("bound", "flow_cache", "view_clips", "view_crops", "workers")
)


def run(active_run: Run) -> None:
    """Writes one record per ensemble and seed, for all ensembles whose members are in the run's results."""
    results = active_run.config.run.results
    for arm in ARMS.values():
        for a, b in pairs_to_fuse(results, *arm.members, must_match=SAME_CLIPS) if arm.members else ():
            members = [records.read_arrays(results, record) for record in (a, b)]
            metrics, arrays = evaluate_ensemble(members, by=arm.fused_by)
            active_run.write(arm.name, metrics, arrays=arrays, seed=a.seed, stand_in=a.stand_in)


def pairs_to_fuse(
    results: str | Path, first_arm: str, second_arm: str, *, must_match: Sequence[str]
) -> list[tuple[Record, Record]]:
    """Pairs the records of two arms by seed, or those of a single arm as seeds 2k and 2k + 1, so that no pairs overlap.

    Skips records without an .npz file beside them, which come from another machine.

    Args:
        results: the folder of the records.
        first_arm: name of an arm.
        second_arm: name of another arm, or of the same.
        must_match: parameters that must be equal in both records of a pair.

    Raises:
        RecordError: if they differ; the message names the parameters.
    """
    trained = records.read_all(results, TRAINED)
    trained = [r for r in trained if (Path(results) / r.experiment / f"{r.name}.npz").is_file()]
    first, second = ({r.seed: r for r in trained if r.arm == arm} for arm in (first_arm, second_arm))
    if first_arm == second_arm:
        first, second = {s: r for s, r in first.items() if s % 2 == 0}, {s - 1: r for s, r in first.items() if s % 2}
    pairs = [(first[seed], second[seed]) for seed in sorted(set(first) & set(second))]
    for a, b in pairs:
        if differing := [name for name in must_match if a.params.get(name) != b.params.get(name)]:
            raise records.RecordError(f"{a.name} and {b.name} saw different clips: {', '.join(differing)} differ")
    return pairs


def evaluate_ensemble(
    members: Sequence[Mapping[str, np.ndarray]], *, by: str = "softmax"
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Fuses the logits of networks on every test split and evaluates the result.

    Args:
        members: the arrays beside each network's record.
        by: softmax or logits, as for `fuse_logits`.

    Returns:
        The metrics of `accuracy` as `<split>/<metric>`, with `<split>/top1_gain`, the top-1 of the ensemble minus that
        of its best member; and the arrays of the ensemble.

    Raises:
        ValueError: if the networks did not score the same clips.
    """
    first = members[0]
    splits = [name.removeprefix("logits/") for name in first if name.startswith("logits/")]
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    for split in splits:
        labels, groups = first[f"labels/{split}"], first[f"groups/{split}"]
        if any(not np.array_equal(m[f"labels/{split}"], labels) for m in members):
            raise ValueError(f"the networks to fuse did not score the same clips of {split!r}")
        logits = fuse_logits([m[f"logits/{split}"] for m in members], by=by)
        metrics |= {f"{split}/{name}": value for name, value in accuracy(logits, labels, groups).items()}
        best = max(accuracy(m[f"logits/{split}"], labels, groups)["top1"] for m in members)
        metrics[f"{split}/top1_gain"] = metrics[f"{split}/top1"] - best
        arrays |= {f"logits/{split}": logits.astype(np.float32), f"labels/{split}": labels, f"groups/{split}": groups}
    # A published study needs the siblings for the accuracy within pairs of classes.
    arrays |= {"siblings": first["siblings"]} if "siblings" in first else {}
    return metrics, arrays
