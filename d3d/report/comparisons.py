"""The comparisons of the chapters as tables: contrasts seed by seed, ablations, training curves, compute time."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from d3d.report.claims import Condition
from d3d.report.contrasts import ClaimError, parse
from d3d.report.labels import contrast_label, endpoints_of, label, metric_label, number_text, unit
from d3d.report.ledger import Finding, Verdict, measure, verdict_of
from d3d.report.stats import interval
from d3d.study import archive, records
from d3d.study.arms import ARMS, Arm
from d3d.study.plan import JHMDB, REGIME, SETTLED, TRAINED, TUNING

# The exploration (book/plan.md) looked at these seeds; its later seeds confirm.
EXPLORATION_SEEDS = range(5)
# The experiments that keep a GPU busy.
GPU_EXPERIMENTS = ("train", "distill", "fuse", "probe")
# Beside iid top-1, students are compared with their controls by class group and on the stress splits.
GROUP_METRICS = tuple(f"iid/{group}/top1" for group in ("motion", "appearance", "both"))
STRESS_METRICS = tuple(f"{split}/top1" for split in ("decorrelated", "frozen", "shuffled", "reversed"))
# Further training without a teacher, and distillation from a teacher that sees no flow.
CONTROLS = ("rgb_longer", "rgb_teacher")
EXPLORATION_CONTRASTS = ("rgb_longer - rgb", "d3d - rgb_longer", "d3d - rgb_teacher", "d3d - two_stream")
_LINEAR_RATIO = re.compile(r"(?P<numerator>.+) - (?P<bound>[\d.]+) \* \((?P<denominator>.+)\)")


def ratio_condition(verdicts: Iterable[Verdict], claim: str) -> Condition:
    """Rewrites a claim's linear condition a - b - s * (c - b) > 0 as the ratio that it stands for.

    Returns:
        The condition (a - b) / (c - b) > s.

    Raises:
        ClaimError: there is no such claim, or it has no such condition.
    """
    for finding in verdict_of(verdicts, claim).findings:
        if match := _LINEAR_RATIO.fullmatch(finding.condition.contrast):
            contrast = f"({match['numerator']}) / ({match['denominator']})"
            return Condition(contrast, finding.condition.metric, above=float(match["bound"]))
    raise ClaimError(f"claim {claim} has no condition of the form a - b - s * (c - b)")


def difference_table(findings: Iterable[tuple[str, Finding]]) -> pd.DataFrame:
    """Puts labelled findings into the table that `plots.differences` draws; leaves out those that need data."""
    rows = []
    for text, finding in findings:
        condition = finding.condition
        if finding.interval is not None and np.isfinite(finding.interval.mean):
            kind = "ratio" if "/" in condition.contrast else unit(condition.metric)
            values = {"values": finding.values, **finding.interval._asdict()}
            # A difference looks like the network that it begins with.
            arm = next(iter(parse(condition.contrast).arms.values()))
            rows.append(
                {"label": text, "arm": arm, "unit": kind, **values, "bound": condition.bound, "side": condition.side}
            )
    return pd.DataFrame(rows)


def claim_differences(verdicts: Iterable[Verdict], claims: Sequence[str]) -> pd.DataFrame:
    """Returns a `difference_table` of the measured conditions of some claims; a shared condition comes once."""
    labelled_findings: dict[tuple[str, str], tuple[str, Finding]] = {}
    for verdict in verdicts:
        for finding in verdict.findings if verdict.claim.id in claims else ():
            condition = finding.condition
            text, _ = labelled(finding)
            labelled_findings.setdefault(
                (condition.contrast, condition.metric), (f"{verdict.claim.id}: {text}", finding)
            )
    return difference_table(labelled_findings.values())


def contrast_by_endpoint(table: pd.DataFrame, contrast: str, score: str, *, bound: float = 0.0) -> pd.DataFrame:
    """Measures a contrast at every endpoint that has it, from shallow to deep.

    Args:
        table: as `records.load` gives it.
        contrast: such as `d3d - rgb_longer`.
        score: the metric without its endpoint, such as `motion/r2_within`.
        bound: the line that the figure draws.

    Returns:
        The table that `endpoints.contrast_panels` draws.
    """
    findings = {e: measure(table, Condition(contrast, f"{e}/{score}")) for e in endpoints_of(table)}
    return pd.DataFrame(
        {"endpoint": e, "values": f.values, **f.interval._asdict(), "bound": bound}
        for e, f in findings.items()
        if f.interval is not None and np.isfinite(f.interval.mean)
    )


def differences_from(table: pd.DataFrame, arms: Iterable[str], metric: str, *, base: str) -> list[tuple[str, Finding]]:
    """Measures each arm minus `base`; the findings are labelled as `difference_table` takes them."""
    findings = [measure(table, Condition(f"{arm} - {base}", metric)) for arm in arms]
    return [(contrast_label(finding.condition.contrast), finding) for finding in findings]


def ablations(table: pd.DataFrame) -> list[str]:
    """Lists the recorded students of flow that differ from D3D in something other than the weight lambda."""
    return [arm for arm in variants(table) if not _differs_in_lambda_only(ARMS[arm])]


def variants(table: pd.DataFrame) -> list[str]:
    """Lists the recorded students of flow other than D3D; those with another lambda come last, by lambda."""
    recorded = set(table["arm"]) - {"d3d"}
    students = [a for a in ARMS.values() if a.name in recorded and a.teacher and ARMS[a.teacher].stream == "flow"]
    students.sort(key=lambda a: a.overrides["lambda_"] if _differs_in_lambda_only(a) else 0.0)
    return [a.name for a in students]


def _differs_in_lambda_only(arm: Arm) -> bool:
    d3d = ARMS["d3d"]
    return set(arm.overrides) == {"lambda_"} and (arm.start, arm.teacher) == (d3d.start, d3d.teacher)


def lambda_table(results: str | Path, metrics: Sequence[str]) -> pd.DataFrame:
    """Tabulates D3D's metrics by the weight lambda of the records: columns arm, lambda_, seed, metric, value."""
    arms = {"d3d", *(arm.name for arm in ARMS.values() if _differs_in_lambda_only(arm))}
    selected = [r for r in records.read_all(results, ["distill"]) if r.arm in arms]
    return pd.DataFrame(
        [(r.arm, r.params["lambda_"], r.seed, m, r.metrics[m]) for r in selected for m in metrics if m in r.metrics],
        columns=["arm", "lambda_", "seed", "metric", "value"],
    )


