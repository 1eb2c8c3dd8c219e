"""Where distillation helps, and why: the parts of D3D's gain in every cell of a study, and over all cells.

cells = read_cells("results/sprites.jsonl", "results/sprites-cells.jsonl")
parts = decomposition(cells, "pooled/top1")
draw(parts, over_cells(parts), xlabel="top-1")
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d3d.report import effects
from d3d.report.claims import Condition
from d3d.report.labels import colour, label, marker
from d3d.report.ledger import Finding, measure
from d3d.report.plots import DARK, draw_row, grid, mark_no_data, styled
from d3d.study import records
from d3d.study.archive import read_curves
from d3d.study.arms import ARMS, Arm

# The last three add up to the first, seed by seed.
PARTS = {
    "whole gain": "d3d - rgb_longer",
    "motion": "d3d - flow_shuffled",
    "spread": "flow_shuffled - class_mean",
    "soft labels": "class_mean - rgb_longer",
}
PART_TITLES = {
    "whole gain": "D3D − RGB-longer:\nthe whole gain",
    "motion": "D3D − flow shuffled:\nthis clip's motion",
    "spread": "flow shuffled − class mean:\nthe teacher's spread",
    "soft labels": "class mean − RGB-longer:\nsoft labels",
}


# The cells of the second study, by the names of their profiles.
ANCHOR = "sprites"
CELLS = {
    ANCHOR: "anchor",
    "sprites-amplitude0.5": "smaller motion",
    "sprites-amplitude1": "larger motion",
    "sprites-clips1000": "1,000 clips",
    "sprites-clips16000": "16,000 clips",
    "sprites-rho0.5": "appearance tells less",
    "sprites-rho0.95": "appearance tells more",
    "sprites-rolled": "clips shifted anew",
}
# The arm whose colour and marker a part has: the one with what the other lacks. The whole gain has none of its own.
PART_ARMS = {"whole gain": "", "motion": "d3d", "spread": "flow_shuffled", "soft labels": "class_mean"}


def read_cells(anchor: str | Path, others: str | Path) -> dict[str, pd.DataFrame]:
    """Reads the cells of the second study.

    Args:
        anchor: archive of the anchor.
        others: archive of the other cells, named after their profiles.

    Returns:
        Tables of `records.load` by the label of the cell, in the order of CELLS; cells without records are left out.
    """
    tables = {ANCHOR: records.load(anchor)} | records.load_cells(others)
    return {title: tables[name] for name, title in CELLS.items() if len(tables.get(name, ()))}


def teachers(anchor: str | Path, others: str | Path) -> pd.DataFrame:
    """Tabulates how well the flow stream knows its training clips and others, as means over seeds.

    Args:
        anchor, others: as `read_cells` takes them.

    Returns:
        One row per cell that was run: its label, flow's top-1 on the training clips in its last epoch, and flow's and
        RGB's on iid clips.
    """
    recorded = {ANCHOR: ("", records.read_all(anchor))}
    recorded |= {cell: (cell, cell_records) for cell, cell_records in records.read_cells(others).items()}
    rows = []
    for name, title in CELLS.items():
        cell, cell_records = recorded.get(name, ("", []))
        # Probes and attribution have records of the same arms.
        streams = [r for r in cell_records if r.experiment == "train" and r.arm in ("flow", "rgb")]
        top1 = {arm: [r.metrics["iid/top1"] for r in streams if r.arm == arm] for arm in ("flow", "rgb")}
        if top1["flow"]:
            archive_of_cell = others if cell else anchor
            curves = [read_curves(archive_of_cell, r, cell=cell) for r in streams if r.arm == "flow"]
            trained = [history[-1]["top1"] for history in curves if history]
            values = (trained, top1["flow"], top1["rgb"])
            rows.append((title, *(sum(x) / len(x) if x else float("nan") for x in values)))
    return pd.DataFrame(rows, columns=["cell", "flow, training clips", "flow, iid", "RGB, iid"])


def decomposition(cells: Mapping[str, pd.DataFrame], metric: str) -> pd.DataFrame:
    """Measures the parts of D3D's gain in every cell.

    Args:
        cells: tables of `records.load`, by the label of the cell.
        metric: such as `pooled/top1`.

    Returns:
        Columns part, cell, values (one per seed), mean, low, high, n; cells that lack an arm are left out.
    """
    rows = []
    for part, contrast in PARTS.items():
        for cell, table in cells.items():
            finding = measure(table, Condition(contrast, metric))
            if finding.interval is not None:
                rows.append({"part": part, "cell": cell, "values": finding.values, **finding.interval._asdict()})
    return pd.DataFrame(rows, columns=["part", "cell", "values", "mean", "low", "high", "n"])


def over_cells(parts: pd.DataFrame) -> dict[str, effects.Combined]:
    """Combines each part of a `decomposition` over its cells; raises as `effects.combine` does."""
    return {
        str(part): effects.combine(dict(zip(rows["cell"], rows["values"], strict=True)))
        for part, rows in parts.groupby("part", sort=False)
    }


def partners(table: pd.DataFrame) -> dict[str, str]:
    """Finds the recorded forms of D3D that have a partner.

    Args:
        table: as `records.load` gives it.

    Returns:
        Arm to its partner, which learns the same outputs of the same teacher for other clips of the class, and differs
        in nothing else.
    """
    recorded = [arm for arm in ARMS.values() if arm.name in set(table["arm"])]
    own = [arm for arm in recorded if arm.outputs == "clip" and arm.teacher and ARMS[arm.teacher].stream == "flow"]
    shuffled = {_recipe(arm): arm.name for arm in recorded if arm.outputs == "shuffled"}
    return {arm.name: shuffled[_recipe(arm)] for arm in own if _recipe(arm) in shuffled}


def _recipe(arm: Arm) -> tuple:
    """What a student and its partner have in common."""
    return arm.teacher, arm.start, tuple(sorted(arm.overrides.items()))


def motion_parts(table: pd.DataFrame, metric: str) -> list[tuple[str, Finding]]:
    """Measures every recorded form of D3D minus its partner, labelled as `comparisons.difference_table` takes it."""
    return [
        (label(arm), measure(table, Condition(f"{arm} - {partner}", metric)))
        for arm, partner in partners(table).items()
    ]


def look_of(part: str) -> tuple[Any, str]:
    """Colour and marker of a part."""
    arm = PART_ARMS[part]
    return (colour(arm), marker(arm)) if arm else (DARK, "o")


def _mark_zero(axis: plt.Axes, margin: float) -> None:
    """Draws the line of no difference, and the band in which one is practically zero."""
    axis.axvspan(-margin, margin, color="0.92", zorder=-2)
    axis.axvline(0, color="0.6", lw=0.8, zorder=-1)


@styled
def draw_parts(table: pd.DataFrame, titles: Mapping[str, str], *, margin: float = 0.01) -> Figure:
    """Draws the parts of D3D's gain in one cell, a panel per metric: one dot per seed, mean and 95 % interval.

    Args:
        table: as `records.load` gives it.
        titles: metric to the title of its panel.
        margin: half the width of the grey band, in which a difference is practically zero.
    """
    figure, axes = grid(len(titles), columns=1, height=0.42 * len(PARTS) + 0.9, sharey=True)
    for axis, (metric, title) in zip(axes.flat, titles.items(), strict=True):
        rows = {row.part: row for row in decomposition({"": table}, metric).itertuples()}
        _mark_zero(axis, margin)
        for y, part in enumerate(reversed(PARTS)):
            if part in rows:
                draw_row(axis, y, rows[part].values, rows[part], *look_of(part))
                text = f"{rows[part].mean:+.3f}".replace("-", "−")
                axis.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), fontsize=8, va="center")
        if not rows:
            mark_no_data(axis)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", color="0.94", zorder=-3)
    axes[0, 0].set_yticks(range(len(PARTS)), [PART_TITLES[part] for part in reversed(PARTS)], fontsize=9)
    axes[0, 0].set_ylim(-0.6, len(PARTS) - 0.4)
    return figure


@styled
def draw(parts: pd.DataFrame, combined: Mapping[str, effects.Combined], *, xlabel: str, margin: float = 0.01) -> Figure:
    """Draws a panel per part and a row per cell, one dot per seed with mean and interval, and the mean over cells.

    Args:
        parts: as `decomposition` gives them.
        combined: as `over_cells` gives it; the thin line is where another such cell would lie.
        xlabel: what is compared.
        margin: half the width of the grey band, in which a difference is practically zero.
    """
    cells = list(dict.fromkeys(parts["cell"]))
    figure, axes = plt.subplots(
        1,
        len(PARTS),
        figsize=(2.6 * len(PARTS) + 1, 0.34 * (len(cells) + 1) + 1.3),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axis, part in zip(axes, PARTS, strict=True):
        rows = {row.cell: row for row in parts[parts["part"] == part].itertuples()}
        _mark_zero(axis, margin)
        for y, cell in enumerate(reversed(cells), 1):
            if cell in rows:
                draw_row(axis, y, rows[cell].values, rows[cell], *look_of(part))
        if part in combined:
            mean = combined[part]
            axis.plot([mean.next_low, mean.next_high], [0, 0], color="black", lw=0.8)
            axis.plot([mean.low, mean.high], [0, 0], color="black", lw=3, solid_capstyle="butt")
            axis.plot(mean.mean, 0, "D", color="black", ms=6)
        if not rows:
            mark_no_data(axis)
        axis.set_title(PART_TITLES[part], fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.grid(axis="x", color="0.92", zorder=-3)
    axes[0].set_yticks(range(len(cells) + 1), ["mean over cells", *reversed(cells)])
    axes[0].set_ylim(-0.6, len(cells) + 0.6)
    figure.supxlabel(xlabel, fontsize=10)
    return figure
