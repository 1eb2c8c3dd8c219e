"""How the second study's training was chosen: the searches of its plans, on sprites and on JHMDB, and their rules.

    trials = read_trials(plan.SEARCHES)
    draw(trials, choose(trials))

A search varies one parameter, the one that its arms override. The data set of its runs says which plan they follow.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from d3d.report.labels import colour, label
from d3d.report.plots import grid, mark_no_data, styled
from d3d.report.stats import interval
from d3d.study import records
from d3d.study.arms import ARMS
from d3d.study.plan import TRAINED, main_student
from d3d.study.records import Record


class Search(NamedTuple):
    """What a search varies.

    Attributes:
        title: of its panel.
        experiment: whose networks it compares.
        parameter: which it varies.
    """

    title: str
    experiment: str
    parameter: str


class Settled(NamedTuple):
    """When doubling the epochs adds too little to val top-1.

    Attributes:
        gain: it adds less than this on average over seeds,
        limit: and its 90 % interval ends below this.
    """

    gain: float
    limit: float = float("inf")


SEARCHES = {
    "streams": Search("Epochs of the streams", "train", "epochs"),
    "rates": Search("Learning rate of the students", "distill", "learning_rate"),
    "epochs": Search("Epochs of the students", "distill", "epochs"),
    "lambdas": Search("Weight λ of the teacher", "distill", "lambda_"),
}
# By data set and search: the smallest value is chosen beyond which doubling adds too little. Elsewhere the best one is.
RULES = {
    "sprites": {"streams": Settled(0.005, 0.01), "epochs": Settled(0.005, 0.01)},  # book/plan_second.md
    "jhmdb": {"streams": Settled(0.01, 0.02), "epochs": Settled(0.01)},  # book/plan_jhmdb.md
}
# Candidates for the cell where flow beats RGB, in order: the first with this difference on val, or the largest.
CANDIDATES = ("sprites-candidate1", "sprites-candidate2", "sprites-candidate3")
FLOW_WINS_BY = 0.1
TRIAL_COLUMNS = ["dataset", "search", "arm", "value", "seed", "val top-1"]


def read_trials(study: str | Path) -> pd.DataFrame:
    """Reads the searches' runs.

    Args:
        study: archive or folder of the searches on one data set; it need not exist yet.

    Returns:
        One row per run: its data set, search, arm (the stream or the student), value of the parameter, seed and val
        top-1.
    """
    by_override = {(search.experiment, search.parameter): name for name, search in SEARCHES.items()}
    rows = []
    for record in records.read_all(study, TRAINED):
        # Streams that students start and learn from override nothing that is searched.
        if name := by_override.get((record.experiment, *ARMS[record.arm].overrides)):
            params = record.params
            arm = params["stream"] if record.experiment == "train" else main_student(params)
            value = params[SEARCHES[name].parameter]
            rows.append((params["dataset"], name, arm, value, record.seed, _val_top1(record)))
    return pd.DataFrame(rows, columns=TRIAL_COLUMNS).sort_values(TRIAL_COLUMNS[:5], ignore_index=True)


def _val_top1(record: Record) -> float:
    """Top-1 on the split called val, whose name begins with the data set's where clips are of video files."""
    return next(value for name, value in record.metrics.items() if f"/{name}".endswith("/val/top1"))


def choose(trials: pd.DataFrame) -> pd.DataFrame:
    """Applies the rules of the plan to the searches that are complete.

    Args:
        trials: as `read_trials` gives them, of one data set.

    Returns:
        One row per search, and per arm where each has its own value: search, arm (empty: all arms of the search),
        value, and note, what a reader should know of the choice.
    """
    rows = []
    for name in SEARCHES:
        wide = _wide(trials, name)
        arms = dict.fromkeys(wide.columns.get_level_values("arm"))
        if rule := _rule(trials, name):
            if not wide.isna().any(axis=None):
                rows.append((name, "", *_settled_value(trials, name, rule)))
            continue
        for arm in arms:
            if not wide[arm].isna().any(axis=None):
                # Equal means go to the smaller value, which comes first.
                value = wide[arm].mean().round(9).idxmax()
                is_end = value in (wide[arm].columns.min(), wide[arm].columns.max())
                rows.append((name, arm, value, "an end of the range that was tried" if is_end else ""))
    return pd.DataFrame(rows, columns=["search", "arm", "value", "note"])


def table(choices: pd.DataFrame) -> pd.DataFrame:
    """Puts what was chosen, as `choose` gives it, into words: columns chosen, network, value and note."""
    words = {
        "chosen": [SEARCHES[name].title for name in choices["search"]],
        "network": [label(arm) if arm else "all" for arm in choices["arm"]],
    }
    return pd.DataFrame(words | {name: list(choices[name]) for name in ("value", "note")})


