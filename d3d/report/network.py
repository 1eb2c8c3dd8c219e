"""A picture and tables of the network: its stages, and the parameters with which it was trained."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from d3d.report.labels import label
from d3d.report.plots import DARK, LIGHT, styled
from d3d.report.wording import join_names
from d3d.study import records
from d3d.study.experiments import EXPERIMENTS, field_of
from d3d.study.plan import TRAINED

# The headings of the parameters that say how a network was trained.
SECTIONS = ("network", "training", "distillation")

COLUMNS = {
    "endpoint": "endpoint", "channels": "channels", "size": "frames × height × width", "parameters": "parameters",
}  # fmt: skip


@styled
def draw(stages: pd.DataFrame, *, clip: str, named: Collection[str] = ()) -> Figure:
    """Draws the stages from the clip (top, shallow) to the logits (bottom, deep).

    A box is as wide as its output is high, and as dark as it has channels.

    Args:
        stages: columns endpoint, channels, frames, height, width, in order.
        clip: the size of a clip, in words.
        named: endpoints that hypotheses name; their names are bold.
    """
    rows = len(stages) + 2
    figure, axis = plt.subplots(figsize=(4.8, 0.3 * rows + 0.2), layout="constrained")
    largest, most = stages["height"].max(), stages["channels"].max()
    axis.text(0, rows - 1, f"clip: {clip}", ha="center", va="center", fontsize=9)
    for y, stage in zip(range(rows - 2, 0, -1), stages.itertuples(), strict=True):
        half = 0.25 + 0.75 * stage.height / largest
        is_pool = stage.endpoint.startswith("MaxPool")
        shade = 0.95 - 0.6 * stage.channels / most
        axis.barh(y, 2 * half, 0.72, left=-half, color="white" if is_pool else str(shade), edgecolor=LIGHT, lw=0.8)
        weight = "bold" if stage.endpoint in named else "normal"
        axis.text(-1.1, y, stage.endpoint, ha="right", va="center", fontsize=8, color=DARK, fontweight=weight)
        size = f"{stage.channels} × {stage.frames} × {stage.height} × {stage.width}"
        axis.text(1.1, y, size, ha="left", va="center", fontsize=8, color=DARK)
    axis.text(0, 0, "average over positions and frames, then one logit per class", ha="center", va="center", fontsize=8)
    axis.annotate("", (-2.95, 0.6), (-2.95, rows - 1.6), arrowprops={"arrowstyle": "->", "color": DARK})
    axis.text(-3.05, rows / 2, "shallow → deep", rotation=270, ha="right", va="center", fontsize=8, color=DARK)
    axis.set(xlim=(-3.3, 2.7), ylim=(-0.6, rows - 0.4))
    axis.set_axis_off()
    return figure


def table(stages: pd.DataFrame) -> pd.DataFrame:
    """Tabulates the stages, one row each: channels, size of the output, number of parameters."""
    size = stages[["frames", "height", "width"]].astype(str).agg(" × ".join, axis=1)
    counts = stages["parameters"].map("{:,}".format)
    return stages.assign(size=size, parameters=counts)[list(COLUMNS)].rename(columns=COLUMNS)


def hyperparameters(results: str | Path, arms: Sequence[str]) -> pd.DataFrame:
    """Tabulates the parameters with which networks were trained, from the records of the first seed.

    Args:
        results: folder or archive of the records.
        arms: the networks; those without a record are left out.

    Returns:
        One row per parameter that says how a network was trained: parameter, value, and meaning. A value that not all
        of the networks share is followed by those that have it.
    """
    params: dict[str, dict[str, Any]] = {}
    for experiment in TRAINED:
        recorded = {record.arm for record in records.read_all(results, [experiment])}
        for record in records.of_first_seed(results, experiment, [arm for arm in arms if arm in recorded]):
            params[record.arm] = record.params
    rows = []
    for name in dict.fromkeys(name for heading in SECTIONS for name in EXPERIMENTS["distill"].sections[heading]):
        having: dict[str, list[str]] = {}
        for arm in arms:
            if arm in params and (value := params[arm].get(name)) not in (None, ""):
                having.setdefault(_value_text(value), []).append(label(arm))
        texts = [
            value if len(names) == len(params) else f"{value} ({join_names(names)})" for value, names in having.items()
        ]
        if texts:
            rows.append((name, "; ".join(texts), field_of("distill", name).metadata["help"].replace(" | ", ", ")))
    return pd.DataFrame(rows, columns=["parameter", "value", "meaning"])


def _value_text(value: Any) -> str:
    """A value in print; of a checkpoint its name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return Path(text).stem if text.endswith(".safetensors") else text
