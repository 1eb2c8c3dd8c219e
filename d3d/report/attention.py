"""Figures of the chapter on attention: when decisions are made, and whether attribution maps can be trusted."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d3d.report.labels import colour, label, marker
from d3d.report.plots import DARK, LIGHT, grid, styled

METHODS = {
    "motion_gradients": "gradients from the still clip",
    "integrated_gradients": "gradients from the mean colour",
    "grad_cam": "Grad-CAM",
}
METHOD_LOOKS = {
    "motion_gradients": {"color": DARK, "marker": "o"},
    "integrated_gradients": {"color": DARK, "marker": "s", "ls": "--"},
    "grad_cam": {"color": LIGHT, "marker": "^"},
    "random": {"color": LIGHT, "ls": ":"},
}
# The stages from which on weights were randomised, from the classifier down.
STAGES = {
    "Conv2d_0c_1x1": "classifier",
    "Mixed_5b": "Mixed_5b",
    "Mixed_4b": "Mixed_4b",
    "Mixed_3b": "Mixed_3b",
    "Conv2d_1a_7x7": "everything",
}


@styled
def over_time(curves: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Draws how far the margin falls when each frame is hidden: a thin line per seed, a thick one for their mean.

    Args:
        curves: arm to the curves (T,) of its seeds.
    """
    figure, axes = grid(1, columns=1, height=3.0)
    axis = axes[0, 0]
    for arm, of_seeds in curves.items():
        frames = np.arange(1, len(of_seeds[0]) + 1)
        for curve in of_seeds if len(of_seeds) > 1 else ():
            axis.plot(frames, curve, color=colour(arm), lw=0.6, alpha=0.4)
        axis.plot(
            frames, np.mean(of_seeds, axis=0), color=colour(arm), lw=1.8, marker=marker(arm), ms=4, label=label(arm)
        )
    axis.axhline(0, color="0.6", lw=0.8, zorder=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="frame that is hidden", ylabel="fall of the margin\n(SDs of the logits)")
    axis.legend(frameon=False, fontsize=8, ncols=2)
    return figure


@styled
def trust(table: pd.DataFrame, arm: str, curves: Mapping[str, np.ndarray], removed: Sequence[float]) -> Figure:
    """Draws two checks of the maps of an arm.

    Above: how much its maps still resemble those of the same network with random weights, from the classifier alone to
    everything. Below: its margin while the pixels that a map calls important are taken away.

    Args:
        table: as `records.load` gives it.
        arm: whose maps are checked.
        curves: `random` and each method to its deletion curve (F,), averaged over seeds.
        removed: the fractions (F,) that were taken away.
    """
    figure, axes = grid(2, columns=1, height=3.0)
    upper, lower = axes[:, 0]
    own = table[table["arm"] == arm].groupby("metric")["value"].mean()
    for method, name in METHODS.items():
        kept = [own.get(f"randomised/{stage}/{method}", np.nan) for stage in STAGES]
        upper.plot(range(len(STAGES)), kept, ms=4, label=name, **METHOD_LOOKS[method])
    upper.set_xticks(range(len(STAGES)), list(STAGES.values()), rotation=30, ha="right")
    upper.axhline(0, color="0.6", lw=0.8, zorder=0)
    upper.set(ylim=(-0.3, 1.05), ylabel="rank correlation with its own maps", title="weights made random, from … on")
    for method, curve in curves.items():
        lower.plot(removed, curve, ms=4, label=METHODS.get(method, "random pixels"), **METHOD_LOOKS[method])
    lower.set(
        xlabel="fraction of the pixels taken away", ylabel="margin (SDs of the logits)", title="most important first"
    )
    lower.legend(frameon=False, fontsize=8)
    return figure
