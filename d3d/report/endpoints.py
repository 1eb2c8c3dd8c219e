"""Figures over the endpoints of the networks, from shallow to deep; every one shows every seed."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from d3d.report.labels import colour, endpoints_of, label, marker
from d3d.report.plots import grid, missing, styled


@styled
def scores(
    table: pd.DataFrame,
    *,
    arms: Sequence[str],
    titles: Mapping[str, str],
    columns: int = 1,
    tested: str = "",
    references: Mapping[str, str] | None = None,
) -> Figure:
    """Scores over endpoints, a panel a score (`titles` maps `velocity/r2` to its title): thin lines are seeds, thick
    ones their mean, by network. `tested` names the endpoint that a hypothesis is about.

    references: scores that are drawn dashed in every panel, the mean over all networks, each with its label.
    """
    names = endpoints_of(table)
    figure, axes = grid(len(titles), columns=columns, height=3.2 if len(titles) == 1 else 1.9, extra=1.5, sharey="row")
    shown: dict[str, Line2D] = {}
    for panel, (axis, (score, title)) in enumerate(zip(axes.flat, titles.items(), strict=False)):
        for arm in arms:
            wide = _wide(table[table["arm"] == arm], score, names)
            if wide.notna().any(axis=None):
                axis.plot(range(len(names)), wide, color=colour(arm), lw=0.7, alpha=0.4)
                style = {"color": colour(arm), "lw": 2, "marker": marker(arm), "markersize": 5}
                (shown[label(arm)],) = axis.plot(
                    range(len(names)), wide.mean(axis=1), markeredgecolor="white", markeredgewidth=0.4, **style
                )
        if not axis.lines:
            missing(axis)
        for reference, text in (references or {}).items() if axis.lines else ():
            level = _wide(table, reference, names).mean(axis=1)
            (shown[text],) = axis.plot(range(len(names)), level, color="0.3", lw=1.2, ls="--", zorder=0)
        _over_endpoints(axis, names, tested, last=panel >= len(titles) - columns)
        axis.set_title(title, fontsize=10)
    figure.legend(shown.values(), shown.keys(), frameon=False, loc="outside upper center", ncols=4)
    return figure


@styled
def contrasts(
    panels: Mapping[str, pd.DataFrame], *, tested: str = "", limits: tuple[float, float] | None = None
) -> Figure:
    """A contrast at every endpoint, a panel a contrast: a dot a seed, mean and interval, the bound dotted.

    Columns endpoint, values (one a seed), mean, low, high, bound. The tested endpoint is dark, the others are grey.
    limits: of the vertical axis; what lies beyond is a triangle at its edge.
    """
    figure, axes = grid(len(panels), columns=1, height=2.1, extra=0.9)
    for panel, (axis, (title, table)) in enumerate(zip(axes[:, 0], panels.items(), strict=True)):
        names = list(table["endpoint"]) if len(table) else []
        low, high = limits or (-np.inf, np.inf)
        for x, row in enumerate(table.itertuples()):
            ink = "black" if row.endpoint == tested else "0.55"
            axis.plot(
                [x, x], np.clip([row.low, row.high], low, high), color=ink, lw=7, alpha=0.3, solid_capstyle="butt"
            )
            if low <= row.mean <= high:
                axis.plot([x - 0.3, x + 0.3], [row.mean] * 2, color=ink, lw=2.5)
            values = np.asarray(row.values)
            for shape, part in {"^": values[values > high], "v": values[values < low]}.items():
                axis.scatter(
                    np.full(len(part), x), np.clip(part, low, high), color=ink, s=22, marker=shape, clip_on=False
                )
            inside = values[(values >= low) & (values <= high)]
            spread = np.linspace(-0.15, 0.15, len(inside)) if len(inside) > 1 else 0
            axis.scatter(
                x + spread + np.zeros(len(inside)), inside, color=ink, s=12, zorder=3, edgecolor="white", lw=0.4
            )
        if len(table):
            axis.plot(range(len(table)), table["bound"], color="0.25", ls=":", lw=1.2, zorder=0)
            axis.axhline(0, color="0.7", lw=0.8, zorder=0)
        else:
            missing(axis)
        if limits:
            axis.set_ylim(limits)
        _over_endpoints(axis, names, tested, last=panel == len(panels) - 1)
        axis.set_title(title, fontsize=10)
    return figure


def _wide(table: pd.DataFrame, score: str, names: Sequence[str]) -> pd.DataFrame:
    """A score with a row an endpoint and a column a network's seed."""
    rows = table[table["metric"].isin([f"{name}/{score}" for name in names])]
    endpoint = rows["metric"].str.removesuffix(f"/{score}")
    return (
        rows.assign(endpoint=endpoint).pivot(index="endpoint", columns=["arm", "seed"], values="value").reindex(names)
    )


def _over_endpoints(axis: plt.Axes, names: Sequence[str], tested: str, *, last: bool) -> None:
    axis.set_xticks(
        range(len(names)), names if last else [], rotation=60, ha="right", rotation_mode="anchor", fontsize=8
    )
    axis.set_xlim(-0.5, max(0.5, len(names) - 0.5))
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)
    if tested in names:
        at = names.index(tested)
        axis.axvspan(at - 0.45, at + 0.45, color="0.93", zorder=-1)
        if last:
            axis.annotate(
                "tested", (at, 0.01), xycoords=("data", "axes fraction"), ha="center", fontsize=7, color="0.4"
            )