def _rule(trials: pd.DataFrame, search: str) -> Settled | None:
    """The rule for the epochs of a search; None if there is none, or no run of the search."""
    datasets = trials.loc[trials["search"] == search, "dataset"].unique()
    return RULES[datasets.item()].get(search) if len(datasets) else None


def _wide(trials: pd.DataFrame, search: str) -> pd.DataFrame:
    """Val top-1 of a search: a row per seed, a column per arm and value; nan where a run is missing."""
    return trials[trials["search"] == search].pivot(index="seed", columns=["arm", "value"], values="val top-1")


def candidate_table(study: str | Path) -> pd.DataFrame:
    """Compares flow with RGB in every candidate for the cell where flow beats RGB.

    Returns:
        One row per candidate that was run: candidate, its seeds, flow − RGB in val top-1 as a mean over them, and
        whether it is chosen, once all candidates that decide it were run.
    """
    rows = []
    cells = records.read_cells(study)
    for cell in CANDIDATES:
        top1 = {(r.arm, r.seed): _val_top1(r) for r in cells.get(cell, ())}
        gains = [
            top1["flow", seed] - value for (arm, seed), value in top1.items() if arm == "rgb" and ("flow", seed) in top1
        ]
        if gains:
            rows.append({"candidate": cell, "seeds": len(gains), "flow − RGB": float(np.mean(gains))})
    table = pd.DataFrame(rows, columns=["candidate", "seeds", "flow − RGB"])
    wins = table["flow − RGB"] > FLOW_WINS_BY
    is_decided = wins.any() or len(table) == len(CANDIDATES)
    chosen = table.index[wins].min() if wins.any() else table["flow − RGB"].idxmax() if is_decided else None
    return table.assign(chosen=["yes" if i == chosen else "" for i in table.index])


def gains_of_doubling(trials: pd.DataFrame, search: str) -> pd.DataFrame:
    """Measures what doubling the epochs adds to val top-1.

    Returns:
        One row per arm and number of epochs whose double was tried: arm, epochs, mean, and low and high, its 90 %
        interval over seeds.
    """
    wide = _wide(trials, search)
    rows = [
        {"arm": arm, "epochs": epochs}
        | interval((wide[arm, 2 * epochs] - wide[arm, epochs]).dropna(), confidence=0.9)._asdict()
        for arm, epochs in wide.columns
        if (arm, 2 * epochs) in wide.columns
    ]
    return pd.DataFrame(rows, columns=["arm", "epochs", "mean", "low", "high", "n"])


def _settled_value(trials: pd.DataFrame, search: str, rule: Settled) -> tuple[float, str]:
    """The smallest number of epochs beyond which doubling adds too little to every arm, or the largest tried."""
    gains = gains_of_doubling(trials, search)
    too_little = (gains["mean"] < rule.gain) & (gains["high"] < rule.limit)
    for epochs, of_arms in too_little.groupby(gains["epochs"]):
        if of_arms.all():
            return epochs, ""
    return trials.loc[trials["search"] == search, "value"].max(), "not settled: doubling still helped, or may have"


@styled
def draw(trials: pd.DataFrame, choices: pd.DataFrame) -> Figure:
    """Draws val top-1 over what each search varies: thin lines are seeds, thick ones means, diamonds what was chosen.

    A mean is drawn only where no seed is missing.

    Args:
        trials: as `read_trials` gives them.
        choices: as `choose` gives them.
    """
    figure, axes = grid(len(SEARCHES), columns=2, height=2.7)
    for axis, (name, search) in zip(axes.flat, SEARCHES.items(), strict=True):
        rows = trials[trials["search"] == name]
        for arm, of_arm in rows.groupby("arm", sort=False):
            wide = of_arm.pivot(index="value", columns="seed", values="val top-1")
            axis.plot(wide.index, wide, color=colour(arm), lw=0.7, alpha=0.4, marker="o", ms=3, mew=0)
            # Where a run is missing, means over other seeds would be compared.
            means = wide.mean(axis=1, skipna=False)
            axis.plot(means.index, means, color=colour(arm), lw=2.2, label=label(arm))
            for value in choices.loc[(choices["search"] == name) & choices["arm"].isin(["", arm]), "value"]:
                axis.plot(value, means[value], "D", color=colour(arm), ms=7, mec="black", zorder=4)
        axis.set_title(search.title, fontsize=10)
        if rows.empty:
            mark_no_data(axis)
            axis.set(xticks=[], yticks=[])
            continue
        values = np.unique(rows["value"])
        axis.set_xscale("log")
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()
        axis.grid(axis="y", color="0.92")
        axis.legend(frameon=False, fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("top-1 on val")
    return figure
