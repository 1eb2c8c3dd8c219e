"""One training run at the end of its notebook: accuracy per split and class, confusions, clips with predictions."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import softmax

from d3d.messages import printable
from d3d.report.plots import styled
from d3d.report.stats import proportion_interval
from d3d.study import records
from d3d.study.arms import GREEN, RED
from d3d.study.plan import main_split
from d3d.study.records import Record

# Of data sets with more classes, those that the network confuses most are shown.
MOST_CLASSES = 24
RIGHT, WRONG = GREEN, RED


def top1(record: Record) -> pd.DataFrame:
    """Top-1 on each test split, with Wilson's 95 % interval over its clips.

    Args:
        record: of a run of train or distill, in the folder that its parameter `results` names.

    Returns:
        One row per split, with the columns clips, top-1, from and to.
    """
    arrays = _arrays(record)
    rows = {}
    for split in _splits(arrays):
        labels, logits = arrays[f"labels/{split}"], arrays[f"logits/{split}"]
        correct = int((logits.argmax(1) == labels).sum())
        interval = proportion_interval(correct, len(labels))
        rows[split] = {"clips": len(labels), "top-1": interval.mean, "from": interval.low, "to": interval.high}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("split").round(3)


def by_class(record: Record, split: str = "", *, ends: int = 10) -> pd.DataFrame:
    """Top-1 of the classes that are recognised worst and best, with Wilson's 95 % interval over their clips.

    Args:
        record: of a run that tested a network, in the folder that its parameter `results` names.
        split: a test split; empty: the one that the run is judged on (`plan.main_split`).
        ends: number of classes from each end.

    Returns:
        One row per class, worst first, with the columns clips, top-1, from and to; classes without clips are left out.
    """
    arrays = _arrays(record)
    split = split or main_split(_splits(arrays))
    names, labels = _class_names(arrays), arrays[f"labels/{split}"]
    correct = pd.Series(arrays[f"logits/{split}"].argmax(1) == labels).groupby(labels).agg(["sum", "size"])
    rows = {}
    for label, right, clips in correct.itertuples():
        interval = proportion_interval(int(right), int(clips))
        rows[names[label]] = {"clips": clips, "top-1": interval.mean, "from": interval.low, "to": interval.high}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("class").round(3).sort_values("top-1")
    return table if len(table) <= 2 * ends else pd.concat([table.head(ends), table.tail(ends)])


@styled
def confusions(record: Record, split: str = "") -> Figure:
    """The confusion matrix of a split, as shares of each true class's clips, and beside it top-1 per class.

    Args:
        record: of a run of train or distill, in the folder that its parameter `results` names.
        split: a test split; empty: the one that the run is judged on (`plan.main_split`).
    """
    arrays = _arrays(record)
    split = split or main_split(_splits(arrays))
    classes = _class_names(arrays)
    matrix = confusion_matrix(arrays[f"logits/{split}"].argmax(1), arrays[f"labels/{split}"], len(classes))
    counts = matrix.sum(1)
    shares = matrix / np.maximum(counts, 1)[:, None]
    shown = np.sort(np.argsort(np.diag(shares), kind="stable")[:MOST_CLASSES])
    side = 0.24 * len(shown)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(side + 4.4, side + 1.4), width_ratios=[side + 1.2, 2.2], sharey=True, layout="constrained"
    )
    left.imshow(shares[np.ix_(shown, shown)], vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ticks = range(len(shown))
    left.set_xticks(ticks, classes[shown], rotation=90, fontsize=8)
    left.set_yticks(ticks, classes[shown], fontsize=8)
    left.set(xlabel="predicted class", ylabel="class of the clip", title=f"confusions on {split}")
    for y, label in enumerate(shown):
        if counts[label]:
            interval = proportion_interval(int(matrix[label, label]), int(counts[label]))
            right.plot([interval.low, interval.high], [y, y], color=RIGHT, lw=5, alpha=0.3, solid_capstyle="butt")
            right.plot(interval.mean, y, "o", color=RIGHT, markersize=4)
    right.axvline(1 / len(classes), color="0.5", ls="--", lw=1)
    right.set(xlim=(-0.02, 1.02), xlabel="top-1, 95 % interval", title="per class")
    right.tick_params(left=False)
    right.grid(axis="y", color="0.93")
    return figure


@styled
def examples(record: Record) -> Figure | None:
    """A few clips of the main split: frames over time, and the class predicted, with its probability.

    Args:
        record: of a run of train or distill, in the folder that its parameter `results` names.

    Returns:
        One row per clip; None where the run kept no clips.
    """
    arrays = _arrays(record)
    if "examples/frames" not in arrays:
        return None
    clips, rows, split = arrays["examples/frames"], arrays["examples/index"], main_split(_splits(arrays))
    logits, labels, classes = arrays[f"logits/{split}"][rows], arrays[f"labels/{split}"][rows], _class_names(arrays)
    probabilities = softmax(logits, axis=1)
    figure, axes = plt.subplots(
        len(clips), clips.shape[1], figsize=(1.1 * clips.shape[1] + 3.8, 1.12 * len(clips)), squeeze=False
    )
    for row, clip in enumerate(clips):
        for axis, frame in zip(axes[row], clip, strict=True):
            axis.imshow(frame, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        predicted = int(logits[row].argmax())
        correct = predicted == labels[row]
        text = f"predicted: {classes[predicted]} ({probabilities[row, predicted]:.0%})"
        text += "" if correct else f"\ntrue: {classes[labels[row]]}"
        axes[row, -1].annotate(
            text, (1.08, 0.5), xycoords="axes fraction", va="center", color=RIGHT if correct else WRONG, fontsize=9
        )
    figure.subplots_adjust(wspace=0.05, hspace=0.08, right=0.62)
    return figure


def confusion_matrix(predictions: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts (K, K) of clips: a row per true class, a column per predicted class."""
    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def _arrays(record: Record) -> dict[str, np.ndarray]:
    return records.read_arrays(Path(record.params["results"]), record)


def _class_names(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The names of the classes as matplotlib shows them, which would read text between two dollars as a formula."""
    return np.array([printable(str(name)).replace("$", r"\$") for name in arrays["classes"]])


def _splits(arrays: dict[str, np.ndarray]) -> list[str]:
    return [name.removeprefix("logits/") for name in arrays if name.startswith("logits/")]