def seeds_at_every_lambda(by_lambda: pd.DataFrame) -> list[int]:
    """Lists the seeds that a `lambda_table` has at every lambda."""
    counts = by_lambda.groupby("seed")["lambda_"].nunique()
    return counts.index[counts == by_lambda["lambda_"].nunique()].tolist()


def exploration_halves(settled: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Splits the exploration's records into the seeds that explored and the seeds that confirm."""
    explored = settled["seed"].isin(EXPLORATION_SEEDS)
    return {"seeds 0 to 4": settled[explored], "seeds 5 to 9": settled[~explored]}


def exploration_findings(table: pd.DataFrame, settled: pd.DataFrame) -> list[tuple[str, Finding]]:
    """Measures students against their controls in iid top-1, in the study and in both halves of the exploration.

    Returns:
        Pairs of the name of the records (`the study`, `longer training, seeds 0 to 4`, …) and the finding.
    """
    halves = exploration_halves(settled).items()
    tables = {"the study": table} | {f"longer training, {name}": half for name, half in halves}
    conditions = [Condition(contrast, "iid/top1") for contrast in EXPLORATION_CONTRASTS]
    return [(name, measure(rows, condition)) for condition in conditions for name, rows in tables.items()]


def against_controls(table: pd.DataFrame, metrics: Sequence[str]) -> list[Finding]:
    """Measures D3D minus each of its controls in each metric."""
    return [measure(table, Condition(f"d3d - {control}", metric)) for metric in metrics for control in CONTROLS]


def holds(
    table: pd.DataFrame, contrast: str, metric: str, *, above: float | None = None, below: float | None = None
) -> None:
    """Checks a statement of the book against the records.

    Args:
        table: as `records.load` gives it.
        contrast: such as `d3d - rgb_longer`.
        metric: such as `iid/top1`.
        above: the whole 95 % interval must lie above this.
        below: the whole 95 % interval must lie below this.

    Raises:
        ValueError: the interval does not, or there is none; the message has it.
    """
    interval = measure(table, Condition(contrast, metric)).interval
    too_low = above is not None and not (interval and interval.low > above)
    too_high = below is not None and not (interval and interval.high < below)
    if too_low or too_high:
        bound = f"above {above:g}" if too_low else f"below {below:g}"
        raise ValueError(f"the book says that {contrast} in {metric} lies {bound}, but it is {number_text(interval)}")


def labelled(finding: Finding, second_line: str = "") -> tuple[str, Finding]:
    """Labels a finding for `difference_table`: its contrast, and below it the metric or `second_line`."""
    condition = finding.condition
    return f"{contrast_label(condition.contrast)}\n{second_line or metric_label(condition.metric)}", finding


def training_histories(results: str | Path, arms: Sequence[str]) -> dict[tuple[str, int], pd.DataFrame]:
    """Reads training curves by (arm, seed), one row per epoch; leaves out runs without curves."""
    histories = {}
    for record in records.read_all(results, TRAINED):
        if record.arm in arms and (rows := archive.read_curves(results, record)):
            histories[record.arm, record.seed] = pd.DataFrame(rows)
    return histories


def score_table(table: pd.DataFrame, *, arms: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Formats mean ± half of the 95 % interval as text: one row per arm, one column per metric, a dash for no data."""
    values = table[table["metric"].isin(metrics)].groupby(["arm", "metric"])["value"].agg(list)
    intervals = {key: interval(v) for key, v in values.items()}
    cells = {k: f"{i.mean:.3f}" + (f" ± {i.high - i.mean:.3f}" if i.n > 1 else "") for k, i in intervals.items()}
    rows = [[cells.get((arm, metric), "—") for metric in metrics] for arm in arms]
    names = [metric.removesuffix("/top1") for metric in metrics]
    return pd.DataFrame(rows, index=[label(arm) for arm in arms], columns=names)


def compute_table(results: str | Path) -> pd.DataFrame:
    """Sums runs and their hours by device and experiment; each search, the exploration and the pilot are one row each.

    Several records of one run have the same start and parameters: the run is counted once, with its longest time.

    Returns:
        Columns device, experiment, runs, hours.
    """
    search = {"search for the knobs": REGIME, "search for the students' schedule": TUNING}
    records_by_name = {"": records.read_all(results)} | {name: records.read_all(path) for name, path in search.items()}
    records_by_name |= {"exploration": records.read_all(SETTLED), "pilot on JHMDB": records.read_all(JHMDB)}
    seconds_by_run: dict[tuple, float] = {}
    for name, studied in records_by_name.items():
        for r in studied:
            run = (name or r.experiment, r.provenance["device"], r.provenance["started"], json.dumps(r.params))
            seconds_by_run[run] = max(seconds_by_run.get(run, 0.0), r.provenance["seconds"])
    table = pd.DataFrame(
        [(*run[:2], seconds) for run, seconds in seconds_by_run.items()], columns=["experiment", "device", "hours"]
    )
    grouped = table.groupby(["device", "experiment"])["hours"].agg(["size", "sum"]).reset_index()
    return grouped.assign(sum=grouped["sum"] / 3600).rename(columns={"size": "runs", "sum": "hours"})


def busy_hours(results: str | Path) -> float:
    """Returns the hours during which at least one run that trains, fuses or probes networks was under way."""
    provenances = [r.provenance for r in records.read_all(results, GPU_EXPERIMENTS)]
    runs = sorted((datetime.fromisoformat(p["started"]).timestamp(), p["seconds"]) for p in provenances)
    total, busy_until = 0.0, -math.inf
    for start, seconds in runs:
        total += max(0.0, start + seconds - max(start, busy_until))
        busy_until = max(busy_until, start + seconds)
    return total / 3600
