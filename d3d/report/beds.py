"""What D3D's gain is made of wherever it was measured: JHMDB first, then every cell of sprites, in one figure.

beds = read_beds("results/jhmdb-splits.jsonl", SPLITS, "results/sprites.jsonl", "results/sprites-cells.jsonl")
draw(beds)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from d3d.report import regimes
from d3d.report.claims import Condition
from d3d.report.clips import ClipScores
from d3d.report.labels import contrast_label
from d3d.report.ledger import Finding, OverClips, measure
from d3d.report.plots import draw_row, styled
from d3d.report.regimes import PARTS, look_of
from d3d.report.splits import over_splits
from d3d.study import records

# What the parts are, in a few words, for a figure that is read without its text.
MEANINGS = {
    "whole gain": "by distillation",
    "motion": "what the teacher says of this clip",
    "spread": "that it varies within a class",
    "soft labels": "what it says of the class",
}


@dataclass(frozen=True)
class Bed:
    """One place where D3D's gain was measured.

    Attributes:
        name: its name in the figure.
        archive: where its records are.
        findings: the parts of the gain in top-1 that its records have, by their names in `regimes.PARTS`.
        margin: a difference smaller than this counts as zero.
    """

    name: str
    archive: Path
    findings: dict[str, Finding]
    margin: float

    @property
    def source(self) -> str:
        """The file of its records and the number of their seeds."""
        seeds = max(len(finding.values) for finding in self.findings.values())
        return f"{self.archive.name}, {seeds} seed{'s' if seeds > 1 else ''}"


def read_beds(jhmdb: str | Path, splits: Sequence[str], anchor: str | Path, others: str | Path) -> list[Bed]:
    """Reads the beds; those without records are left out.

    Args:
        jhmdb: archive of the official splits of JHMDB.
        splits: its cells, which are one bed together; the bed needs all of them.
        anchor: archive of the second study's anchor on sprites.
        others: archive of its other cells, named after their profiles.

    Returns:
        JHMDB first, then sprites in the order of `regimes.CELLS`.
    """
    of_splits = records.load_cells(jhmdb)
    beds = []
    if set(splits) <= set(of_splits):
        table = over_splits(of_splits[name] for name in splits)
        over_clips = ClipScores(jhmdb, splits).interval
        beds.append(_bed("JHMDB", jhmdb, table, "jhmdb/test/top1", 0.02, over_clips))
    for name, table in regimes.read_cells(anchor, others).items():
        archive = anchor if name == regimes.CELLS[regimes.ANCHOR] else others
        beds.append(_bed(f"sprites, {name}", archive, table, "iid/top1", 0.01))
    return [bed for bed in beds if bed.findings]


def _bed(
    name: str, archive: str | Path, table: pd.DataFrame, metric: str, margin: float, over_clips: OverClips | None = None
) -> Bed:
    measured = {part: measure(table, Condition(c, metric), over_clips=over_clips) for part, c in PARTS.items()}
    return Bed(name, Path(archive), {part: f for part, f in measured.items() if f.interval}, margin)


@styled
def draw(beds: Sequence[Bed]) -> Figure:
    """Draws a block per bed and a row per part, with the file of its records, narrow enough for a phone.

    A dot is a seed, a stroke the mean, a band the 95 % interval over seeds and, where films are drawn as well, a thin
    line the interval over both. Grey: practically zero.

    Args:
        beds: as `read_beds` gives them, at least one.
    """
    rows_per_bed = len(PARTS) + 1.3
    figure, axis = plt.subplots(figsize=(5, 0.2 * rows_per_bed * len(beds) + 1.7), layout="constrained")
    ticks = {}
    for k, bed in enumerate(beds):
        top = -k * rows_per_bed
        axis.annotate(bed.name, (0, top), xycoords=("figure fraction", "data"), fontsize=9, weight="bold", va="center")
        axis.annotate(
            bed.source, (1, top), xycoords=("figure fraction", "data"), fontsize=7.5, color="0.35", ha="right",
            va="center",
        )  # fmt: skip
        ends = top - 0.5, top - len(PARTS) - 0.45
        axis.fill_betweenx(ends, -bed.margin, bed.margin, color="0.92", lw=0, zorder=-2)
        axis.plot([0, 0], ends, color="0.5", lw=0.8, zorder=0.8)
        for row, part in enumerate(PARTS, 1):
            ticks[top - row] = part
            if part in bed.findings:
                _draw_part(axis, top - row, bed.findings[part], *look_of(part))
    axis.set_yticks(list(ticks), ticks.values(), fontsize=8.5)
    axis.set_ylim(-rows_per_bed * len(beds) + 0.8, 0.6)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.grid(axis="x", color="0.94")
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("top-1; dots: seeds; band: 95 % over seeds;\nthin line: 95 % over seeds and test clips", fontsize=9)
    handles = [
        Line2D([], [], color=ink, marker=shape, lw=4, label=f"{part}: {meaning} ({contrast_label(PARTS[part])})")
        for part, meaning in MEANINGS.items()
        for ink, shape in [look_of(part)]
    ]
    figure.legend(handles=handles, loc="outside upper left", fontsize=8, frameon=False, handlelength=1)
    return figure


def _draw_part(axis: plt.Axes, y: float, finding: Finding, ink: object, shape: str) -> None:
    draw_row(axis, y, finding.values, finding.interval, ink, shape)
    if over := finding.over_clips:
        axis.plot([over.low, over.high], [y, y], color="black", lw=1, zorder=1)
    text = f"{finding.interval.mean:+.3f}".replace("-", "−")
    axis.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), fontsize=8, va="center")
