"""Evaluates a network on every test split, alone or with a team."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from d3d.data.clips import Data
from d3d.messages import printable
from d3d.s3dg.network import S3DG
from d3d.study import plan
from d3d.train.evaluate import example_arrays, predict
from d3d.train.scores import score_splits
from d3d.train.team import SINGLE_PROCESS, Team


def evaluate_splits(
    model: S3DG,
    data: Data,
    stream: str,
    *,
    team: Team = SINGLE_PROCESS,
    predict_rows: Callable[..., np.ndarray] = predict,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Evaluates a network on every test split; the clips are divided among the processes.

    Clips in unreadable files are left out.

    Args:
        model: the network.
        data: the data set, of which the test splits are used.
        stream: the input of the network, rgb or flow.
        team: the processes that evaluate together; all of them get all results.
        predict_rows: computes logits as `predict` does.

    Returns:
        The metrics of `score_splits`, such as `iid/top1` and, where classes have groups, `iid/motion/top1`; and the
        arrays that they come from: `logits/<split>` (N, K), `labels/<split>` (N,), `groups/<split>` (N,) and, where
        classes come in pairs, `siblings` (K,); of video files `videos/<split>` (N,), the name of each clip, and
        `sources/<split>` (N,), the film that it was cut from; and `examples/…` of the main split (see
        `plan.main_split` and `example_arrays`).

    Raises:
        ValueError: if a readable clip has a logit that is nan, or if no clip of a split could be read.
    """
    arrays: dict[str, np.ndarray] = {"siblings": np.array(data.siblings)} if data.siblings else {}
    for name, clips in data.test_splits.items():
        rows_by_rank = [np.arange(len(clips))[rank :: team.size] for rank in range(team.size)]
        logits_by_rank = team.all_gather(predict_rows(model, clips, stream, rows=rows_by_rank[team.rank]))
        logits = np.full((len(clips), len(data.classes)), np.nan, np.float32)
        for rows, local_logits in zip(rows_by_rank, logits_by_rank, strict=True):
            if local_logits.size:
                logits[rows] = local_logits
        labels, groups = clips.labels.cpu().numpy(), clips.groups
        predicted = ~np.isnan(logits).any(1)
        missing = ~predicted
        if not clips.in_memory:  # files can turn out to be unreadable while they are read
            for refused in team.all_gather(dict(clips.refused)):
                clips.refused.update(refused)
            missing &= ~clips.table["path"].isin(clips.refused).to_numpy()
        if missing.any():
            raise ValueError(f"{missing.sum()} of the {len(missing)} clips of split {name!r} have logits that are nan")
        if not predicted.any():
            raise ValueError(f"no clip of split {name!r} could be read: {next(iter(clips.refused.values()))}")
        logits, labels, groups = logits[predicted], labels[predicted], groups[predicted]
        arrays |= {f"logits/{name}": logits, f"labels/{name}": labels, f"groups/{name}": groups}
        if "path" in clips.table:
            arrays[f"videos/{name}"] = _clip_names(clips.table[predicted])
            arrays[f"sources/{name}"] = _source_names(clips.table[predicted])
        if team.is_main and name == plan.main_split(data.test_splits):
            arrays |= example_arrays(clips, np.flatnonzero(predicted))
    return score_splits(arrays), arrays


def _clip_names(table: pd.DataFrame) -> np.ndarray:
    """Names clips by folder and file, and by its start in seconds a clip that is a part of its file."""
    starts = (f" at {start:g} s" if start else "" for start in table["start"])
    names = ("/".join(Path(path).parts[-2:]) for path in table["path"])
    return np.array([printable(name) + start for name, start in zip(names, starts, strict=True)])


def _source_names(table: pd.DataFrame) -> np.ndarray:
    """Names the source of each clip; a clip of which none is known is named by folder and file."""
    pairs = zip(table["group"], table["path"], strict=True)
    names = ("/".join(Path(path).parts[-2:]) if group == path else group for group, path in pairs)
    return np.array([printable(name) for name in names])
