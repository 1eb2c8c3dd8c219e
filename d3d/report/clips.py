"""Scores of single clips, from the predictions that a study publishes: intervals over seeds and test clips at once.

clips = ClipScores("results/sprites.jsonl")
clips.interval(Condition("d3d - flow_shuffled", "iid/motion/pair_accuracy"))
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from d3d.report import effects
from d3d.report.claims import Condition
from d3d.report.contrasts import evaluate, parse
from d3d.report.labels import split_of
from d3d.report.stats import Interval
from d3d.study import records
from d3d.study.archive import WITHOUT_SIBLING
from d3d.study.parameters import MAX_CLIPS
from d3d.study.plan import TRAINED
from d3d.study.records import Record


class ClipScores:
    """What each test clip contributes to the accuracies of a published study.

    Args:
        archive: the study.
        cells: the cells that are one study together, such as a data set's official splits; the clips of each count
            alike. By default the archive has no cells. Where its arms are called after their official splits, s1 to s3
            are cells too, of arms without this ending (`labels.split_of`).
    """

    def __init__(self, archive: str | Path, cells: Iterable[str] = ("",)) -> None:
        # By cell and arm; a network comes with the archive's own cell.
        self.networks: dict[str, dict[str, list[tuple[str, Record]]]] = {cell: {} for cell in cells}
        for own_cell, cell_records in records.read_cells(archive).items():
            for record in cell_records:
                name, split = split_of(record.arm)
                cell, arm = (split, name) if split in self.networks else (own_cell, record.arm)
                if cell in self.networks and record.arrays and record.experiment in (*TRAINED, "fuse"):
                    self.networks[cell].setdefault(arm, []).append((own_cell, record))

        def read(cell: str, arm: str, k: int) -> dict[str, np.ndarray]:
            own_cell, record = self.networks[cell][arm][k]
            return records.read_arrays(archive, record, cell=own_cell)

        self._read = cache(read)  # several conditions are about the same networks

    def interval(self, condition: Condition) -> Interval | None:
        """Bootstraps seeds and test clips of a contrast (`effects.over_seeds_and_sources`).

        Args:
            condition: its metric is `<split>/top1` or `<split>/pair_accuracy`, or that of a group of clips.

        Returns:
            The interval; None for other metrics, and where no seed has the predictions of every arm in every cell.
        """
        splits = self.differences(condition.contrast, condition.metric)
        return effects.over_seeds_and_sources(splits) if splits else None

    def differences(
        self, contrast: str, metric: str, *, classes: Collection[int] | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Evaluates a contrast on every clip.

        Args:
            contrast: such as `d3d - rgb_longer`.
            metric: as `interval` takes it.
            classes: the labels of the clips that count; None: all clips that the metric counts.

        Returns:
            For each cell the values (S, N) of the seeds that have every arm in every cell, and the source of each clip
            (N,); empty if there is no such seed, or no such clip in one of the cells.
        """
        parsed = parse(contrast)
        by_cell = {cell: {arm: self.scores(arm, metric, cell=cell) for arm in parsed.arms.values()}
                   for cell in self.networks}  # fmt: skip
        having = [set(scores) for of_arms in by_cell.values() for scores in of_arms.values()]
        seeds = sorted(set.intersection(*having)) if having else []
        splits = []
        for cell, of_arms in by_cell.items() if seeds else ():
            stacked = {arm: np.stack([by_seed[seed] for seed in seeds]) for arm, by_seed in of_arms.items()}
            (shape,) = {x.shape for x in stacked.values()}
            values = evaluate(parsed, {arm: pd.Series(x.ravel()) for arm, x in stacked.items()})
            labels, sources = self._clips(next(iter(of_arms)), metric, cell)
            counted = np.isin(labels, list(classes)) if classes is not None else np.ones(len(labels), bool)
            splits.append((np.asarray(values, dtype=float).reshape(shape)[:, counted], sources[counted]))
        return splits if all(len(sources) for _, sources in splits) else []

    def scores(self, arm: str, metric: str, *, cell: str = "") -> dict[int, np.ndarray]:
        """Reads what each clip contributes to a metric, by seed.

        Args:
            arm: a network or an ensemble.
            metric: as `interval` takes it.
            cell: the cell of the networks.

        Returns:
            By seed (N,): 1 where the network is right, 0 where it is wrong, 0.5 where two classes of a pair are equal;
            only the clips that the metric counts. Empty for other metrics.
        """
        scores = {}
        networks = self.networks[cell].get(arm, ()) if metric.endswith(("/top1", "/pair_accuracy")) else ()
        for k, (_, record) in enumerate(networks):
            # Some records have training curves only, and old ones no groups.
            arrays = self._read(cell, arm, k) if metric in record.metrics else {}
            split, group, score = _parts(metric, arrays)
            if f"prediction/{split}" in arrays and (not group or f"groups/{split}" in arrays):
                scores[record.seed] = _scores(arrays, split, score)[_counted(arrays, split, group, score)]
        return scores

    def _clips(self, arm: str, metric: str, cell: str) -> tuple[np.ndarray, np.ndarray]:
        """Label and source of each clip that a metric counts; where no source is known, a number of the clip's own."""
        for k in range(len(self.networks[cell][arm])):
            arrays = self._read(cell, arm, k)
            split, group, score = _parts(metric, arrays)
            if f"prediction/{split}" in arrays:
                break
        labels = arrays[f"labels/{split}"]
        own = list(self.networks).index(cell) * MAX_CLIPS + np.arange(len(labels))
        counted = _counted(arrays, split, group, score)
        return labels[counted], arrays.get(f"sources/{split}", own)[counted]


def name_films(splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether the sources that `ClipScores.differences` gives are films, and not numbers of clips of unknown films."""
    return all(sources.dtype.kind == "U" for _, sources in splits)


def _parts(metric: str, arrays: Mapping[str, np.ndarray]) -> tuple[str, str, str]:
    """Split, group of clips and score of a metric; the name of a split may have a slash, as jhmdb/test has."""
    *split, score = metric.split("/")
    group = "" if f"labels/{'/'.join(split)}" in arrays else split.pop()
    return "/".join(split), group, score


def _counted(arrays: Mapping[str, np.ndarray], split: str, group: str, score: str) -> np.ndarray:
    """Which clips a metric counts, bool (N,)."""
    counted = arrays[f"groups/{split}"] == group if group else np.ones(len(arrays[f"labels/{split}"]), bool)
    return counted if score == "top1" else counted & (arrays[f"choice/{split}"] != WITHOUT_SIBLING)


def _scores(arrays: Mapping[str, np.ndarray], split: str, score: str) -> np.ndarray:
    if score == "top1":
        return (arrays[f"prediction/{split}"] == arrays[f"labels/{split}"]).astype(float)
    return (1 + arrays[f"choice/{split}"].astype(float)) / 2
