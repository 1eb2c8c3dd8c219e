"""The names of arms, metrics and contrasts in figures and prose, and the format of numbers."""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from d3d.report.stats import Interval
from d3d.study.arms import ARMS, Arm

# The one word, in verdicts, tables, sentences and figures, for what the records do not hold.
NEEDS_DATA = "needs data"
GROUP_LABELS = {
    "": "all classes",
    "motion/": "motion pairs",
    "appearance/": "appearance pairs",
    "both/": "classes differing in both",
}
SCORE_LABELS = {
    "r2": "R² of {}",
    "r2_within": "R² of {} within class",
    "selectivity": "selectivity for {}",
    "accuracy": "probe accuracy for {}",
}
UNITS = {
    "top1": "top-1", "top1_gain": "top-1", "epe": "px per frame", "target_epe": "px per frame", "accuracy": "accuracy",
    "r2": "R²", "r2_within": "R²", "selectivity": "R²", "pair_accuracy": "forced choice", "agreement": "agreement",
    "rescued": "share", "residual_correlation": "correlation", "target_share": "share",
    "frame_map": "frame mAP",
}  # fmt: skip
# Of a test split, or of a group of its clips.
SPLIT_LABELS = {
    "top1": "top-1", "top1_gain": "top-1 gain over the better member", "pair_accuracy": "forced choice",
    "nll": "negative log-likelihood", "ece": "calibration error", "agreement": "agreement with flow",
    "residual_correlation": "correlation with flow beyond the class",
    "rescued": "share of right answers where flow is right and RGB-longer is not",
}  # fmt: skip
# An arm's name in a contrast: a word that may end in a decimal number, as in d3d_lambda_0.1.
ARM_NAME = r"\b[a-z]\w*(?:\.\d+)?"


def _entry(arm: str) -> Arm | None:
    """The entry of an arm, or of that which an arm of all official splits is called on the first."""
    return ARMS.get(arm) or ARMS.get(f"{arm}_s1")


def label(arm: str) -> str:
    """Returns the name of an arm in figures and prose; an unregistered arm keeps its own name."""
    entry = _entry(arm)
    return entry.label.removesuffix("" if arm in ARMS else ", split 1") if entry else arm


def colour(arm: str) -> str | tuple[float, float, float]:
    """Returns the colour of an arm in every figure; grey for an unregistered arm."""
    return entry.colour if (entry := _entry(arm)) else "0.5"


def marker(arm: str) -> str:
    """Returns the matplotlib marker of an arm in every figure; a circle for an unregistered arm."""
    return entry.marker if (entry := _entry(arm)) else "o"


def split_of(arm: str) -> tuple[str, str]:
    """Divides the name of an arm of one official split, as d3d_k400_s2, into d3d_k400 and s2; of others s2 is empty."""
    match = re.fullmatch(r"(.+)_(s[123])", arm)
    return (match[1], match[2]) if match else (arm, "")


def contrast_label(contrast: str) -> str:
    """Prints a contrast with labels and typographic signs: `d3d - rgb_longer` as `D3D − RGB-longer`."""
    signs = {"-": "−", "*": "×"}

    def printed(match: re.Match) -> str:
        arm = ARMS.get(match[0])
        name = signs.get(match[0]) or (arm and arm.short) or label(match[0])
        return f"({name})" if " + " in name and match[0] != contrast else name

    return re.sub(rf"{ARM_NAME}|[-*]", printed, contrast)


def metric_label(metric: str) -> str:
    """Returns a metric in words: `Mixed_4f/motion/r2_within` as `R² of motion within class, Mixed_4f`."""
    if metric == "target_share":
        return "share of the attribution on the target"
    if "/" not in metric:
        return metric.replace("_", " ")
    first, *middle, score = metric.split("/")
    if score in SPLIT_LABELS:
        group = "".join(f", {GROUP_LABELS[f'{name}/']}" for name in middle if f"{name}/" in GROUP_LABELS)
        return f"{first} {SPLIT_LABELS[score]}{group}"
    if score in ("epe", "target_epe"):
        return f"error of decoded flow{' on the target' if score == 'target_epe' else ''}, {first}"
    if score == "frame_map":
        boxes = {"boxes": "true boxes", "detected": "detected boxes"}.get(first, first)
        return f"frame mAP, {boxes}"
    if first == "motion_part":
        return f"motion part of the margin, {score}"
    return f"{SCORE_LABELS[score].format(middle[0])}, {first}" if score in SCORE_LABELS and middle else metric


def unit(metric: str) -> str:
    """Returns the unit of a metric as an axis names it; empty for an unlisted metric."""
    if metric.startswith("motion_part/"):
        return "standard deviations of the logits"
    return UNITS.get(metric.split("/")[-1], "")


def number_text(value: Interval | None, *, signed: bool = False) -> str:
    """Formats an interval as `0.512 [0.470, 0.554]`.

    Args:
        value: None gives `needs data`, a mean that is not finite `not defined`, one value `0.512 (one value)`.
        signed: prints the sign of positive numbers too.
    """
    if value is None:
        return NEEDS_DATA
    if not np.isfinite(value.mean):
        return "not defined"
    digits = "+.3f" if signed else ".3f"
    text = f"{value.mean:{digits}}"
    text += f" [{value.low:{digits}}, {value.high:{digits}}]" if value.n > 1 else " (one value)"
    return text.replace("-", "−")


def percent_text(value: Interval | None) -> str:
    """Formats the interval of a proportion as `54 % [35, 73]`; the exceptions are those of `number_text`."""
    if value is None or not np.isfinite(value.mean):
        return number_text(value)
    mean, low, high = (f"{100 * v:.0f}".replace("-", "−") for v in value[:3])
    return f"{mean} % [{low}, {high}]" if value.n > 1 else f"{mean} % (one value)"


def endpoints_of(table: pd.DataFrame) -> list[str]:
    """Lists the endpoints that a table has metrics of, from shallow to deep, which is the order of TF-slim's names."""
    prefixes: Iterable[str] = table["metric"].str.split("/").str[0].unique()
    return sorted(name for name in prefixes if re.match(r"(Conv2d|Mixed)_\d", name))
