"""What frozen endpoints know: linear probes with control tasks (Hewitt and Liang 2019).

    sets = probed_sets(config.data, device="cuda")
    metrics = linear_probes(model, sets, "rgb")           # Mixed_4f/velocity/r2_within, …

Flow decoders on the same endpoints are in d3d.probing.decoders.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import cpu_count
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from d3d.data.clips import Clips
from d3d.data.sprite_classes import CLASSES, SHAPES, TEXTURES
from d3d.data.sprite_clips import sprite_clips
from d3d.s3dg.network import MIXED, S3DG
from d3d.study.parameters import MAX_SEED, DataConfig
from d3d.train.evaluate import PIXELS_PER_PASS

# Every endpoint that computes something new; the others pool.
ENDPOINTS = ("Conv2d_1a_7x7", "Conv2d_2b_1x1", "Conv2d_2c_3x3", *MIXED)
MOTION = ("velocity", "rotation", "expansion")
TARGETS = (*MOTION, "time_order", "hue", "texture", "shape")
# What the largest of several columns names, or the sign of one.
CATEGORIES = ("time_order", "texture", "shape")
ALPHAS = np.logspace(-1, 5, 7)


class Sets(NamedTuple):
    """Clips to fit on and to test on; and the same, the first half of them with frames in a random order."""

    fit: Clips
    test: Clips
    fit_mixed: Clips
    test_mixed: Clips


class Sample(NamedTuple):
    """Features (N, F) and the table of their clips."""

    x: np.ndarray
    table: pd.DataFrame


def probed_sets(config: DataConfig, *, device: torch.device | str = "cpu") -> Sets:
    """The clips of all seeds' probes, with flow both seen and true."""

    def both(split: str, count: int) -> tuple[Clips, Clips]:
        clips = sprite_clips(config, split, count, flow=True, truth=True, device=device)
        shuffled = sprite_clips(config, split, count // 2, played="shuffled", flow=True, device=device)
        rest = slice(count // 2, None)
        mixed = replace(
            clips,
            rgb=torch.cat([shuffled.rgb, clips.rgb[rest]]),
            flow=torch.cat([shuffled.flow, clips.flow[rest]]),
            true_flow=None,
            table=clips.table.assign(in_order=np.arange(count) >= count // 2),
        )
        return clips, mixed

    # Seeds of trained networks stay below: no network has seen these clips.
    (fit, fit_mixed), (test, test_mixed) = (
        both(f"train/{MAX_SEED}", config.train_clips),
        both("iid", config.test_clips),
    )
    return Sets(fit, test, fit_mixed, test_mixed)


def linear_probes(model: S3DG, sets: Sets, stream: str, *, seed: int = 0) -> dict[str, float]:
    """`<endpoint>/<score>` of `linear` for every target and endpoint: a pass over each set, a probe an endpoint."""
    tables = [clips.table for clips in sets]
    features = [pooled(model, clips, stream, ENDPOINTS) for clips in sets]
    samples = [[Sample(f[e], table) for f, table in zip(features, tables, strict=True)] for e in ENDPOINTS]
    # One thread a fit: many small ones side by side are faster than each on all cores.
    with threadpool_limits(1), ThreadPoolExecutor(cpu_count()) as pool:
        found = list(pool.map(lambda four: _both(*four, seed), samples))
    return {f"{e}/{name}": v for e, scores in zip(ENDPOINTS, found, strict=True) for name, v in scores.items()}


def _both(fit: Sample, test: Sample, fit_mixed: Sample, test_mixed: Sample, seed: int) -> dict[str, float]:
    return linear(fit, test, seed=seed) | linear(fit_mixed, test_mixed, names=("time_order",), seed=seed)


@torch.no_grad()
def pooled(model: S3DG, clips: Clips, stream: str, endpoints: Sequence[str]) -> dict[str, np.ndarray]:
    """Features (N, C) of each endpoint, float32, in one pass over the clips: means over time and space.

    A classifier at that endpoint would see as much.
    """
    model.eval()
    device = clips.labels.device
    size = max(8, PIXELS_PER_PASS // clips.rgb[0, 0].numel() // 2) if device.type == "cuda" else 64
    parts: dict[str, list[np.ndarray]] = {name: [] for name in endpoints}
    for i in range(0, len(clips), size):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found = model.endpoints(clips.inputs(stream, slice(i, i + size)), endpoints)
        for name, x in found.items():
            parts[name].append(x.mean((2, 3, 4), dtype=torch.float32).cpu().numpy())
    return {name: np.concatenate(p) for name, p in parts.items()}


def targets(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """What is probed for, as columns (N, D): motion, hue on its circle, texture and shape as indicators; and, where the
    table says what is `in_order`, time order as ± 1."""
    hue = 2 * np.pi * table["hue"].to_numpy()
    found = {
        "velocity": table[["velocity_x", "velocity_y"]].to_numpy(),
        "rotation": table[["angular_velocity"]].to_numpy(),
        "expansion": table[["expansion"]].to_numpy(),
        "hue": np.stack([np.cos(hue), np.sin(hue)], 1),
        "texture": (table["texture"].to_numpy()[:, None] == np.array(list(TEXTURES))).astype(float),
        "shape": (table["shape"].to_numpy()[:, None] == np.array(list(SHAPES))).astype(float),
    }
    if "in_order" in table:
        found["time_order"] = np.where(table[["in_order"]], 1.0, -1.0)
    return found


def linear(fit: Sample, test: Sample, *, names: Sequence[str] = TARGETS, seed: int = 0) -> dict[str, float]:
    """Ridge regression from features to every target that is known; the penalties are chosen on half of `fit`.

    Gives `<target>/r2` on the clips of `test`; `<target>/r2_within`, the same once each class's mean is removed from
    features and target; for motion `<target>/r2_beyond_size`, the same once in each class all that follows linearly
    from the target's radius and its inverse is removed too, since how fast a sprite turns or grows at a given speed
    depends on its size; `<target>/selectivity`, r2 minus that of a control task, which deals every kind of clip (class
    and family) one random value of the target: what a probe reaches by naming the kind alone; and for categories
    `<target>/accuracy`. Targets that do not vary are left out. `motion/…` is the mean over velocity, rotation and
    expansion.
    """
    known, asked = targets(fit.table), targets(test.table)
    names = [n for n in names if n in known and known[n].std() > 0 and asked[n].std() > 0]
    deal = _control(fit.table, test.table, names, seed)
    # Classes follow one another, so that both halves have as many of each.
    first = np.arange(len(fit.x)) // len(CLASSES) % 2 == 0
    parts = [Sample(fit.x[first], fit.table[first]), Sample(fit.x[~first], fit.table[~first]), test]
    goals = [targets(t) for _, t in parts]
    plain = [
        _Part(x, [g[n] for n in names] + [deal(t, n) for n in names]) for (x, t), g in zip(parts, goals, strict=True)
    ]
    predicted = _predict(*plain)
    r2 = [_r2(goal, found) for goal, found in zip(plain[-1].goals, predicted, strict=True)]
    scores: dict[str, float] = {}
    for i, name in enumerate(names):
        scores[f"{name}/r2"] = r2[i]
        scores[f"{name}/selectivity"] = r2[i] - r2[len(names) + i]
        if name in CATEGORIES:
            scores[f"{name}/accuracy"] = _agreement(asked[name], predicted[i])
    moving = [name for name in MOTION if name in names]
    scores |= _r2_without(parts, names, _within, "r2_within")
    scores |= _r2_without(parts, moving, _beyond_size, "r2_beyond_size") if moving else {}
    for kind in ("r2_within", "r2_beyond_size") if moving else ():
        scores[f"motion/{kind}"] = float(np.mean([scores[f"{name}/{kind}"] for name in moving]))
    return scores


def _r2_without(
    parts: Sequence[Sample], names: Sequence[str], without: Callable[[np.ndarray, pd.DataFrame], np.ndarray], kind: str
) -> dict[str, float]:
    """`<target>/<kind>`: R² once `without` took something out of features and targets alike."""
    goals = [targets(t) for _, t in parts]
    left = [_Part(without(x, t), [without(g[n], t) for n in names]) for (x, t), g in zip(parts, goals, strict=True)]
    found = zip(names, left[-1].goals, _predict(*left), strict=True)
    return {f"{name}/{kind}": _r2(goal, predicted) for name, goal, predicted in found}


class _Part(NamedTuple):
    """Features (N, F) and the goals, each (N, D), of one set of clips."""

    x: np.ndarray
    goals: list[np.ndarray]


def _control(
    train_table: pd.DataFrame, test_table: pd.DataFrame, names: Sequence[str], seed: int
) -> Callable[[pd.DataFrame, str], np.ndarray]:
    """The control task: a table's clips and a target's name to values (N, D) that only the clips' kinds decide."""
    rng = np.random.default_rng(seed)
    kinds = sorted({*_kinds(train_table), *_kinds(test_table)})
    source: Mapping[str, np.ndarray] = targets(train_table)
    dealt = {name: {kind: source[name][rng.integers(len(train_table))] for kind in kinds} for name in names}
    return lambda table, name: np.stack([dealt[name][kind] for kind in _kinds(table)])


def _kinds(table: pd.DataFrame) -> list[str]:
    return (table["class"] + "/" + table["family"]).tolist()


def _predict(fit: _Part, choose: _Part, test: _Part) -> list[np.ndarray]:
    """What ridge probes say of `test`, fitted on `fit` and `choose`, the penalty of each column chosen on `choose`.

    Leaving single clips out would not do: where class means are removed, the others tell what the one left out was.
    """
    # Channels that hardly ever fire would be blown up by scaling.
    alive = fit.x.std(0) >= 1e-3 * fit.x.std(0).max()
    scaler = StandardScaler().fit(fit.x[:, alive])
    x, x_choose, x_test = (scaler.transform(part.x[:, alive].astype(float)) for part in (fit, choose, test))
    y, y_choose = (np.hstack(part.goals) for part in (fit, choose))
    said = (Ridge(alpha).fit(x, y).predict(x_choose).reshape(y_choose.shape) for alpha in ALPHAS)
    errors = [((guess - y_choose) ** 2).sum(0) for guess in said]
    model = Ridge(ALPHAS[np.argmin(errors, 0)]).fit(np.vstack([x, x_choose]), np.vstack([y, y_choose]))
    ends = np.cumsum([goal.shape[1] for goal in test.goals])[:-1]
    return np.split(model.predict(x_test).reshape(len(x_test), -1), ends, axis=1)


def _within(values: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    frame = pd.DataFrame(values)
    return (frame - frame.groupby(table["label"].to_numpy()).transform("mean")).to_numpy()


def _beyond_size(values: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """What of values (N, D) does not follow, in each class, from the target's radius and its inverse."""
    rest = np.empty_like(values, dtype=float)
    for label in table["label"].unique():
        rows = (table["label"] == label).to_numpy()
        radius = table["radius"].to_numpy()[rows]
        size = np.stack([np.ones_like(radius), radius, 1 / radius], 1)
        rest[rows] = values[rows] - size @ np.linalg.lstsq(size, values[rows], rcond=None)[0]
    return rest


def _r2(goal: np.ndarray, predicted: np.ndarray) -> float:
    """R² pooled over the columns: a column that hardly varies adds hardly anything to either sum."""
    return float(1 - ((goal - predicted) ** 2).sum() / ((goal - goal.mean(0)) ** 2).sum())


def _agreement(goal: np.ndarray, predicted: np.ndarray) -> float:
    """How often the largest column is right, or the sign of a single one."""
    if goal.shape[1] == 1:
        return float((np.sign(goal) == np.sign(predicted)).mean())
    return float((goal.argmax(1) == predicted.argmax(1)).mean())
