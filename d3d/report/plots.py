"""Every figure of the book that is a function of a table; every figure over seeds shows every seed."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d3d.report.labels import GROUP_LABELS, colour, label
from d3d.report.stats import interval

_COLOURS = sns.color_palette("colorblind")
DARK = "0.25"
STYLE = {
    "figure.dpi": 120,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "d3d",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the book's style, and leaves showing to the caller: pyplot keeps no figure open."""

    @wraps(draw)
    def figure(*args, **kwargs) -> Figure:
        with plt.rc_context(STYLE):
            drawn = draw(*args, **kwargs)
        plt.close(drawn)
        return drawn

    return figure


@styled
def parts(table: pd.DataFrame, *, arms: Mapping[str, str], groups: Mapping[str, Mapping[str, str]]) -> Figure:
    """End-point error by parts of the frame: a panel a group of metrics, a bar an arm (`arms` maps it to its label).

    groups: panel to metric to label.
    """
    widths = [len(metrics) for metrics in groups.values()]
    figure, axes = plt.subplots(
        1, len(groups), figsize=(1.1 * sum(widths) + 1, 3), sharey=True, squeeze=False, width_ratios=widths
    )
    for axis, (title, metrics) in zip(axes[0], groups.items(), strict=True):
        for k, arm in enumerate(arms):
            rows = table[table["arm"] == arm].groupby("metric")["value"].mean().reindex(list(metrics))
            x = np.arange(len(metrics)) + (k - (len(arms) - 1) / 2) * 0.8 / len(arms)
            axis.bar(x, rows, 0.8 / len(arms), color=_COLOURS[k], label=arms[arm])
        axis.set_xticks(range(len(metrics)), list(metrics.values()))
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
    axes[0, 0].set_ylabel("end-point error (px)")
    axes[0, -1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure


@styled
def chance(table: pd.DataFrame, *, rows: Mapping[tuple[str, str], str], band: float = 0.02) -> Figure:
    """Two-way choices against chance, one half: a row an (arm, metric) with its label, a dot a seed.

    The band is what still counts as chance.
    """
    figure, axis = plt.subplots(figsize=(8, 0.36 * len(rows) + 1))
    axis.axvspan(0.5 - band, 0.5 + band, color="0.9", zorder=0)
    axis.axvline(0.5, color="0.5", ls="--", lw=1, zorder=0)
    for y, (arm, metric) in zip(range(len(rows))[::-1], rows, strict=True):
        values = table.loc[(table["arm"] == arm) & (table["metric"] == metric), "value"].to_numpy()
        axis.scatter(values, np.full(len(values), y), color=_COLOURS[0], s=22, zorder=3, edgecolor="white", lw=0.5)
        axis.plot([values.mean()] * 2, [y - 0.3, y + 0.3], color=_COLOURS[0], lw=2)
    axis.set_yticks(range(len(rows)), list(rows.values())[::-1])
    axis.set(xlabel="right choices between the two classes of a pair", xlim=(0.38, 1.02))
    axis.grid(axis="x", color="0.94")
    axis.set_axisbelow(True)
    return figure


@styled
def accuracy(
    table: pd.DataFrame, *, arms: Sequence[str], classes: int, splits: Sequence[str] = ("iid", "decorrelated")
) -> Figure:
    """Top-1 of each arm among so many classes: a dot per seed, mean and 95 % interval; a panel per split and class
    group, chance dashed."""
    titles = {f"{split}/{group}top1": f"{split}: {GROUP_LABELS[group]}" for split in splits for group in GROUP_LABELS}
    return _panels(table, arms, titles, 1 / classes, "chance")


@styled
def metrics(
    table: pd.DataFrame, *, arms: Sequence[str], titles: Mapping[str, str], reference: str = "", classes: int = 0
) -> Figure:
    """Any metrics of any arms: a panel a metric (`titles` maps metric to title), two abreast, a dot a seed.

    reference names a metric whose mean over everything is a dashed line in every panel; classes: how many there are,
    which draws the chance of top-1.
    """
    if classes:
        return _panels(table, arms, titles, 1 / classes, "chance")
    level = table.loc[table["metric"] == reference, "value"].mean() if reference else None
    return _panels(table, arms, titles, level, "")


def _panels(
    table: pd.DataFrame, arms: Sequence[str], titles: Mapping[str, str], level: float | None, name: str
) -> Figure:
    figure, axes = grid(len(titles), columns=min(2, len(titles)), height=0.27 * len(arms) + 0.75, sharey=True)
    for axis, (metric, title) in zip(axes.flat, titles.items(), strict=False):
        _dots(axis, table[table["metric"] == metric], arms)
        axis.set_title(title, fontsize=10)
        if level is not None:
            axis.axvline(level, color="0.4", ls="--", lw=1, zorder=0)
            axis.annotate(name, (level, len(arms) - 0.45), fontsize=7, color="0.4", ha="center", va="bottom")
            axis.set_title(title, fontsize=10, pad=10)
        if name == "chance":
            axis.set(xlim=(-0.02, 1.02), xlabel="top-1")
    return figure


def grid(
    panels: int, *, columns: int, height: float, extra: float = 0.0, sharey: bool | str = False
) -> tuple[Figure, np.ndarray]:
    """A figure as wide as a page of the book, and its axes (rows, columns) for as many panels, `height` inches each
    and `extra` for what stands around them all."""
    rows = -(-panels // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(7.2, height * rows + extra), sharey=sharey, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[panels:]:
        axis.set_axis_off()
    return figure, axes


def missing(axis: plt.Axes) -> None:
    """Says in a panel that there is nothing to draw in it."""
    axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center", color="0.5")


def _dots(axis: plt.Axes, rows: pd.DataFrame, arms: Sequence[str]) -> None:
    """A row an arm, from the top: every seed as a dot, the mean and its interval behind them."""
    for position, arm in enumerate(arms):
        values = rows.loc[rows["arm"] == arm, "value"].to_numpy()
        y = len(arms) - 1 - position
        if len(values):
            found = interval(values)
            _row(axis, y, values, found, colour(arm))
            axis.annotate(f"{found.mean:.3f}", (1.01, y), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    if not rows["arm"].isin(arms).any():
        missing(axis)
    axis.set_yticks(range(len(arms)), [label(arm) for arm in reversed(arms)])
    axis.set_ylim(-0.6, len(arms) - 0.4)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)


def _row(axis: plt.Axes, y: float, values: Sequence[float], found, ink) -> None:
    """Every seed of one row as a dot, the mean as a stroke, its interval as a band."""
    axis.plot([found.low, found.high], [y, y], color=ink, lw=5, alpha=0.3, solid_capstyle="butt")
    axis.plot([found.mean] * 2, [y - 0.3, y + 0.3], color=ink, lw=2)
    axis.scatter(values, np.full(len(values), y), color=[ink], s=16, zorder=3, edgecolor="white", lw=0.5)


@styled
def curves(histories: Mapping[tuple[str, int], pd.DataFrame]) -> Figure:
    """Training loss and accuracy over epochs, a line a run: (arm, seed) to its columns epoch, cross_entropy, top1."""
    figure, axes = grid(2, columns=2, height=2.9)
    named = set()
    for (arm, _), rows in histories.items():
        for axis, name in zip(axes[0], ("cross_entropy", "top1"), strict=True):
            axis.plot(
                rows["epoch"],
                rows[name],
                color=colour(arm),
                alpha=0.8,
                lw=1,
                label=None if arm in named else label(arm),
            )
        named.add(arm)
    axes[0, 0].set(xlabel="epoch", ylabel="cross-entropy (nats)", title="training clips")
    axes[0, 1].set(xlabel="epoch", ylabel="top-1", title="training clips", ylim=(0, 1))
    for axis in axes[0] if not histories else ():
        missing(axis)
    if histories:
        axes[0, 1].legend(frameon=False)
    return figure


@styled
def differences(table: pd.DataFrame) -> Figure:
    """A forest of contrasts, a panel a unit. Columns label, unit, values (one a seed), mean, low, high, bound and side:
    1 where a claim asks for more than the bound, -1 for less, 0 where it asks for nothing; the asked side is shaded.
    """
    units = list(dict.fromkeys(table["unit"])) if len(table) else [""]
    sizes = [max(1, (table["unit"] == name).sum()) if len(table) else 1 for name in units]
    figure, axes = plt.subplots(
        len(units), 1, figsize=(7.2, 0.46 * sum(sizes) + 0.75 * len(units)), squeeze=False,
        height_ratios=[n + 0.6 for n in sizes], layout="constrained",
    )  # fmt: skip
    for axis, name in zip(axes[:, 0], units, strict=True):
        rows = table[table["unit"] == name] if len(table) else table
        asked = []
        for y, row in zip(range(len(rows))[::-1], rows.itertuples(), strict=True):
            _row(axis, y, row.values, row, DARK)
            if row.side:
                axis.plot([row.bound] * 2, [y - 0.42, y + 0.42], color="black", lw=1.2, ls=":")
                asked.append((y, row.bound, row.side))
        if rows.empty:
            missing(axis)
        axis.axvline(0, color="0.6", lw=0.8, zorder=0)
        axis.set_yticks(range(len(rows)), list(rows["label"])[::-1] if len(rows) else [], fontsize=8)
        axis.set_ylim(-0.6, len(rows) - 0.4)
        left, right = axis.get_xlim()
        for y, bound, side in asked:
            beyond = (bound, right) if side > 0 else (left, bound)
            axis.fill_betweenx([y - 0.42, y + 0.42], *beyond, color="#dcebd8", zorder=-1, lw=0)
        axis.set(xlim=(left, right), xlabel=f"{name}; shaded: what is claimed" if asked else name)
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.grid(axis="x", color="0.92")
        axis.set_axisbelow(True)
    return figure


@styled
def lambdas(
    table: pd.DataFrame, *, titles: Mapping[str, str], chosen: float, references: Mapping[str, float]
) -> Figure:
    """Metrics over the weight lambda on a log axis, a panel a metric: a dot a seed, thin lines join a seed's, thick
    ones the means of the seeds that every lambda has. Columns lambda_, seed, metric, value.

    chosen: the weight of the study's D3D, marked. references: dashed levels, each by metric and arm as in
    `iid/top1 two_stream`.
    """
    figure, axes = grid(len(titles), columns=min(2, len(titles)), height=3.3, sharey=True)
    for axis, (metric, title) in zip(axes.flat, titles.items(), strict=True):
        wide = table[table["metric"] == metric].pivot(index="lambda_", columns="seed", values="value")
        for seed in wide:
            line = wide[seed].dropna()
            axis.plot(
                line.index, line, color=colour("d3d"), lw=0.7, alpha=0.5, marker="o", markersize=3.5, markeredgewidth=0
            )
        axis.plot(wide.index, wide.dropna(axis=1).mean(axis=1), color=colour("d3d"), lw=2.2)
        axis.axvline(chosen, color="0.85", lw=8, zorder=-1)
        for key, level in references.items():
            of, arm = key.split()
            if of == metric:
                axis.axhline(level, color=colour(arm), ls="--", lw=1.5)
                axis.annotate(
                    label(arm),
                    (1, level),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="bottom",
                    fontsize=8,
                    color=colour(arm),
                )
        if wide.empty:
            missing(axis)
        axis.set(xscale="log", xlabel="λ", title=title)
        axis.set_xticks(wide.index, [f"{value:g}" for value in wide.index])
        axis.minorticks_off()
        axis.grid(axis="y", color="0.92")
    axes[0, 0].set_ylabel("top-1")
    return figure


@styled
def families(tables: Mapping[str, pd.DataFrame], *, classes: Sequence[str], names: Sequence[str]) -> Figure:
    """Share of each appearance family (`names`) within each class, a panel per setting (`tables` maps its title to
    clips)."""
    figure, axes = plt.subplots(1, len(tables), figsize=(3.1 * len(tables) + 1.6, 4.4), sharey=True, squeeze=False)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        share = pd.crosstab(table["class"], table["family"], normalize="index").reindex(
            list(classes), columns=list(names)
        )
        sns.heatmap(share.fillna(0), ax=axis, vmin=0, vmax=1, cmap="mako_r", cbar=axis is axes[0, -1], linewidths=0.5)
        axis.set(title=title, xlabel="family of the target", ylabel="")
        axis.tick_params(axis="x", labelsize=8, rotation=60)
        axis.tick_params(length=0)
    figure.tight_layout()
    return figure


@styled
def cost(table: pd.DataFrame) -> Figure:
    """Milliseconds a clip by part of a step; columns step, part, ms. A bar a step, the largest part first."""
    wide = table[table["ms"] > 0].pivot(index="step", columns="part", values="ms").fillna(0.0)
    wide = wide[wide.sum().sort_values(ascending=False).index].iloc[::-1]
    figure, axis = plt.subplots(figsize=(7.5, 2.4), layout="constrained")
    wide.plot.barh(stacked=True, ax=axis, width=0.6, color=sns.color_palette("colorblind", wide.shape[1]))
    for row, total in enumerate(wide.sum(axis=1)):
        axis.text(total, row, f" {total:.2f} ms", va="center")
    axis.set(xlabel="milliseconds a clip", ylabel="", xlim=(0, 1.15 * wide.sum(axis=1).max()))
    axis.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
