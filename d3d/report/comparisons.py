"""What the chapters compare, as tables: contrasts seed by seed, ablations, curves, compute."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from d3d.report.labels import contrast_label, endpoints_of, label, metric_label, number_text, unit
from d3d.report.ledger import Condition, Finding, Verdict, measure, verdict_of
from d3d.report.stats import interval
from d3d.study import archive, records
from d3d.study.arms import ARMS, Arm
from d3d.study.plan import REGIME, SETTLED, TRAINED, TUNING

# Of the exploration beside the study (book/plan.md), whose later seeds confirm.
EXPLORING = range(5)
# The experiments that keep a GPU busy.
BUSY = ("train", "distill", "fuse", "probe")
# Where students are held against their controls beside iid: by class group, and under stress.
GROUPED = tuple(f"iid/{group}/top1" for group in ("motion", "appearance", "both"))
STRESSED = tuple(f"{split}/top1" for split in ("decorrelated", "frozen", "shuffled", "reversed"))
# What further training alone gives, and what any teacher does.
CONTROLS = ("rgb_longer", "rgb_teacher")
EXPLORED = ("rgb_longer - rgb", "d3d - rgb_longer", "d3d - rgb_teacher", "d3d - two_stream")
_SHARE = re.compile(r"(?P<part>.+) - (?P<share>[\d.]+) \* \((?P<whole>.+)\)")


def share(found: Iterable[Verdict], claim: str) -> Condition:
    """A claim's condition a - b - s * (c - b) above 0 as what it means: (a - b) / (c - b) above s.

    Raises KeyError where the claim has no such condition.
    """
    for finding in verdict_of(found, claim).findings:
        if parts := _SHARE.fullmatch(finding.condition.contrast):
            contrast = f"({parts['part']}) / ({parts['whole']})"
            return Condition(contrast, finding.condition.metric, above=float(parts["share"]))
    raise KeyError(f"claim {claim} asks for no share")


def rows(findings: Iterable[tuple[str, Finding]]) -> pd.DataFrame:
    """Findings with their labels as `plots.differences` takes them; those that were not measured are left out."""
    found = []
    for text, finding in findings:
        bound, side = finding.condition.asked
        if finding.interval is not None and np.isfinite(finding.interval.mean):
            kind = "ratio" if "/" in finding.condition.contrast else unit(finding.condition.metric)
            values = {"values": finding.values, **finding.interval._asdict()}
            found.append({"label": text, "unit": kind, **values, "bound": bound, "side": side})
    return pd.DataFrame(found)


def contrasts(found: Iterable[Verdict], claims: Sequence[str]) -> pd.DataFrame:
    """The measured conditions of some claims, as `plots.differences` takes them; a shared one comes once."""
    named: dict[tuple[str, str], tuple[str, Finding]] = {}
    for verdict in found:
        for finding in verdict.findings if verdict.claim.id in claims else ():
            c = finding.condition
            text, _ = titled(finding)
            named.setdefault((c.contrast, c.metric), (f"{verdict.claim.id}: {text}", finding))
    return rows(named.values())


def over_endpoints(table: pd.DataFrame, contrast: str, score: str, *, bound: float = 0.0) -> pd.DataFrame:
    """A contrast at every endpoint that has it, from shallow to deep, as `endpoints.contrasts` takes it."""
    found = {e: measure(table, Condition(contrast, f"{e}/{score}")) for e in endpoints_of(table)}
    return pd.DataFrame(
        {"endpoint": e, "values": f.values, **f.interval._asdict(), "bound": bound}
        for e, f in found.items()
        if f.interval is not None and np.isfinite(f.interval.mean)
    )


def versus(table: pd.DataFrame, arms: Iterable[str], metric: str, *, base: str) -> list[tuple[str, Finding]]:
    """Arms minus another in a metric, as `rows` takes them."""
    found = [measure(table, Condition(f"{arm} - {base}", metric)) for arm in arms]
    return [(contrast_label(finding.condition.contrast), finding) for finding in found]


def ablations(table: pd.DataFrame) -> list[str]:
    """The students of flow that the records hold and that differ from D3D in another thing than its weight lambda."""
    return [arm for arm in variants(table) if not _of_lambda(ARMS[arm])]


def variants(table: pd.DataFrame) -> list[str]:
    """The students of flow, other than D3D itself, that the records hold; those of another lambda last, by lambda."""
    held = set(table["arm"]) - {"d3d"}
    found = [a for a in ARMS.values() if a.name in held and a.teacher and ARMS[a.teacher].stream == "flow"]
    found.sort(key=lambda a: a.overrides["lambda_"] if _of_lambda(a) else 0.0)
    return [a.name for a in found]


def _of_lambda(arm: Arm) -> bool:
    """Whether an arm is D3D but for its weight lambda."""
    d3d = ARMS["d3d"]
    return set(arm.overrides) == {"lambda_"} and (arm.start, arm.teacher) == (d3d.start, d3d.teacher)


def lambdas(results: str | Path, metrics: Sequence[str]) -> pd.DataFrame:
    """D3D's metrics by its weight lambda, as the records say it: arm, lambda_, seed, metric, value."""
    asked = {"d3d", *(arm.name for arm in ARMS.values() if _of_lambda(arm))}
    found = [r for r in records.read_all(results, ["distill"]) if r.arm in asked]
    return pd.DataFrame(
        [(r.arm, r.params["lambda_"], r.seed, m, r.metrics[m]) for r in found for m in metrics if m in r.metrics],
        columns=["arm", "lambda_", "seed", "metric", "value"],
    )


