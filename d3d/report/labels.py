"""What arms, metrics and contrasts are called in figures and prose, and how numbers are written."""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from d3d.report.stats import Interval
from d3d.study.arms import ARMS

NOT_MEASURED = "not measured"
GROUP_LABELS = {
    "": "all classes",
    "motion/": "motion pairs",
    "appearance/": "appearance pairs",
    "both/": "differ in both",
}
SCORE_LABELS = {
    "r2": "R² of {}",
    "r2_within": "R² of {} within class",
    "selectivity": "selectivity for {}",
    "accuracy": "accuracy for {}",
}
UNITS = {
    "top1": "top-1", "top1_gain": "top-1", "epe": "px a frame", "target_epe": "px a frame", "accuracy": "accuracy",
    "r2": "R²", "r2_within": "R²", "selectivity": "R²",
}  # fmt: skip
# The name of an arm: a word that may end in a number with a point.
NAME = r"\b[a-z]\w*(?:\.\d+)?"


def label(arm: str) -> str:
    """The name of an arm in figures and prose; of one without an entry, the name it has."""
    return ARMS[arm].label if arm in ARMS else arm


def colour(arm: str) -> str | tuple[float, float, float]:
    """The colour of an arm in every figure; grey for one without an entry."""
    return ARMS[arm].colour if arm in ARMS else "0.5"


def marker(arm: str) -> str:
    """What tells an arm apart beside its colour."""
    return ARMS[arm].marker if arm in ARMS else "o"


def contrast_label(contrast: str) -> str:
    """A contrast of the ledger in the names and signs of print: `d3d - rgb_longer` as `D3D − RGB-longer`."""
    signs = {"-": "−", "*": "×"}

    def printed(found: re.Match) -> str:
        arm = ARMS.get(found[0])
        name = signs.get(found[0]) or (arm and arm.short) or label(found[0])
        return f"({name})" if " + " in name and found[0] != contrast else name

    return re.sub(rf"{NAME}|[-*]", printed, contrast)


def metric_label(metric: str) -> str:
    """A metric in words: `Mixed_4f/motion/r2_within` as `R² of motion within class, Mixed_4f`."""
    if "/" not in metric:
        return metric.replace("_", " ")
    place, *middle, score = metric.split("/")
    if score in ("top1", "top1_gain"):
        group = "".join(f", {GROUP_LABELS[f'{name}/']}" for name in middle if f"{name}/" in GROUP_LABELS)
        over = " over its better member" if score == "top1_gain" else ""
        return f"{place} top-1{over}{group}"
    if score in ("epe", "target_epe"):
        return f"error of decoded flow{' on the target' if score == 'target_epe' else ''}, {place}"
    if score == "frame_map":
        return f"frame mAP, {place}"
    if place == "motion_part":
        return f"motion part of the margin, {score}"
    return f"{SCORE_LABELS[score].format(middle[0])}, {place}" if score in SCORE_LABELS and middle else metric


def unit(metric: str) -> str:
    """What a metric is counted in; empty where it has no unit of its own."""
    if metric.startswith("motion_part/"):
        return "standard deviations of the margin"
    return UNITS.get(metric.split("/")[-1], "")


def number_text(found: Interval | None, *, signed: bool = False) -> str:
    """`0.512 [0.470, 0.554]` for the prose; what stands there where there are fewer than two values, or none."""
    if found is None:
        return NOT_MEASURED
    if not np.isfinite(found.mean):
        return "not defined"
    digits = "+.3f" if signed else ".3f"
    text = f"{found.mean:{digits}}"
    if found.n > 1:
        text += f" [{found.low:{digits}}, {found.high:{digits}}]"
    return (text if found.n > 1 else f"{text} (one value)").replace("-", "−")


def endpoints_of(table: pd.DataFrame) -> list[str]:
    """The endpoints that the records have metrics of, from shallow to deep: TF-slim's names sort that way."""
    first: Iterable[str] = table["metric"].str.split("/").str[0].unique()
    return sorted(name for name in first if re.match(r"(Conv2d|Mixed)_\d", name))
