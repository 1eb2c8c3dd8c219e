"""What arms, metrics and contrasts are called in figures and prose, and the colour of each network."""

import re

import seaborn as sns

from d3d.study.arms import LAMBDA_ARM

_COLOURS = sns.color_palette("colorblind")
# An arm keeps its colour in every figure: blues are RGB's, reds D3D's.
ARMS = {
    "random": ("random weights", (0.6, 0.6, 0.6)),
    "rgb": ("RGB", _COLOURS[0]),
    "rgb_twin": ("RGB, twin", _COLOURS[7]),
    "rgb_longer": ("RGB-longer", _COLOURS[9]),
    "rgb_teacher": ("RGB-teacher", _COLOURS[4]),
    "rgb_rgb": ("RGB + RGB", (0.2, 0.13, 0.53)),
    "flow": ("flow", _COLOURS[1]),
    "flow_exact": ("flow, exact", _COLOURS[8]),
    "two_stream": ("two-stream", _COLOURS[2]),
    "two_stream_logits": ("two-stream, logits", (0.5, 0.76, 0.6)),
    "d3d": ("D3D", _COLOURS[3]),
    "d3d_rgb": ("D3D + RGB", _COLOURS[5]),
    "d3d_d3d": ("D3D + D3D", (0.53, 0.13, 0.33)),
    "d3d_scratch": ("D3D from scratch", _COLOURS[3]),
    "d3d_kl": ("D3D by KL", _COLOURS[3]),
    "d3d_features": ("D3D by features", _COLOURS[3]),
    "d3d_exact": ("D3D of exact flow", _COLOURS[3]),
    "d3d_k400": ("D3D from Kinetics-400", _COLOURS[3]),
    "d3d_k600": ("D3D from Kinetics-600", _COLOURS[3]),
    "tuned": ("tuned for flow", (0.0, 0.0, 0.0)),
}
SHORT = {"random": "random", "tuned": "tuned"}  # in contrasts, which grow long
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
UNITS = {"top1": "top-1", "top1_gain": "top-1", "epe": "px a frame", "target_epe": "px a frame", "accuracy": "accuracy"}
UNITS |= {"r2": "R²", "r2_within": "R²", "selectivity": "R²"}
# Beside the colour, what tells the networks apart that share a panel.
MARKERS = {"random": "X", "rgb": "o", "flow": "^", "rgb_longer": "s", "rgb_teacher": "D", "d3d": "P", "tuned": "v"}


def label(arm: str) -> str:
    """The name of an arm in figures and prose; of one that is none, the name it has."""
    if arm.startswith(LAMBDA_ARM):
        return f"D3D, λ = {arm.removeprefix(LAMBDA_ARM)}"
    return ARMS[arm][0] if arm in ARMS else arm


def colour(arm: str) -> tuple[float, float, float]:
    """The colour of an arm. Raises KeyError for one that has none."""
    return ARMS["d3d" if arm.startswith(LAMBDA_ARM) else arm][1]


def contrast_label(contrast: str) -> str:
    """A contrast of the ledger in the names and signs of print: `d3d - rgb_longer` as `D3D − RGB-longer`."""
    signs = {"-": "−", "*": "×"}

    def printed(found: re.Match) -> str:
        name = signs.get(found[0]) or SHORT.get(found[0]) or label(found[0])
        return f"({name})" if " + " in name and found[0] != contrast else name

    return re.sub(r"[a-z]\w*|[-*]", printed, contrast)


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