def seeds_of_all(by_lambda: pd.DataFrame) -> list[int]:
    """The seeds that were run at every lambda of a table as `lambdas` gives it."""
    counts = by_lambda.groupby("seed")["lambda_"].nunique()
    return counts.index[counts == by_lambda["lambda_"].nunique()].tolist()


def halves(settled: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The exploration's records of the seeds that explored, and of those that confirm."""
    first = settled["seed"].isin(EXPLORING)
    return {"seeds 0 to 4": settled[first], "seeds 5 to 9": settled[~first]}


def explored(table: pd.DataFrame, settled: pd.DataFrame) -> list[tuple[str, Finding]]:
    """Students against their controls in iid top-1, each with where: the study's cell, or a half of the exploration."""
    parts = {"the study": table} | {f"settled, {name}": half for name, half in halves(settled).items()}
    conditions = [Condition(contrast, "iid/top1") for contrast in EXPLORED]
    return [(name, measure(part, condition)) for condition in conditions for name, part in parts.items()]


def against_controls(table: pd.DataFrame, metrics: Sequence[str]) -> list[Finding]:
    """D3D minus each of its controls, by metric and control."""
    return [measure(table, Condition(f"d3d - {control}", metric)) for metric in metrics for control in CONTROLS]


def holds(
    table: pd.DataFrame, contrast: str, metric: str, *, above: float | None = None, below: float | None = None
) -> None:
    """Checks a statement of a chapter: raises ValueError, naming the interval, unless the whole 95 % interval of a
    contrast lies above and below these bounds."""
    found = measure(table, Condition(contrast, metric)).interval
    if found is None or not ((above is None or found.low > above) and (below is None or found.high < below)):
        bounds = " and ".join(f"{word} {b:g}" for word, b in {"above": above, "below": below}.items() if b is not None)
        raise ValueError(f"{contrast} in {metric} must lie {bounds}, its interval is {number_text(found)}")


def titled(finding: Finding, below: str = "") -> tuple[str, Finding]:
    """A finding as `rows` takes it: its contrast, and beneath that its metric or what is said instead."""
    condition = finding.condition
    return f"{contrast_label(condition.contrast)}\n{below or metric_label(condition.metric)}", finding


def histories(results: str | Path, arms: Sequence[str]) -> dict[tuple[str, int], pd.DataFrame]:
    """Training curves by (arm, seed), a row per epoch; a run without them is left out."""
    found = {}
    for record in records.read_all(results, TRAINED):
        if record.arm in arms and (rows := archive.read_curves(results, record)):
            found[record.arm, record.seed] = pd.DataFrame(rows)
    return found


def scores(table: pd.DataFrame, *, arms: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Mean and half of the 95 % interval, a row an arm and a column a metric, as text; a dash where none is."""
    values = table[table["metric"].isin(metrics)].groupby(["arm", "metric"])["value"].agg(list)
    found = {key: interval(v) for key, v in values.items()}
    cells = {k: f"{i.mean:.3f}" + (f" ± {i.high - i.mean:.3f}" if i.n > 1 else "") for k, i in found.items()}
    rows = [[cells.get((arm, metric), "—") for metric in metrics] for arm in arms]
    names = [metric.removesuffix("/top1") for metric in metrics]
    return pd.DataFrame(rows, index=[label(arm) for arm in arms], columns=names)


def compute_table(results: str | Path) -> pd.DataFrame:
    """Runs and their summed hours by experiment and device, those of each search and the exploration as one.

    Records that one run wrote share their start and parameters, and the last of them tells how long it took.
    """
    search = {"search for the knobs": REGIME, "search for the students' schedule": TUNING}
    read = {name: records.read_all(path) for name, path in search.items()}
    read["exploration"] = records.read_all(SETTLED)
    runs: dict[tuple, float] = {}
    for name, found in {"": records.read_all(results), **read}.items():
        for r in found:
            of = (name or r.experiment, r.provenance["device"], r.provenance["started"], json.dumps(r.params))
            runs[of] = max(runs.get(of, 0.0), r.provenance["seconds"])
    table = pd.DataFrame(
        [(*of[:2], seconds) for of, seconds in runs.items()], columns=["experiment", "device", "hours"]
    )
    grouped = table.groupby(["device", "experiment"])["hours"].agg(["size", "sum"]).reset_index()
    return grouped.assign(sum=grouped["sum"] / 3600).rename(columns={"size": "runs", "sum": "hours"})


def busy_hours(results: str | Path) -> float:
    """Hours during which at least one run of the trained networks and of what was read from them was under way."""
    found = [r.provenance for r in records.read_all(results, BUSY)]
    runs = sorted((datetime.fromisoformat(p["started"]).timestamp(), p["seconds"]) for p in found)
    total, until = 0.0, -math.inf
    for start, seconds in runs:
        total += max(0.0, start + seconds - max(start, until))
        until = max(until, start + seconds)
    return total / 3600
