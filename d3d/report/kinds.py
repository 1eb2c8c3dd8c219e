"""Where D3D gains on JHMDB: by what a class needs, by the motion of the camera, and class by class.

clips = ClipScores("results/jhmdb-splits.jsonl", CELLS)
draw(gains(clips, over_splits(tables)))
class_table(clips)

Which classes need motion was written down before the reported runs (book/plan_jhmdb.md).
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d3d.report import effects
from d3d.report.claims import Condition
from d3d.report.clips import ClipScores, name_films
from d3d.report.labels import colour, contrast_label, number_text
from d3d.report.ledger import measure
from d3d.report.plots import DARK, draw_row, mark_no_data, styled
from d3d.report.stats import Interval, interval

TOP1 = "jhmdb/test/top1"
# Labels are positions in this list.
CLASSES = (
    *("brush_hair", "catch", "clap", "climb_stairs", "golf", "jump", "kick_ball", "pick", "pour", "pullup", "push"),
    *("run", "shoot_ball", "shoot_bow", "shoot_gun", "sit", "stand", "swing_baseball", "throw", "walk", "wave"),
)
MOTION, FRAME, OTHER = "motion decides", "one frame tells", "other classes"
KINDS = {
    MOTION: ("sit", "stand", "walk", "run", "catch", "throw", "climb_stairs", "jump"),
    FRAME: ("golf", "pullup", "shoot_bow", "brush_hair"),
}
KINDS[OTHER] = tuple(name for name in CLASSES if name not in {*KINDS[MOTION], *KINDS[FRAME]})
CAMERAS = {"camera still": "jhmdb/test/still/top1", "camera moves": "jhmdb/test/moving/top1"}
ALL, BETWEEN = "all clips", "motion − one frame"
KIND_COLOURS = {MOTION: colour("d3d"), FRAME: colour("rgb")}
# The first shows whether the kinds are what their names say; the others where D3D gains.
CONTRASTS = ("flow - rgb", "d3d - rgb_longer", "d3d - flow_shuffled")
COLUMNS = ["contrast", "group", "values", "mean", "low", "high", "n", "clips_low", "clips_high", "films"]

Splits = Sequence[tuple[np.ndarray, np.ndarray]]


def labels_of(names: Sequence[str]) -> list[int]:
    """Returns the labels of classes."""
    return [CLASSES.index(name) for name in names]


def gains(clips: ClipScores, table: pd.DataFrame) -> pd.DataFrame:
    """Measures CONTRASTS in top-1, over all clips, by kind of class and by motion of the camera.

    Args:
        clips: predictions of the three splits.
        table: metrics as means over the splits (`splits.over_splits`), which old records have by camera too.

    Returns:
        One row per contrast and group: values, one per seed; mean, low, high, n, over seeds; clips_low, clips_high,
        the interval of a bootstrap of seeds and films, nan where no predictions are published; and films, whether it
        draws films, or single clips since no film is recorded. Groups without records are left out.
    """
    rows = []
    for contrast in CONTRASTS:
        of_kinds = {kind: clips.differences(contrast, TOP1, classes=labels_of(KINDS[kind])) for kind in KINDS}
        by_group = {ALL: _recorded(clips, table, contrast, TOP1)}
        by_group |= {kind: _of_clips(splits) for kind, splits in of_kinds.items()}
        if of_kinds[MOTION] and of_kinds[FRAME]:
            by_group[BETWEEN] = _of_clips(of_kinds[MOTION], minus=of_kinds[FRAME])
        by_group |= {camera: _recorded(clips, table, contrast, metric) for camera, metric in CAMERAS.items()}
        for group, measured in by_group.items():
            if measured:
                values, over_clips, films = measured
                ends = (over_clips.low, over_clips.high) if over_clips else (np.nan, np.nan)
                rows.append((contrast, group, values, *interval(values), *ends, films))
    return pd.DataFrame(rows, columns=COLUMNS)


def _recorded(
    clips: ClipScores, table: pd.DataFrame, contrast: str, metric: str
) -> tuple[tuple[float, ...], Interval | None, bool] | None:
    """Values of a recorded metric by seed, their interval over clips, and whether that draws films; None: no record."""
    finding = measure(table, Condition(contrast, metric), over_clips=clips.interval)
    films = name_films(clips.differences(contrast, metric))
    return (finding.values, finding.over_clips, films) if finding.interval else None


def _of_clips(splits: Splits, minus: Splits = ()) -> tuple[tuple[float, ...], Interval, bool] | None:
    """As `_recorded`, from the differences of clips; of the mean over `splits` minus that over `minus`."""
    if not splits:
        return None
    values = _by_seed(splits) - (_by_seed(minus) if minus else 0)
    return tuple(values), effects.over_seeds_and_sources(splits, minus=minus), name_films([*splits, *minus])


def _by_seed(splits: Splits) -> np.ndarray:
    """The mean over the splits of each seed (S,)."""
    return np.mean([differences.mean(1) for differences, _ in splits], axis=0)


def class_table(clips: ClipScores) -> pd.DataFrame:
    """Tabulates CONTRASTS class by class, in the order of the kinds.

    Returns:
        One row per class that has records: the class, its kind, its test clips in all splits, their films (a dash where
        no film is recorded), and for each contrast the mean with its interval over seeds and films.
    """
    rows = []
    for kind, names in KINDS.items():
        for name in names:
            by_contrast = {c: clips.differences(c, TOP1, classes=labels_of([name])) for c in CONTRASTS}
            if splits := next((splits for splits in by_contrast.values() if splits), None):
                sources = np.concatenate([sources for _, sources in splits])
                films = len(set(sources)) if name_films(splits) else "—"
                row = {"class": name.replace("_", " "), "kind": kind, "clips": len(sources), "films": films}
                for contrast, splits in by_contrast.items():
                    over_films = effects.over_seeds_and_sources(splits) if splits else None
                    row[contrast_label(contrast)] = number_text(over_films, signed=True)
                rows.append(row)
    return pd.DataFrame(rows)


@styled
def draw(measured: pd.DataFrame) -> Figure:
    """Draws a panel per contrast and a row per group, narrow enough for a phone.

    A dot is a seed, a stroke the mean, a band the 95 % interval over seeds and a thin line that over seeds and films.

    Args:
        measured: as `gains` gives it.
    """
    groups = [ALL, MOTION, FRAME, BETWEEN, OTHER, *CAMERAS]
    figure, axes = plt.subplots(
        len(CONTRASTS), 1, figsize=(5, 0.27 * len(groups) * len(CONTRASTS) + 1.9), sharey=True, layout="constrained"
    )
    for axis, contrast in zip(axes, CONTRASTS, strict=True):
        rows = {row.group: row for row in measured[measured["contrast"] == contrast].itertuples()}
        axis.axvline(0, color="0.5", lw=0.8, zorder=0.8)
        for y, group in enumerate(reversed(groups)):
            if group in rows:
                row = rows[group]
                draw_row(axis, y, row.values, row, KIND_COLOURS.get(group, DARK))
                axis.plot([row.clips_low, row.clips_high], [y, y], color="black", lw=1, zorder=1)
                text = f"{row.mean:+.3f}".replace("-", "−")
                axis.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), fontsize=8, va="center")
        if not rows:
            mark_no_data(axis)
        axis.set_title(contrast_label(contrast), fontsize=10, loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.grid(axis="x", color="0.94")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(groups)), reversed(groups), fontsize=9)
    axes[0].set_ylim(-0.6, len(groups) - 0.4)
    drawn = "films" if len(measured) and measured["films"].all() else "clips (films not recorded)"
    axes[-1].set_xlabel(
        f"top-1; dots: seeds; band: 95 % over seeds;\nthin line: 95 % over seeds and {drawn}", fontsize=9
    )
    return figure
