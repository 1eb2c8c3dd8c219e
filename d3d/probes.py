"""What frozen endpoints know: linear probes with control tasks (Hewitt and Liang 2019).

features = pooled(model, clips, "rgb", ["Mixed_4f"])
scores = linear(features["Mixed_4f"], test_features["Mixed_4f"], clips.table, test_clips.table)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from d3d.clips import Clips
from d3d.datasets import SpriteDataConfig
from d3d.s3dg import S3DG
from d3d.sprites import CLASSES

ENDPOINTS = ("Conv2d_2c_3x3", "Mixed_3c", "Mixed_4f", "Mixed_5c")
MOTION = ("velocity", "rotation", "expansion")
TARGETS = (*MOTION, "hue", "size")
ALPHAS = np.logspace(-1, 6, 8)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(SpriteDataConfig):
    """What is probed; the fields are the parameters of notebooks/experiments/probe.ipynb."""

    seed: int = 0
    width: float = 0.25
    results: str = "results/local"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_clips", "test_clips"):
            if getattr(self, name) < 2 * len(CLASSES):
                raise ValueError(
                    f"probes look within classes: {name} must be at least {2 * len(CLASSES)}, two a class, "
                    f"not {getattr(self, name)}"
                )


class Part(NamedTuple):
    """Features (N, F) and the goals, each (N, D), of one set of clips."""

    x: np.ndarray
    goals: list[np.ndarray]


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
    """Ridge regression from features to every target; the penalties are chosen on half of the training clips.

    Gives `<target>/r2` on the test clips; `<target>/r2_within`, the same once each class's mean is removed from
    features and target; and `<target>/selectivity`, r2 minus that of a control task, which deals every kind of clip
    (class and family) one random value of the target: what a probe reaches by naming the kind alone.
    Targets that do not vary are left out. `motion/r2_within` is the mean over velocity, rotation and expansion.
    """
    names = [n for n, y in targets(train_table).items() if y.std() > 0 and targets(test_table)[n].std() > 0]
    half = len(train) // 2
    parts = [(train[:half], train_table[:half]), (train[half:], train_table[half:]), (test, test_table)]
    deal = _control(train_table, test_table, names, seed)
    plain = [Part(x, [targets(t)[n] for n in names] + [deal(t, n) for n in names]) for x, t in parts]
    within = [Part(_within(x, t), [_within(targets(t)[n], t) for n in names]) for x, t in parts]
    r2, control = np.split(_scores(*plain), 2)
    scores = {f"{name}/r2": value for name, value in zip(names, r2, strict=True)}
    scores |= {f"{name}/r2_within": value for name, value in zip(names, _scores(*within), strict=True)}
    scores |= {f"{name}/selectivity": value for name, value in zip(names, r2 - control, strict=True)}
    if moving := [scores[f"{name}/r2_within"] for name in MOTION if name in names]:
        scores["motion/r2_within"] = np.mean(moving)
    return {name: float(value) for name, value in scores.items()}


def flat(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`{endpoint: {metric: value}}` as `endpoint/metric`."""
    return {f"{endpoint}/{metric}": value for endpoint, found in scores.items() for metric, value in found.items()}


def _control(
    train_table: pd.DataFrame, test_table: pd.DataFrame, names: Sequence[str], seed: int
) -> Callable[[pd.DataFrame, str], np.ndarray]:
    """The control task: a table's clips and a target's name to values (N, D) that only the clips' kinds decide."""
    rng = np.random.default_rng(seed)
    kinds = sorted({*_kinds(train_table), *_kinds(test_table)})
    source = targets(train_table)
    dealt = {name: {kind: source[name][rng.integers(len(train_table))] for kind in kinds} for name in names}
    return lambda table, name: np.stack([dealt[name][kind] for kind in _kinds(table)])


def _kinds(table: pd.DataFrame) -> list[str]:
    return (table["class"] + "/" + table["family"]).tolist()


def _scores(fit: Part, choose: Part, test: Part) -> np.ndarray:
    """R² on `test` of one ridge probe a goal, fitted on `fit` and `choose`, its penalty chosen on `choose`.

    Leaving single clips out would not do: where class means are removed, the others tell what the one left out was.
    """
    # Channels that hardly ever fire would be blown up by scaling.
    alive = fit.x.std(0) >= 1e-3 * fit.x.std(0).max()
    scaler = StandardScaler().fit(fit.x[:, alive])
    x, x_choose, x_test = (scaler.transform(part.x[:, alive].astype(float)) for part in (fit, choose, test))
    y, y_choose = (np.hstack(part.goals) for part in (fit, choose))
    errors = [((Ridge(alpha).fit(x, y).predict(x_choose) - y_choose) ** 2).sum(0) for alpha in ALPHAS]
    model = Ridge(ALPHAS[np.argmin(errors, 0)]).fit(np.vstack([x, x_choose]), np.vstack([y, y_choose]))
    ends = np.cumsum([goal.shape[1] for goal in test.goals])[:-1]
    predicted = np.split(model.predict(x_test), ends, axis=1)
    return np.array([_r2(goal, p) for goal, p in zip(test.goals, predicted, strict=True)])


def _within(values: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    frame = pd.DataFrame(values)
    return (frame - frame.groupby(table["label"].to_numpy()).transform("mean")).to_numpy()


def _r2(goal: np.ndarray, predicted: np.ndarray) -> float:
    """R² pooled over the columns: a column that hardly varies adds hardly anything to either sum."""
    return float(1 - ((goal - predicted) ** 2).sum() / ((goal - goal.mean(0)) ** 2).sum())
