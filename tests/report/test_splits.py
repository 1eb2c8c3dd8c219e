"""Official splits as one study: means over splits, intervals over sources, and verdicts that need both intervals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from d3d.report.claims import Claim, Condition, Ledger
from d3d.report.clips import ClipScores
from d3d.report.ledger import judge
from d3d.report.splits import by_split, over_splits
from d3d.report.stats import Interval
from d3d.study import archive, records
from tests.study.test_records import record

TOP1 = "jhmdb/test/top1"


def table(values):
    """Records of some arms: arm to one value per seed."""
    rows = [("distill", arm, seed, TOP1, v, False) for arm, by_seed in values.items() for seed, v in enumerate(by_seed)]
    return pd.DataFrame(rows, columns=["experiment", "arm", "seed", "metric", "value", "stand_in"])


def test_a_seed_is_the_mean_of_its_splits():
    splits = [{"d3d": (0.2, 0.4), "flow": (0.5,)}, {"d3d": (0.4, 0.4)}, {"d3d": (0.6,)}]
    means = over_splits(map(table, splits))
    # Seed 1 lacks the third split, and flow two of them.
    assert means[["arm", "seed", "value"]].values.tolist() == [["d3d", 0, pytest.approx(0.4)]]
    with pytest.raises(ValueError, match="no split"):
        over_splits([])
    twice = pd.concat([table({"d3d": (0.2,)})] * 2)
    with pytest.raises(ValueError, match=f"{TOP1} of d3d has two values for seed 0 in one split"):
        over_splits([twice])


def write_split(folder, name, films, *, gain, seeds=3):
    """Two networks on ten clips of each film; D3D is right on all clips of some films that RGB-longer gets wrong."""
    sources = np.repeat(films, 10)
    labels = np.arange(len(sources)) % 3
    for arm in ("d3d", "rgb_longer"):
        for seed in range(seeds):
            right = np.isin(sources, films[: len(films) // 2 + (gain if arm == "d3d" else 0)])
            logits = np.eye(3)[np.where(right, labels, (labels + 1) % 3)]
            arrays = {
                f"{kind}/jhmdb/test": x for kind, x in (("logits", logits), ("labels", labels), ("sources", sources))
            }
            arrays["groups/jhmdb/test"] = np.where(np.arange(len(sources)) < 20, "still", "moving")
            metrics = {TOP1: float(right.mean()), "jhmdb/test/still/top1": float(right[:20].mean())}
            records.write(folder / name, record(experiment="distill", arm=arm, seed=seed, metrics=metrics), arrays)
    return archive.pack(folder / name)


def test_the_interval_over_clips_draws_films_and_not_clips(tmp_path):
    films = np.array([f"film {k}" for k in range(12)])
    splits = [write_split(tmp_path, f"split{k}", np.roll(films, -k), gain=2) for k in (1, 2)]
    study = archive.merge(splits, tmp_path / "study", as_cells=True)
    condition = Condition("d3d - rgb_longer", TOP1, above=0)
    interval = ClipScores(study, ("split1", "split2")).interval(condition)
    means = over_splits(records.load_cells(study).values())
    by_arm = means.query(f"metric == '{TOP1}'").groupby("arm")["value"].mean()
    assert interval.mean == pytest.approx(by_arm["d3d"] - by_arm["rgb_longer"])
    assert interval.mean == pytest.approx(1 / 6)
    # Two films of twelve: the chance that none of them is drawn is (10 / 12) ** 12 = .11, more than .025 in one split.
    assert interval.low < 0.02
    assert ClipScores(study, ("split1",)).interval(condition).low == 0
    group = Condition("d3d - rgb_longer", "jhmdb/test/still/top1")
    assert ClipScores(study, ("split1",)).interval(group) == pytest.approx((0, 0, 0, 3))
    assert ClipScores(study, ("split1", "split3")).interval(condition) is None


def test_arms_that_are_called_after_their_split_are_read_as_its_cells(tmp_path):
    films = np.array([f"film {k}" for k in range(12)])
    for k in (1, 2, 3):
        write_split(tmp_path / "apart", f"split{k}", np.roll(films, -k), gain=2)
        for path in (tmp_path / f"apart/split{k}/distill").glob("*.json"):
            run = records.read(path)
            run = replace(run, arm=f"{run.arm}_s{k}")
            records.write(tmp_path / "together", run, dict(np.load(path.with_suffix(".npz"))))
    records.write(tmp_path / "together", record(experiment="train", arm="rgb", seed=0, metrics={TOP1: 0.5}))
    separate = archive.merge([tmp_path / f"apart/split{k}.jsonl" for k in (1, 2, 3)], tmp_path / "cells", as_cells=True)
    together = archive.pack(tmp_path / "together")
    tables = by_split(records.load(together))
    assert list(tables) == ["s1", "s2", "s3"]
    assert over_splits(tables.values()).equals(over_splits(records.load_cells(separate).values()))
    condition = Condition("d3d - rgb_longer", TOP1)
    expected = ClipScores(separate, ("split1", "split2", "split3")).interval(condition)
    assert ClipScores(together, tables).interval(condition) == expected
    assert ClipScores(together).interval(condition) is None


def test_a_verdict_needs_both_intervals():
    claim = Claim("H1", "", "", "", conditions=(Condition("d3d - rgb", TOP1, above=0.0, equivalence_margin=0.02),))
    ledger = Ledger((claim,), 3)
    better = table({"d3d": (0.50, 0.52, 0.54), "rgb": (0.40, 0.42, 0.44)})
    worse = table({"d3d": (0.30, 0.32, 0.34), "rgb": (0.40, 0.42, 0.44)})
    alike = table({"d3d": (0.40, 0.421, 0.44), "rgb": (0.40, 0.42, 0.44)})
    wide, above, below = Interval(0.1, -0.1, 0.3, 3), Interval(0.1, 0.01, 0.3, 3), Interval(-0.1, -0.2, -0.01, 3)
    for rows, clips, word in (
        (better, None, "supported"),
        (better, above, "supported"),
        (better, wide, "undecided"),
        (worse, below, "refuted"),
        (worse, wide, "undecided"),
        (alike, wide, "practically zero"),
    ):
        (verdict,) = judge(ledger, rows, over_clips=lambda condition, clips=clips: clips)
        assert verdict.word == word
    (verdict,) = judge(ledger, better, over_clips=lambda condition: wide)
    assert verdict.reason.endswith("+0.100 [+0.100, +0.100], over clips [−0.100, +0.300], must be > 0")
