"""What logits say of a network: accuracy, forced choice within pairs of classes, calibration, likeness to a teacher."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import log_softmax

# Test splits of the same distribution, whose clips are also scored together.
POOLED = {"pooled": ("val", "iid")}
CONFIDENCE_BINS = 15


def accuracy(logits: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Computes top-1 accuracy, overall and per group of classes.

    Args:
        logits: (N, K).
        labels: (N,).
        groups: (N,), the group of each clip.

    Returns:
        `top1` in [0, 1] over all clips, and `<group>/top1` if there are several groups.

    Raises:
        ValueError: if there are more or fewer logits than labels.
    """
    if len(logits) != len(labels):
        raise ValueError(f"{len(logits)} clips were scored but the split has {len(labels)}")
    correct = logits.argmax(1) == np.asarray(labels)
    by_group = _by_group("top1", correct, groups)
    return {"top1": float(correct.mean())} | (by_group if len(by_group) > 1 else {})


def pair_accuracy(
    logits: np.ndarray, labels: np.ndarray, groups: Sequence[str], siblings: np.ndarray
) -> dict[str, float]:
    """Computes how often a clip's class scores higher than its sibling, the other class of its pair; chance is 0.5.

    The classes of a motion pair share their appearance, so that this choice needs motion and nothing else.

    Args:
        logits: (N, K); a tie counts half.
        labels: (N,).
        groups: (N,), the group of each clip: what its class and the sibling differ in.
        siblings: (K,), the sibling of each class; -1: none, and the class's clips are left out.

    Returns:
        `<group>/pair_accuracy` for each group with siblings.
    """
    has_sibling = siblings[labels] >= 0
    logits, labels, groups = logits[has_sibling], labels[has_sibling], np.asarray(groups)[has_sibling]
    rows = np.arange(len(labels))
    difference = logits[rows, labels] - logits[rows, siblings[labels]]
    wins = (difference > 0) + 0.5 * (difference == 0)
    return _by_group("pair_accuracy", wins, groups)


