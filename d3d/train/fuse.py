"""Ensembles: the predictions of two trained networks averaged, clip by clip, from the arrays beside their records."""

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
from d3d.train.evaluate import accuracy, fuse

# What two networks agree on where they were tested on the same clips, however each looks at them.
SAME_CLIPS = tuple(
    name
    for name, _ in parameters_of(DataConfig)
    if name not in ("bound", "flow_cache", "view_clips", "view_crops", "workers")
)


def run(this: Run) -> None:
    """Writes a record of every ensemble and every seed whose members are below the run's results."""
    results = this.config.run.results
    for entry in ARMS.values():
        for a, b in pairs(results, *entry.members, same=SAME_CLIPS) if entry.members else ():
            members = [records.read_arrays(results, record) for record in (a, b)]
            metrics, arrays = score_fusion(members, by=entry.fused_by)
            this.write(entry.name, metrics, arrays=arrays, seed=a.seed, stand_in=a.stand_in)


def pairs(results: str | Path, first: str, second: str, *, same: Sequence[str]) -> list[tuple[Record, Record]]:
    """Trained networks to fuse: two arms of each seed, or one arm of the seeds 2k and 2k + 1, so that pairs share none.

    Records whose logits are not beside them are passed over: they come from another machine. `same` names the
    parameters that both must agree on. Raises RecordError where they do not.
    """
    trained = records.read_all(results, TRAINED)
    trained = [r for r in trained if (Path(results) / r.experiment / f"{r.name}.npz").is_file()]
    mine, other = ({r.seed: r for r in trained if r.arm == arm} for arm in (first, second))
    if first == second:
        mine, other = ({s: r for s, r in mine.items() if s % 2 == 0}, {s - 1: r for s, r in mine.items() if s % 2})
    found = [(mine[seed], other[seed]) for seed in sorted(set(mine) & set(other))]
    for a, b in found:
        if differing := [name for name in same if a.params.get(name) != b.params.get(name)]:
            raise records.RecordError(f"{a.name} and {b.name} saw other clips: they differ in {', '.join(differing)}")
    return found


def score_fusion(
    members: Sequence[Mapping[str, np.ndarray]], *, by: str = "softmax"
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and arrays of networks fused, as `fuse` does, on every test split, from the arrays beside their records.

    `<split>/top1_gain` is what the fused network has over its best member.

    Raises ValueError where the networks did not score the same clips.
    """
    first = members[0]
    splits = [name.removeprefix("logits/") for name in first if name.startswith("logits/")]
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    for split in splits:
        labels, groups = first[f"labels/{split}"], first[f"groups/{split}"]
        if any(not np.array_equal(m[f"labels/{split}"], labels) for m in members):
            raise ValueError(f"the networks to fuse did not score the same clips of {split!r}")
        logits = fuse([m[f"logits/{split}"] for m in members], by=by)
        metrics |= {f"{split}/{name}": value for name, value in accuracy(logits, labels, groups).items()}
        best = max(accuracy(m[f"logits/{split}"], labels, groups)["top1"] for m in members)
        metrics[f"{split}/top1_gain"] = metrics[f"{split}/top1"] - best
        arrays |= {f"logits/{split}": logits.astype(np.float32), f"labels/{split}": labels, f"groups/{split}": groups}
    # With which a published study gives forced choices of ensembles too.
    arrays |= {"siblings": first["siblings"]} if "siblings" in first else {}
    return metrics, arrays
