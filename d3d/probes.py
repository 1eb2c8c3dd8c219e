"""What frozen endpoints know: linear probes with control tasks (Hewitt and Liang 2019).

features = pooled(model, clips, "rgb", ["Mixed_4f"])
scores = linear(features["Mixed_4f"], targets, labels)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from d3d.datasets import Clips, DataConfig
from d3d.s3dg import S3DG

ENDPOINTS = ("Conv2d_2c_3x3", "Mixed_3c", "Mixed_4f", "Mixed_5c")
TARGETS = ("velocity", "rotation", "expansion", "hue", "size")  # three of motion, two of appearance
ALPHAS = np.logspace(-2, 5, 15)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(DataConfig):
    """What is probed; the fields are the parameters of notebooks/experiments/probe.ipynb."""

    seed: int = 0
    width: float = 0.25
    results: str = "results/local"


@torch.no_grad()
def pooled(
    model: S3DG, clips: Clips, stream: str, endpoints: Sequence[str], *, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Features (N, F) of each endpoint: means over time and quadrants of the frame, in one pass over the clips.

    Quadrants keep a coarse sense of where; an endpoint with a single position gives its channels alone.
    """
    model.eval()
    parts: dict[str, list[np.ndarray]] = {name: [] for name in endpoints}
    for i in range(0, len(clips), batch_size):
        found = model.endpoints(clips.inputs(stream, slice(i, i + batch_size)), endpoints)
        for name, x in found.items():
            grid = tuple(min(2, n) for n in x.shape[3:])
            x = torch.nn.functional.adaptive_avg_pool3d(x.float(), (1, *grid))
            parts[name].append(x.flatten(1).cpu().numpy())
    return {name: np.concatenate(p) for name, p in parts.items()}


def targets(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """What is probed for, as columns (N, D): velocity, rotation and expansion, and hue and size as appearance."""
    hue = 2 * np.pi * table["hue"].to_numpy()
    return {
        "velocity": table[["velocity_x", "velocity_y"]].to_numpy(),
        "rotation": table[["angular_velocity"]].to_numpy(),
        "expansion": table[["expansion"]].to_numpy(),
        "hue": np.stack([np.cos(hue), np.sin(hue)], 1),
        "size": table[["radius"]].to_numpy(),
    }


def linear(
    train: np.ndarray,
    test: np.ndarray,
    train_table: pd.DataFrame,
    test_table: pd.DataFrame,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Ridge regression from features to every target; the penalties are chosen on the training features.

    Gives `<target>/r2` on the test clips; `<target>/r2_within`, the same once each class's mean is removed from
    features and target; and `<target>/selectivity`, r2 minus that of a control task, which deals every kind of clip
    (class and family) one random value of the target: what a probe reaches by naming the kind alone.
    Targets that do not vary are left out.
    """
    rng = np.random.default_rng(seed)
    kinds, test_kinds = _kinds(train_table), _kinds(test_table)
    goals, test_goals = targets(train_table), targets(test_table)
    names = [name for name in TARGETS if goals[name].std() > 0 and test_goals[name].std() > 0]
    goals, test_goals = [goals[name] for name in names], [test_goals[name] for name in names]
    controls, test_controls = [], []
    for goal in goals:
        dealt = {kind: goal[rng.integers(len(goal))] for kind in sorted({*kinds, *test_kinds})}
        controls.append(np.stack([dealt[kind] for kind in kinds]))
        test_controls.append(np.stack([dealt[kind] for kind in test_kinds]))
    found = _scores(train, goals + controls, test, test_goals + test_controls)
    within = _scores(
        _within(train, train_table),
        [_within(goal, train_table) for goal in goals],
        _within(test, test_table),
        [_within(goal, test_table) for goal in test_goals],
    )
    scores: dict[str, float] = {}
    for name, r2, control, inside in zip(names, found[: len(names)], found[len(names) :], within, strict=True):
        scores |= {f"{name}/r2": r2, f"{name}/r2_within": inside, f"{name}/selectivity": r2 - control}
    return scores


def flat(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`{endpoint: {metric: value}}` as `endpoint/metric`."""
    return {f"{endpoint}/{metric}": value for endpoint, found in scores.items() for metric, value in found.items()}


def _kinds(table: pd.DataFrame) -> list[str]:
    return (table["class"] + "/" + table["family"]).tolist()


def _scores(train: np.ndarray, goals: list, test: np.ndarray, test_goals: list) -> list[float]:
    """R² of one ridge probe a goal. The decomposition of the features is shared, each column's penalty is its own."""
    # Channels that hardly ever fire on the training clips would be blown up by scaling.
    alive = train.std(0) >= 1e-3 * train.std(0).max()
    model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS, alpha_per_target=True))
    predicted = model.fit(train[:, alive], np.hstack(goals)).predict(test[:, alive])
    ends = np.cumsum([goal.shape[1] for goal in goals])[:-1]
    return [_r2(goal, p) for goal, p in zip(test_goals, np.split(predicted, ends, axis=1), strict=True)]


def _within(values: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    frame = pd.DataFrame(values)
    return (frame - frame.groupby(table["label"].to_numpy()).transform("mean")).to_numpy()


def _r2(goal: np.ndarray, predicted: np.ndarray) -> float:
    """R² pooled over the columns: a column that hardly varies adds hardly anything to either sum."""
    return float(1 - ((goal - predicted) ** 2).sum() / ((goal - goal.mean(0)) ** 2).sum())
