"""The figures of the book that are drawn from tables; every figure over seeds shows every seed."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d3d.report.labels import GROUP_LABELS, NEEDS_DATA, colour, label, marker
from d3d.report.stats import interval

STYLE = Path(__file__).with_name("book.mplstyle")
# Inches: a page of the book, and what a phone shows without scrolling.
PAGE_WIDTH, PHONE_WIDTH = 7.2, 4.4
# Up to this number of panels with a row per network stand below one another.
STACKED = 3
# What is no network is grey: each colour belongs to a network (d3d/study/arms.py).
DARK, LIGHT = "0.25", "0.65"


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorates a function to draw in the book's style and to close its figure in pyplot; the caller displays it."""

    @wraps(draw)
    def draw_styled(*args, **kwargs) -> Figure:
        with plt.style.context(STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return draw_styled


@styled
def region_errors(table: pd.DataFrame, *, arms: Mapping[str, str], groups: Mapping[str, Mapping[str, str]]) -> Figure:
    """Draws end-point error by region of the frame as bars, one panel per group of metrics.

    Args:
        table: as `records.load` gives it; each bar is a mean over seeds.
        arms: arm to label.
        groups: title of a panel to its metrics, each with its label.
    """
    widths = [len(metrics) for metrics in groups.values()]
    figure, axes = plt.subplots(
        1, len(groups), figsize=(1.1 * sum(widths) + 1, 3), sharey=True, squeeze=False, width_ratios=widths
    )
    shades = sns.color_palette("Greys_r", len(arms) + 1)
    for axis, (title, metrics) in zip(axes[0], groups.items(), strict=True):
        for k, arm in enumerate(arms):
            rows = table[table["arm"] == arm].groupby("metric")["value"].mean().reindex(list(metrics))
            x = np.arange(len(metrics)) + (k - (len(arms) - 1) / 2) * 0.8 / len(arms)
            axis.bar(x, rows, 0.8 / len(arms), color=shades[k], label=arms[arm])
        axis.set_xticks(range(len(metrics)), list(metrics.values()))
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y")
    axes[0, 0].set_ylabel("end-point error (px)")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure


@styled
def chance(table: pd.DataFrame, *, rows: Mapping[tuple[str, str], str], band: float = 0.02) -> Figure:
    """Draws two-way accuracy against chance (one half): one dot per seed.

    Args:
        table: as `records.load` gives it.
        rows: (arm, metric) to the label of its row, from the top.
        band: distance from one half that still counts as chance.
    """
    figure, axis = plt.subplots(figsize=(8, 0.36 * len(rows) + 1))
    axis.axvspan(0.5 - band, 0.5 + band, color="0.9", zorder=0)
    axis.axvline(0.5, color="0.5", ls="--", lw=1, zorder=0)
    for y, (arm, metric) in zip(range(len(rows))[::-1], rows, strict=True):
        values = table.loc[(table["arm"] == arm) & (table["metric"] == metric), "value"].to_numpy()
        axis.scatter(values, np.full(len(values), y), color=DARK, s=22, zorder=3, edgecolor="white", lw=0.5)
        axis.plot([values.mean()] * 2, [y - 0.3, y + 0.3], color=DARK, lw=2)
    axis.set_yticks(range(len(rows)), list(rows.values())[::-1])
    axis.set(xlabel="two-way accuracy between the classes of a pair", xlim=(0.38, 1.02))
    axis.grid(axis="x")
    return figure


@styled
def accuracy(
    table: pd.DataFrame, *, arms: Sequence[str], classes: int, splits: Sequence[str] = ("iid", "decorrelated")
) -> Figure:
    """Draws top-1 of each arm: one dot per seed, mean and 95 % interval, chance dashed; one panel per split and group.

    Args:
        table: as `records.load` gives it.
        arms: the rows, from the top.
        classes: number of classes, which sets chance.
        splits: the test splits.
    """
    titles = {f"{split}/{group}top1": f"{split}: {GROUP_LABELS[group]}" for split in splits for group in GROUP_LABELS}
    return _panels(table, arms, titles, 1 / classes, "chance")


@styled
def metrics(
    table: pd.DataFrame, *, arms: Sequence[str], titles: Mapping[str, str], reference: str = "", classes: int = 0
) -> Figure:
    """Draws metrics of arms, one panel per metric: one dot per seed, mean and 95 % interval.

    Args:
        table: as `records.load` gives it.
        arms: the rows, from the top.
        titles: metric to title.
        reference: metric whose mean over all arms and seeds is a dashed line in every panel; empty for none.
        classes: number of classes, for panels of top-1 with chance dashed; 0 for other metrics.
    """
    if classes:
        return _panels(table, arms, titles, 1 / classes, "chance")
    level = table.loc[table["metric"] == reference, "value"].mean() if reference else None
    return _panels(table, arms, titles, level, "")


def _panels(
    table: pd.DataFrame, arms: Sequence[str], titles: Mapping[str, str], level: float | None, name: str
) -> Figure:
    columns = 1 if len(titles) <= STACKED else 2
    figure, axes = grid(len(titles), columns=columns, height=0.27 * len(arms) + 0.75, sharey=True)
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
    """Makes a figure as wide as a page of the book, or with one column as wide as a phone.

    Args:
        panels: number of panels.
        columns: panels per row.
        height: of a panel, in inches.
        extra: height for legends and tick labels, in inches.
        sharey: as in `plt.subplots`.

    Returns:
        The figure and its axes (rows, columns); those beyond `panels` are off.
    """
    rows = -(-panels // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(PHONE_WIDTH if columns == 1 else PAGE_WIDTH, height * rows + extra),
        sharey=sharey,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[panels:]:
        axis.set_axis_off()
    return figure, axes


def mark_no_data(axis: plt.Axes) -> None:
    """Writes into an empty panel that it needs data."""
    axis.text(0.5, 0.5, NEEDS_DATA, transform=axis.transAxes, ha="center", va="center", color="0.5")


def _dots(axis: plt.Axes, rows: pd.DataFrame, arms: Sequence[str]) -> None:
    """Draws one row per arm, from the top, with the mean in print beside it."""
    for position, arm in enumerate(arms):
        values = rows.loc[rows["arm"] == arm, "value"].to_numpy()
        y = len(arms) - 1 - position
        if len(values):
            summary = interval(values)
            draw_row(axis, y, values, summary, colour(arm), marker(arm))
            axis.annotate(f"{summary.mean:.3f}", (1.01, y), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    if not rows["arm"].isin(arms).any():
        mark_no_data(axis)
    axis.set_yticks(range(len(arms)), [label(arm) for arm in reversed(arms)])
    axis.set_ylim(-0.6, len(arms) - 0.4)
    axis.grid(axis="x")


def draw_row(axis: plt.Axes, y: float, values: Sequence[float], summary: Any, ink: Any, shape: str = "o") -> None:
    """Draws one row: every seed as a dot of some shape, the mean as a stroke, its interval (`summary`) as a band."""
    axis.plot([summary.low, summary.high], [y, y], color=ink, lw=5, alpha=0.3, solid_capstyle="butt")
    axis.plot([summary.mean] * 2, [y - 0.3, y + 0.3], color=ink, lw=2)
    axis.scatter(values, np.full(len(values), y), color=[ink], s=22, marker=shape, zorder=3, edgecolor="white", lw=0.5)


@styled
def training_curves(histories: Mapping[tuple[str, int], pd.DataFrame]) -> Figure:
    """Draws training loss and accuracy over epochs, one line per run.

    Args:
        histories: (arm, seed) to a table with the columns epoch, cross_entropy, top1.
    """
    figure, axes = grid(2, columns=2, height=2.9)
    in_legend = set()
    for (arm, _), rows in histories.items():
        for axis, name in zip(axes[0], ("cross_entropy", "top1"), strict=True):
            axis.plot(
                rows["epoch"],
                rows[name],
                color=colour(arm),
                alpha=0.8,
                lw=1,
                label=None if arm in in_legend else label(arm),
            )
        in_legend.add(arm)
    axes[0, 0].set(xlabel="epoch", ylabel="cross-entropy (nats)", title="cross-entropy, training clips")
    axes[0, 1].set(xlabel="epoch", ylabel="top-1", title="top-1, training clips", ylim=(0, 1))
    for axis in axes[0] if not histories else ():
        mark_no_data(axis)
    if histories:
        axes[0, 1].legend()
    return figure


@styled
def differences(table: pd.DataFrame) -> Figure:
    """Draws a forest plot of contrasts, one panel per unit: one dot per seed, mean and interval.

    Args:
        table: columns label, arm (the network that gives a row its colour and marker), unit, values (one per seed),
            mean, low, high, bound, and side: 1 where a claim requires more than the bound (dotted), -1 for less, 0 for
            no bound. The required side is green.
    """
    units = list(dict.fromkeys(table["unit"])) if len(table) else [""]
    sizes = [max(1, (table["unit"] == name).sum()) if len(table) else 1 for name in units]
    figure, axes = plt.subplots(
        len(units), 1, figsize=(7.2, 0.46 * sum(sizes) + 0.75 * len(units)), squeeze=False,
        height_ratios=[n + 0.6 for n in sizes], layout="constrained",
    )  # fmt: skip
    for axis, name in zip(axes[:, 0], units, strict=True):
        rows = table[table["unit"] == name] if len(table) else table
        bounds = []
        for y, row in zip(range(len(rows))[::-1], rows.itertuples(), strict=True):
            draw_row(axis, y, row.values, row, colour(row.arm), marker(row.arm))
            if row.side:
                axis.plot([row.bound] * 2, [y - 0.42, y + 0.42], color="black", lw=1.2, ls=":")
                bounds.append((y, row.bound, row.side))
        if rows.empty:
            mark_no_data(axis)
        axis.axvline(0, color="0.6", lw=0.8, zorder=0)
        axis.set_yticks(range(len(rows)), list(rows["label"])[::-1] if len(rows) else [], fontsize=8)
        axis.set_ylim(-0.6, len(rows) - 0.4)
        left, right = axis.get_xlim()
        for y, bound, side in bounds:
            beyond = (bound, right) if side > 0 else (left, bound)
            axis.fill_betweenx([y - 0.42, y + 0.42], *beyond, color="#dcebd8", zorder=-1, lw=0)
        axis.set(xlim=(left, right), xlabel=f"{name}; green: condition holds" if bounds else name)
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.grid(axis="x")
    return figure


@styled
def lambdas(
    table: pd.DataFrame, *, titles: Mapping[str, str], chosen: float, references: Mapping[str, float]
) -> Figure:
    """Draws metrics over the weight lambda on a log axis, one panel per metric.

    A dot is a run. Thin lines join the runs of a seed; the thick line is the mean of the seeds that every lambda has.

    Args:
        table: columns lambda_, seed, metric, value.
        titles: metric to title.
        chosen: the weight of the study's D3D, shaded.
        references: `<metric> <arm>`, as in `iid/top1 two_stream`, to a level that is drawn dashed.
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
            reference_metric, arm = key.split()
            if reference_metric == metric:
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
            mark_no_data(axis)
        axis.set(xscale="log", xlabel="λ", title=title)
        axis.set_xticks(wide.index, [f"{value:g}" for value in wide.index])
        axis.minorticks_off()
        axis.grid(axis="y")
    axes[0, 0].set_ylabel("top-1")
    return figure


@styled
def families(tables: Mapping[str, pd.DataFrame], *, classes: Sequence[str], names: Sequence[str]) -> Figure:
    """Draws heat maps of the proportion of clips with each appearance within each class, one panel per setting.

    Args:
        tables: title to a table of clips with the columns class and family.
        classes: the rows.
        names: the appearances, which are the columns.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(3.1 * len(tables) + 1.6, 4.4), sharey=True, squeeze=False)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        proportions = pd.crosstab(table["class"], table["family"], normalize="index").reindex(
            list(classes), columns=list(names)
        )
        sns.heatmap(
            proportions.fillna(0), ax=axis, vmin=0, vmax=1, cmap="mako_r", cbar=axis is axes[0, -1], linewidths=0.5
        )
        axis.set(title=title, xlabel="appearance of the target", ylabel="")
        axis.tick_params(axis="x", labelsize=8, rotation=60)
        axis.tick_params(length=0)
    figure.tight_layout()
    return figure


@styled
def cost(table: pd.DataFrame) -> Figure:
    """Draws milliseconds per clip as one bar per step, its parts stacked from the largest (columns step, part, ms)."""
    wide = table[table["ms"] > 0].pivot(index="step", columns="part", values="ms").fillna(0.0)
    wide = wide[wide.sum().sort_values(ascending=False).index].iloc[::-1]
    figure, axis = plt.subplots(figsize=(7.5, 2.4), layout="constrained")
    shades = sns.color_palette("Greys_r", wide.shape[1] + 1)[: wide.shape[1]]
    wide.plot.barh(stacked=True, ax=axis, width=0.6, color=shades, edgecolor="white")
    for row, total in enumerate(wide.sum(axis=1)):
        axis.text(total, row, f" {total:.2f} ms", va="center")
    axis.set(xlabel="milliseconds per clip", ylabel="", xlim=(0, 1.15 * wide.sum(axis=1).max()))
    axis.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


@styled
def scaling(table: pd.DataFrame) -> Figure:
    """Draws hours over GPUs on logarithmic axes, a line per `line` (columns line, colour, gpus, hours).

    The last line is the total, beside which perfect scaling is dashed.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    names = list(table["line"].unique())
    for name in names:
        rows = table[table["line"] == name]
        width = 2 if name == names[-1] else 1.2
        axis.plot(rows["gpus"], rows["hours"], marker=".", color=rows["colour"].iloc[0], lw=width, label=name)
    axis.plot(rows["gpus"], rows["hours"].iloc[0] * rows["gpus"].iloc[0] / rows["gpus"], "--", color=DARK, lw=1)
    axis.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="hours")
    axis.set_xticks(rows["gpus"], rows["gpus"])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:g}")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
