"""Linear probes of frozen endpoints, with control tasks (Hewitt and Liang 2019).

    probe_clips = render_probe_clips(config.data, device="cuda")
    metrics = linear_probes(model, probe_clips, "rgb")    # Mixed_4f/velocity/r2_within, …

A probe is a ridge regression from an endpoint's features to a property of the clip, such as the target sprite's
velocity. Flow decoders on the same endpoints are in d3d.probing.decoders.
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
from d3d.s3dg.graphs import capture
from d3d.s3dg.network import MIXED, S3DG
from d3d.study.parameters import MAX_SEED, DataConfig
from d3d.train.evaluate import MIN_PASSES, PIXELS_PER_PASS

# All endpoints but the max poolings.
ENDPOINTS = ("Conv2d_1a_7x7", "Conv2d_2b_1x1", "Conv2d_2c_3x3", *MIXED)
# Rotation and expansion are none: a small sprite turns and grows faster, so that they measure its size as well.
PROPERTIES = ("velocity", "time_order", "texture", "shape")
# Also scored by accuracy: the predicted category is the largest of several columns, or the sign of a single one.
CATEGORICAL = ("time_order", "texture", "shape")
ALPHAS = np.logspace(-1, 5, 7)  # ridge penalties to choose from


class ProbeClips(NamedTuple):
    """Clips for probing.

    Attributes:
        train: the clips that probes are fitted on.
        test: the clips that they are scored on.
        train_half_shuffled: `train` with the frames of its first half shuffled, for time order; without true flow.
        test_half_shuffled: the same of `test`.
    """

    train: Clips
    test: Clips
    train_half_shuffled: Clips
    test_half_shuffled: Clips


class ProbeData(NamedTuple):
    """Input of probes for a set of clips.

    Attributes:
        features: (N, F).
        table: one row per clip, as in `Clips`.
    """

    features: np.ndarray
    table: pd.DataFrame


def render_probe_clips(config: DataConfig, *, device: torch.device | str = "cpu") -> ProbeClips:
    """Renders the clips for probing, the same for every seed, with true flow and the flow that networks see."""

    def render_both(split: str, count: int) -> tuple[Clips, Clips]:
        clips = sprite_clips(config, split, count, flow=True, true_flow=True, device=device)
        shuffled = sprite_clips(config, split, count // 2, playback="shuffled", flow=True, device=device)
        second_half = slice(count // 2, None)
        half_shuffled = replace(
            clips,
            rgb=torch.cat([shuffled.rgb, clips.rgb[second_half]]),
            flow=torch.cat([shuffled.flow, clips.flow[second_half]]),
            true_flow=None,
            table=clips.table.assign(in_order=np.arange(count) >= count // 2),
        )
        return clips, half_shuffled

    # The seeds of trained networks are below MAX_SEED, so that no network has seen these clips.
    train, train_half_shuffled = render_both(f"train/{MAX_SEED}", config.train_clips)
    test, test_half_shuffled = render_both("iid", config.test_clips)
    return ProbeClips(train, test, train_half_shuffled, test_half_shuffled)


def linear_probes(model: S3DG, probe_clips: ProbeClips, stream: str, *, seed: int = 0) -> dict[str, float]:
    """Fits linear probes on every endpoint of a network and scores them.

    Args:
        model: put into eval mode, never trained.
        stream: input of `model`, rgb or flow.
        seed: seed of the control tasks.

    Returns:
        `<endpoint>/<score>`, with the scores of `fit_probes` for every property of `PROPERTIES`.
    """
    tables = [clips.table for clips in probe_clips]
    features = [pooled_features(model, clips, stream, ENDPOINTS) for clips in probe_clips]
    data = [[ProbeData(f[e], table) for f, table in zip(features, tables, strict=True)] for e in ENDPOINTS]
    # One thread per fit: many small fits in parallel are faster than each of them on all cores.
    with threadpool_limits(1), ThreadPoolExecutor(cpu_count()) as pool:
        results = list(pool.map(lambda endpoint_data: _fit_endpoint(*endpoint_data, seed), data))
    return {f"{e}/{name}": v for e, scores in zip(ENDPOINTS, results, strict=True) for name, v in scores.items()}


def _fit_endpoint(
    train: ProbeData,
    test: ProbeData,
    train_half_shuffled: ProbeData,
    test_half_shuffled: ProbeData,
    seed: int,
) -> dict[str, float]:
    time_order = fit_probes(train_half_shuffled, test_half_shuffled, properties=("time_order",), seed=seed)
    return fit_probes(train, test, seed=seed) | time_order


@torch.no_grad()
def pooled_features(model: S3DG, clips: Clips, stream: str, endpoints: Sequence[str]) -> dict[str, np.ndarray]:
    """Means over time and space of each endpoint's feature map: (N, C), float32, from one pass over the clips."""
    model.eval()
    device = clips.labels.device
    batch_size = max(8, PIXELS_PER_PASS // clips.rgb[0, 0].numel() // 2) if device.type == "cuda" else 64
    batches: dict[str, list[np.ndarray]] = {name: [] for name in endpoints}
    network = capture(model) if len(clips) >= MIN_PASSES * batch_size else model
    for i in range(0, len(clips), batch_size):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            feature_maps = network.endpoints(clips.inputs(stream, slice(i, i + batch_size)), endpoints)
        for name, x in feature_maps.items():
            batches[name].append(x.mean((2, 3, 4), dtype=torch.float32).cpu().numpy())
    return {name: np.concatenate(features) for name, features in batches.items()}


def property_values(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Returns the properties of clips that probes predict, each (N, D).

    Velocity (D = 2), texture and shape are those of the target sprite, the last two one-hot. time_order is 1 for clips
    in order and -1 for shuffled ones, only if the table has a column `in_order`.
    """
    values = {
        "velocity": table[["velocity_x", "velocity_y"]].to_numpy(),
        "texture": (table["texture"].to_numpy()[:, None] == np.array(list(TEXTURES))).astype(float),
        "shape": (table["shape"].to_numpy()[:, None] == np.array(list(SHAPES))).astype(float),
    }
    if "in_order" in table:
        values["time_order"] = np.where(table[["in_order"]], 1.0, -1.0)
    return values


def fit_probes(
    train: ProbeData, test: ProbeData, *, properties: Sequence[str] = PROPERTIES, seed: int = 0
) -> dict[str, float]:
    """Fits ridge regressions from features to properties, and scores them on `test`.

    Args:
        train: in order of class labels (0, 1, …, 15, 0, 1, …). Half of it is used to choose the penalties.
        properties: properties to predict; those that the table lacks or that do not vary are left out.
        seed: seed of the control tasks.

    Returns:
        `<property>/r2`: R² on `test`.
        `<property>/r2_within`: R² after subtracting each class's mean from features and property.
        `<property>/selectivity`: r2 minus the r2 of a control task, in which all clips of one class and family get the
            same random value of the property, so that recognising class and family suffices.
        `<property>/accuracy`, for categories.
    """
    train_values, test_values = property_values(train.table), property_values(test.table)
    names = [n for n in properties if n in train_values and train_values[n].std() > 0 and test_values[n].std() > 0]
    control = _control_task(train.table, test.table, names, seed)
    # Labels are in cyclic order: alternating blocks of one cycle give both halves as many clips of each class.
    first_half = np.arange(len(train.features)) // len(CLASSES) % 2 == 0
    splits = [
        ProbeData(train.features[first_half], train.table[first_half]),
        ProbeData(train.features[~first_half], train.table[~first_half]),
        test,
    ]
    split_values = [property_values(table) for _, table in splits]
    regressions = [
        _Regression(x, [values[n] for n in names] + [control(table, n) for n in names])
        for (x, table), values in zip(splits, split_values, strict=True)
    ]
    predictions = _fit_predict(*regressions)
    r2 = [_r2(y, predicted) for y, predicted in zip(regressions[-1].ys, predictions, strict=True)]
    scores: dict[str, float] = {}
    for i, name in enumerate(names):
        scores[f"{name}/r2"] = r2[i]
        scores[f"{name}/selectivity"] = r2[i] - r2[len(names) + i]
        if name in CATEGORICAL:
            scores[f"{name}/accuracy"] = _accuracy(test_values[name], predictions[i])
    within = [
        _Regression(_within_class(x, table), [_within_class(values[n], table) for n in names])
        for (x, table), values in zip(splits, split_values, strict=True)
    ]
    results = zip(names, within[-1].ys, _fit_predict(*within), strict=True)
    return scores | {f"{name}/r2_within": _r2(y, predicted) for name, y, predicted in results}


class _Regression(NamedTuple):
    """Features (N, F) and the values to predict, each (N, D), of one set of clips."""

    x: np.ndarray
    ys: list[np.ndarray]


def _control_task(
    train_table: pd.DataFrame, test_table: pd.DataFrame, names: Sequence[str], seed: int
) -> Callable[[pd.DataFrame, str], np.ndarray]:
    """A function of a table and a property that returns the control task's values (N, D)."""
    rng = np.random.default_rng(seed)
    kinds = sorted({*_class_and_family(train_table), *_class_and_family(test_table)})
    source: Mapping[str, np.ndarray] = property_values(train_table)
    control = {name: {kind: source[name][rng.integers(len(train_table))] for kind in kinds} for name in names}
    return lambda table, name: np.stack([control[name][kind] for kind in _class_and_family(table)])


def _class_and_family(table: pd.DataFrame) -> list[str]:
    return (table["class"] + "/" + table["family"]).tolist()


def _fit_predict(train: _Regression, validation: _Regression, test: _Regression) -> list[np.ndarray]:
    """Predictions on `test` by ridge regressions fitted on `train` and `validation`.

    The penalty of each column is chosen on `validation`. Leave-one-out would not do: after subtracting class means, the
    other clips of a class reveal the value of the one that is left out.
    """
    # Scaling would blow up channels that are almost always zero.
    active = train.x.std(0) >= 1e-3 * train.x.std(0).max()
    scaler = StandardScaler().fit(train.x[:, active])
    x, x_validation, x_test = (scaler.transform(r.x[:, active].astype(float)) for r in (train, validation, test))
    y, y_validation = (np.hstack(r.ys) for r in (train, validation))
    predictions = (Ridge(alpha).fit(x, y).predict(x_validation).reshape(y_validation.shape) for alpha in ALPHAS)
    errors = [((predicted - y_validation) ** 2).sum(0) for predicted in predictions]
    model = Ridge(ALPHAS[np.argmin(errors, 0)]).fit(np.vstack([x, x_validation]), np.vstack([y, y_validation]))
    ends = np.cumsum([values.shape[1] for values in test.ys])[:-1]
    return np.split(model.predict(x_test).reshape(len(x_test), -1), ends, axis=1)


def _within_class(values: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """Subtracts each class's mean from values (N, D)."""
    frame = pd.DataFrame(values)
    return (frame - frame.groupby(table["label"].to_numpy()).transform("mean")).to_numpy()


def _r2(y: np.ndarray, predicted: np.ndarray) -> float:
    """R² pooled over the columns: a column that hardly varies hardly adds to either sum of squares."""
    return float(1 - ((y - predicted) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())


def _accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    """How often the largest column is right, or the sign of a single one."""
    if y.shape[1] == 1:
        return float((np.sign(y) == np.sign(predicted)).mean())
    return float((y.argmax(1) == predicted.argmax(1)).mean())