def calibration(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes how well the softmax of logits predicts how often they are right.

    Args:
        logits: (N, K).
        labels: (N,).

    Returns:
        `nll`, the mean negative log-likelihood of the true classes in nats, and `ece`, the expected calibration error
        (Guo et al. 2017): |accuracy - confidence| of 15 equally wide bins of confidence, weighted by their clips.
    """
    log_probability = log_softmax(logits.astype(np.float64), axis=1)
    confidence, correct = np.exp(log_probability.max(1)), logits.argmax(1) == labels
    bins = np.minimum((confidence * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    gaps = np.bincount(bins, correct - confidence, CONFIDENCE_BINS)
    nll = -log_probability[np.arange(len(labels)), labels].mean()
    return {"nll": float(nll), "ece": float(np.abs(gaps).sum() / len(labels))}


def over_classes(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes what benchmarks of video files report beside top-1.

    Args:
        logits: (N, K).
        labels: (N,).

    Returns:
        `clips`, the number of clips; `class_accuracy`, the mean of top-1 over the classes that have clips; and with
        more than five classes `top5`, how often the true class is among the five highest logits, of which ties count
        as misses.
    """
    by_class = pd.Series(logits.argmax(1) == labels).groupby(labels).mean()
    scores = {"clips": float(len(labels)), "class_accuracy": float(by_class.mean())}
    if logits.shape[1] > 5:
        own = logits[np.arange(len(labels)), labels]
        scores["top5"] = float(((logits >= own[:, None]).sum(1) <= 5).mean())
    return scores


def score_splits(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Scores the logits of every test split, and of the splits that POOLED puts together.

    Args:
        arrays: `logits/<split>` (N, K), `labels/<split>` (N,), `groups/<split>` (N,), and `siblings` (K,) where classes
            come in pairs.

    Returns:
        `<split>/<metric>` for the metrics of `accuracy`, `calibration`, and `pair_accuracy` or, where classes do not
        come in pairs, `over_classes`.
    """
    metrics: dict[str, float] = {}
    for split in test_splits(arrays):
        logits, labels = logits_of(arrays, split)
        groups = _joined(arrays, "groups", split)
        scores = accuracy(logits, labels, groups) | calibration(logits, labels)
        if "siblings" in arrays:
            scores |= pair_accuracy(logits, labels, groups, arrays["siblings"])
        else:
            scores |= over_classes(logits, labels)
        metrics |= {f"{split}/{name}": value for name, value in scores.items()}
    return metrics


def test_splits(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Lists the test splits of a network's arrays, and after them those of POOLED whose members they have."""
    splits = [name.removeprefix("logits/") for name in arrays if name.startswith("logits/")]
    return splits + [name for name, members in POOLED.items() if set(members) <= set(splits)]


def logits_of(arrays: Mapping[str, np.ndarray], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits (N, K) and labels (N,) of a split of `test_splits`."""
    return _joined(arrays, "logits", split), _joined(arrays, "labels", split)


def _joined(arrays: Mapping[str, np.ndarray], kind: str, split: str) -> np.ndarray:
    return np.concatenate([arrays[f"{kind}/{member}"] for member in POOLED.get(split, (split,))])


def class_table(arrays: Mapping[str, np.ndarray], classes: Sequence[str]) -> pd.DataFrame:
    """Tabulates the results by class: one row per test split and class, with clips and top-1 (empty without clips).

    Args:
        arrays: as for `score_splits`.
        classes: names of the K classes.
    """
    tables = []
    for split in test_splits(arrays):
        logits, labels = logits_of(arrays, split)
        correct = pd.Series(logits.argmax(1) == labels).groupby(labels)
        table = pd.DataFrame({"clips": correct.size(), "top1": correct.mean()}).reindex(range(len(classes)))
        table.insert(0, "class", list(classes))
        table.insert(0, "split", split)
        tables.append(table.fillna({"clips": 0}).astype({"clips": int}))
    return pd.concat(tables, ignore_index=True)


def clip_table(arrays: Mapping[str, np.ndarray], classes: Sequence[str]) -> pd.DataFrame:
    """Tabulates the results by clip: its name, its class, the predicted class and the probability of that class.

    Args:
        arrays: as for `score_splits`, with `videos/<split>` (N,).
        classes: names of the K classes.
    """
    tables, names = [], np.array(classes)
    for split in test_splits(arrays):
        logits, labels = logits_of(arrays, split)
        predicted, probability = logits.argmax(1), np.exp(log_softmax(logits, axis=1).max(1))
        columns = {"split": split, "video": arrays[f"videos/{split}"], "class": names[labels]}
        columns |= {"predicted": names[predicted], "probability": probability.astype(float).round(4)}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def likeness(student: np.ndarray, teacher: np.ndarray, control: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes how much of a teacher's answers to each clip a student gives as well.

    Args:
        student, teacher: (N, K), logits for the same clips.
        control: (N, K), logits of the student's counterpart without a teacher.
        labels: (N,).

    Returns:
        `agreement`: share of clips on which both have the same top class.
        `residual_correlation`: correlation of both logits after the mean of each clip over the classes, which softmax
            ignores, and then the mean of each class's clips are removed. It is zero for a student that knows of its
            teacher what the label tells.
        `rescued`: share of right answers among the clips on which the teacher is right and the control wrong; nan
            without such clips.
    """
    residuals = []
    for logits in (student, teacher):
        centred = pd.DataFrame(logits - logits.mean(1, keepdims=True, dtype=np.float64))
        residuals.append((centred - centred.groupby(labels).transform("mean")).to_numpy().ravel())
    right = {name: x.argmax(1) == labels for name, x in (("s", student), ("t", teacher), ("c", control))}
    lost = right["t"] & ~right["c"]
    return {
        "agreement": float((student.argmax(1) == teacher.argmax(1)).mean()),
        "residual_correlation": float(np.corrcoef(*residuals)[0, 1]),
        "rescued": float(right["s"][lost].mean()) if lost.any() else float("nan"),
    }


def _by_group(metric: str, values: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    groups = np.asarray(groups)
    return {f"{name}/{metric}": float(values[groups == name].mean()) for name in sorted(set(groups))}
