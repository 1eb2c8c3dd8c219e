"""Figures over the endpoints of the networks, from shallow to deep; every figure shows every seed."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from d3d.report.labels import colour, endpoints_of, label, marker
from d3d.report.plots import grid, mark_no_data, styled


@styled
def score_lines(
    table: pd.DataFrame,
    *,
    arms: Sequence[str],
    titles: Mapping[str, str],
    columns: int = 1,
    tested: str = "",
    references: Mapping[str, str] | None = None,
) -> Figure:
    """Draws scores over endpoints by network, one panel per score: thin lines are seeds, thick lines their means.

    Args:
        table: as `records.load` gives it.
        arms: the networks.
        titles: score to title, such as `velocity/r2`.
        columns: panels per row.
        tested: the endpoint of a hypothesis, shaded.
        references: score to label; drawn dashed in every panel, as the mean over all networks.
    """
    names = endpoints_of(table)
    figure, axes = grid(len(titles), columns=columns, height=3.2 if len(titles) == 1 else 1.9, extra=1.5, sharey="row")
    legend: dict[str, Line2D] = {}
    for panel, (axis, (score, title)) in enumerate(zip(axes.flat, titles.items(), strict=False)):
        for arm in arms:
            wide = _wide(table[table["arm"] == arm], score, names)
            if wide.notna().any(axis=None):
                axis.plot(range(len(names)), wide, color=colour(arm), lw=0.7, alpha=0.4)
                style = {"color": colour(arm), "lw": 2, "marker": marker(arm), "markersize": 5}
                (legend[label(arm)],) = axis.plot(
                    range(len(names)), wide.mean(axis=1), markeredgecolor="white", markeredgewidth=0.4, **style
                )
        if not axis.lines:
            mark_no_data(axis)
        for reference, text in (references or {}).items() if axis.lines else ():
            level = _wide(table, reference, names).mean(axis=1)
            (legend[text],) = axis.plot(range(len(names)), level, color="0.3", lw=1.2, ls="--", zorder=0)
        _draw_endpoint_axis(axis, names, tested, last=panel >= len(titles) - columns)
        axis.set_title(title, fontsize=10)
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=4)
    return figure


@styled
def contrast_panels(
    panels: Mapping[str, pd.DataFrame], *, tested: str = "", limits: tuple[float, float] | None = None
) -> Figure:
    """Draws contrasts at every endpoint, one panel per contrast: one dot per seed, mean, interval, bound (dotted).

    Args:
        panels: title to a table with the columns endpoint, values (one per seed), mean, low, high, bound.
        tested: the endpoint of a hypothesis, drawn dark; the others are grey.
        limits: of the vertical axis; a seed beyond them is a triangle at the edge.
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
            for shape, beyond in {"^": values[values > high], "v": values[values < low]}.items():
                axis.scatter(
                    np.full(len(beyond), x), np.clip(beyond, low, high), color=ink, s=22, marker=shape, clip_on=False
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
            mark_no_data(axis)
        if limits:
            axis.set_ylim(limits)
        _draw_endpoint_axis(axis, names, tested, last=panel == len(panels) - 1)
        axis.set_title(title, fontsize=10)
    return figure


def _wide(table: pd.DataFrame, score: str, names: Sequence[str]) -> pd.DataFrame:
    """A score with one row per endpoint and one column per arm and seed."""
    rows = table[table["metric"].isin([f"{name}/{score}" for name in names])]
    endpoint = rows["metric"].str.removesuffix(f"/{score}")
    return (
        rows.assign(endpoint=endpoint).pivot(index="endpoint", columns=["arm", "seed"], values="value").reindex(names)
    )


def _draw_endpoint_axis(axis: plt.Axes, names: Sequence[str], tested: str, *, last: bool) -> None:
    """Sets the ticks, named in the last row of panels only, and shades the tested endpoint."""
    axis.set_xticks(
        range(len(names)), names if last else [], rotation=60, ha="right", rotation_mode="anchor", fontsize=8
    )
    axis.set_xlim(-0.5, max(0.5, len(names) - 0.5))
    axis.grid(axis="y")
    if tested in names:
        x = names.index(tested)
        axis.axvspan(x - 0.45, x + 0.45, color="0.93", zorder=-1)
        if last:
            axis.annotate("tested", (x, 0.01), xycoords=("data", "axes fraction"), ha="center", fontsize=7, color="0.4")
