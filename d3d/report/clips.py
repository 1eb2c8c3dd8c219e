"""Scores of single clips, from the predictions that a study publishes: intervals over seeds and test clips at once.

clips = ClipScores("results/sprites.jsonl")
clips.interval(Condition("d3d - flow_shuffled", "iid/motion/pair_accuracy"))
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from d3d.report import effects
from d3d.report.claims import Condition
from d3d.report.contrasts import evaluate, parse
from d3d.report.stats import Interval
from d3d.study import records
from d3d.study.archive import WITHOUT_SIBLING
from d3d.study.plan import TESTED
from d3d.study.records import Record


class ClipScores:
    """What each test clip contributes to the accuracies of a published study.

    Args:
        archive: the study.
    """

    def __init__(self, archive: str | Path) -> None:
        self.networks: dict[str, list[Record]] = {}
        # Several conditions are about the same networks.
        self._read = cache(lambda arm, k: records.read_arrays(archive, self.networks[arm][k]))
        for record in records.read_all(archive, (*TESTED, "fuse")):
            if record.arrays:
                self.networks.setdefault(record.arm, []).append(record)

    def interval(self, condition: Condition) -> Interval | None:
        """Bootstraps seeds and test clips of a contrast (`effects.over_seeds_and_clips`).

        Args:
            condition: its metric is `<split>/top1` or `<split>/pair_accuracy`, or that of a group of clips.

        Returns:
            The interval; None for other metrics, and where no seed has the predictions of every arm.
        """
        contrast = parse(condition.contrast)
        scores = {arm: self.scores(arm, condition.metric) for arm in contrast.arms.values()}
        seeds = sorted(set.intersection(*map(set, scores.values())))
        if not seeds:
            return None
        stacked = {arm: np.stack([by_seed[seed] for seed in seeds]) for arm, by_seed in scores.items()}
        (shape,) = {x.shape for x in stacked.values()}
        values = evaluate(contrast, {arm: pd.Series(x.ravel()) for arm, x in stacked.items()})
        return effects.over_seeds_and_clips(np.asarray(values, dtype=float).reshape(shape))

    def scores(self, arm: str, metric: str) -> dict[int, np.ndarray]:
        """Reads what each clip contributes to a metric, by seed.

        Args:
            arm: a network or an ensemble.
            metric: as `interval` takes it.

        Returns:
            By seed (N,): 1 where the network is right, 0 where it is wrong, 0.5 where two classes of a pair are equal;
            only the clips that the metric counts. Empty for other metrics.
        """
        split, *group, score = metric.split("/")
        scores = {}
        for k, record in enumerate(self.networks.get(arm, ()) if score in ("top1", "pair_accuracy") else ()):
            # Some records have training curves only.
            arrays = self._read(arm, k) if metric in record.metrics else {}
            if f"prediction/{split}" in arrays:
                scores[record.seed] = _scores(arrays, split, "".join(group), score)
        return scores


def _scores(arrays: Mapping[str, np.ndarray], split: str, group: str, score: str) -> np.ndarray:
    labels = arrays[f"labels/{split}"]
    counted = arrays[f"groups/{split}"] == group if group else np.ones(len(labels), bool)
    if score == "top1":
        return (arrays[f"prediction/{split}"] == labels)[counted].astype(float)
    choice = arrays[f"choice/{split}"]
    return (1 + choice[counted & (choice != WITHOUT_SIBLING)].astype(float)) / 2
