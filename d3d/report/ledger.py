"""The one judge: claims, rules, and what the records say on each condition of a rule.

A rule in book/claims.yaml is one of

    all: [{contrast: d3d - rgb_longer, metric: iid/top1, above: 0}, …]    every interval must lie beyond its bound
    report: [{contrast: two_stream - rgb, metric: iid/top1}, …]           printed, not judged
    follows: H1                                                           the verdict of another claim

A contrast is arithmetic on arms and numbers, with max(…) and min(…); it is computed seed by seed, and its 95 % interval
is Student's t over the seeds. A bound is a number, as `above` or `below`. The words:

    supported          every interval lies beyond its bound
    refuted            one lies wholly on the wrong side
    practically zero   none is refuted, and one whose bound is zero is equivalent to it, within the margin of its
                       metric, by two one-sided t tests at 5 %
    undecided          an interval holds its bound, or there are too few seeds
    reported           nothing was asked
    needs data         a condition was not measured
"""

import ast
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from d3d.report.labels import NAME, contrast_label, metric_label, number_text
from d3d.report.stats import Interval, interval
from d3d.study import records

SUPPORTED, REFUTED, ZERO, UNDECIDED = "supported", "refuted", "practically zero", "undecided"
REPORTED, NEEDS_DATA = "reported", "needs data"
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
FUNCTIONS: dict[str, Callable] = {
    "max": lambda *a: reduce(np.maximum, a),
    "min": lambda *a: reduce(np.minimum, a),
}


class ClaimError(ValueError):
    """A claim or rule that does not parse; the message names the claim and what is allowed."""


@dataclass(frozen=True)
class Condition:
    """One line of a rule; without a bound it is only reported. margin: what counts as zero, where that is said."""

    contrast: str
    metric: str
    above: float | None = None
    below: float | None = None
    margin: float | None = None

    @property
    def asked(self) -> tuple[float, int]:
        """Its bound and its side: 1 for above, -1 for below, 0 with a bound of nan where it has none."""
        if self.above is not None:
            return self.above, 1
        return (self.below, -1) if self.below is not None else (float("nan"), 0)


@dataclass(frozen=True)
class Claim:
    """One row of the ledger. `data` names what must be had for it; a claim with data ignores stand-ins.

    `seeds` is how many values a verdict needs where it is not the ledger's number.
    """

    id: str
    statement: str
    source: str
    command: str
    claimed: float | None = None
    data: str = ""
    follows: str = ""
    seeds: int | None = None
    judged: bool = True
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What the records say on one condition, a value per seed; `interval` is None where they say nothing."""

    condition: Condition
    interval: Interval | None
    values: tuple[float, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The word, why, the findings it follows from, and those of them that decided it."""

    claim: Claim
    word: str
    reason: str
    findings: tuple[Finding, ...] = ()
    deciding: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Claims:
    """The ledger: its claims in order, and how many seeds a verdict needs."""

    claims: tuple[Claim, ...]
    seeds: int


def read_claims(path: str | Path = "book/claims.yaml") -> Claims:
    """Raises ClaimError for an unknown key, a rule that does not parse or a claim that follows no other,
    FileNotFoundError where there is no ledger."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no ledger of claims at {path}: run this at the root of the repository")
    try:
        content = yaml.safe_load(path.read_text())
        margins, seeds = content.get("margins") or {}, int(content["seeds"])
        claims = tuple(_claim(fields, margins) for fields in content["claims"])
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ClaimError(f"{path} must hold seeds and a list of claims: {' '.join(str(error).split())}") from None
    ids = [claim.id for claim in claims]
    for claim in claims:
        if claim.follows and claim.follows not in {c.id for c in claims if not c.follows}:
            raise ClaimError(f"claim {claim.id} follows {claim.follows!r}, which is no claim with a rule of its own")
    if len(set(ids)) != len(ids):
        raise ClaimError(f"{path} lists a claim twice: {', '.join(sorted({i for i in ids if ids.count(i) > 1}))}")
    return Claims(claims, seeds)


def verdicts(results: str | Path) -> list[Verdict]:
    """The ledger judged on the records of a working folder or a published study."""
    return judge(read_claims(), records.load(results))


def judge(claims: Claims, table: pd.DataFrame) -> list[Verdict]:
    """The verdict on every claim, from `records.load`'s table alone."""
    direct = {c.id: _verdict(c, table, c.seeds or claims.seeds) for c in claims.claims if not c.follows}
    found = []
    for claim in claims.claims:
        verdict = direct[claim.follows or claim.id]
        if claim.follows:
            word = f"{verdict.word} on sprites" if verdict.word in (SUPPORTED, REFUTED, ZERO) else verdict.word
            verdict = replace(verdict, claim=claim, word=word, reason=f"follows {claim.follows}: {verdict.reason}")
        found.append(verdict)
    return found


def verdict_of(found: Iterable[Verdict], claim: str) -> Verdict:
    """The verdict on one claim."""
    return next(v for v in found if v.claim.id == claim)


def _verdict(claim: Claim, table: pd.DataFrame, seeds: int) -> Verdict:
    if claim.data:
        table = table[~table["stand_in"].astype(bool)]
    findings = tuple(measure(table, condition) for condition in claim.conditions)
    if absent := list(dict.fromkeys(name for f in findings for name in f.missing)):
        reason = f"needs {claim.data}" if claim.data else f"not measured yet: {', '.join(absent)}"
        return Verdict(claim, NEEDS_DATA, reason, findings)
    if not claim.judged:
        return Verdict(claim, REPORTED, "reported, not judged", findings)
    fewest = min(f.interval.n for f in findings)
    if fewest < seeds:
        return Verdict(claim, UNDECIDED, f"{fewest} of {seeds} seeds", findings)
    by_word = {word: tuple(f for f in findings if outcome(f, seeds) == word) for word in (REFUTED, ZERO, UNDECIDED)}
    word = next((word for word, some in by_word.items() if some), SUPPORTED)
    deciding = by_word[word] if word != SUPPORTED else (min(findings, key=_room),)
    return Verdict(claim, word, "; ".join(map(condition_text, deciding)), findings, deciding)


def outcome(finding: Finding, seeds: int) -> str:
    """The word on one condition, where a verdict needs so many seeds."""
    found, (bound, side) = finding.interval, finding.condition.asked
    if found is None or not side:
        return REPORTED if found else NEEDS_DATA
    if found.n < max(2, seeds):
        return UNDECIDED
    near, far = sorted((side * (found.low - bound), side * (found.high - bound)))
    if near > 0:
        return SUPPORTED
    if far < 0:
        return REFUTED
    return ZERO if bound == 0 and _practically_zero(finding) else UNDECIDED


def _practically_zero(finding: Finding) -> bool:
    """Two one-sided t tests at 5 %, which is a 90 % interval within ± margin."""
    margin = finding.condition.margin
    if margin is None:
        return False
    inner = interval(finding.values, confidence=0.9)
    return -margin < inner.low and inner.high < margin


def _room(finding: Finding) -> float:
    """How far a mean lies from its bound, in half-widths of its interval."""
    bound, _ = finding.condition.asked
    return abs(finding.interval.mean - bound) / max(1e-12, finding.interval.high - finding.interval.mean)


def condition_text(finding: Finding) -> str:
    """A condition in words, with what was measured and what was asked."""
    condition, (bound, side) = finding.condition, finding.condition.asked
    asks = f", asked {'>' if side > 0 else '<'} {bound:g}".replace("-", "−") if side else ""
    what = f"{contrast_label(condition.contrast)} in {metric_label(condition.metric)}:"
    # A level, unlike a difference, has no sign worth printing.
    signed = " - " in condition.contrast or condition.metric.endswith("_gain")
    return f"{what} {number_text(finding.interval, signed=signed)}{asks}"


def measure(table: pd.DataFrame, condition: Condition) -> Finding:
    """What the records say on a condition, seed by seed; any contrast, whether a claim has it or not."""
    rows = table[table["metric"] == condition.metric]
    tree, names = _checked(condition.contrast)
    arms = sorted(names.values())
    if missing := [arm for arm in arms if arm not in set(rows["arm"])]:
        # Where no network has the metric, naming every arm would say no more.
        absent = (condition.metric,) if rows.empty else tuple(f"{arm} {condition.metric}" for arm in missing)
        return Finding(condition, None, missing=absent)
    wide = rows[rows["arm"].isin(arms)].pivot(index="seed", columns="arm", values="value").dropna()
    if wide.empty:
        return Finding(condition, None, missing=(f"{condition.metric} of {', '.join(arms)} for one and the same seed",))
    # A gap of zero makes a share of it infinite, and its interval nan.
    with np.errstate(invalid="ignore"):
        values = _evaluate(tree, {name: wide[arm] for name, arm in names.items()}).to_numpy()
        return Finding(condition, interval(values), tuple(values))


def arms_of(contrast: str) -> set[str]:
    """The arms that a contrast names."""
    return set(_parsed(contrast)[1].values())


def _checked(contrast: str) -> tuple[ast.expr, dict[str, str]]:
    """`_parsed`, tried on numbers. Raises ClaimError for what is no contrast."""
    try:
        tree, names = _parsed(contrast)
        found = _evaluate(tree, dict.fromkeys(names, pd.Series([1.0])))
    except ClaimError:
        raise
    except (SyntaxError, ValueError, TypeError, ZeroDivisionError):
        raise ClaimError(f"{contrast!r} is no contrast such as d3d - rgb") from None
    if not isinstance(found, pd.Series):
        raise ClaimError(f"{contrast!r} names no arm: a contrast is such as d3d - rgb")
    return tree, names


def _parsed(contrast: str) -> tuple[ast.expr, dict[str, str]]:
    """A contrast as a tree, and its names to the arms they stand for, which may have a point in theirs."""
    names: dict[str, str] = {}

    def plain(found: re.Match) -> str:
        if found[0] in FUNCTIONS:
            return found[0]
        name = found[0].replace(".", "_point_")
        names[name] = found[0]
        return name

    return ast.parse(re.sub(NAME, plain, contrast), mode="eval").body, names


def _evaluate(node: ast.expr, values: dict[str, Any]) -> Any:
    match node:
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_evaluate(inner, values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_evaluate(left, values), _evaluate(right, values))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_evaluate(a, values) for a in args))
    raise ClaimError(f"a contrast is arithmetic on arms and numbers with max and min, not {ast.unparse(node)!r}")


def _claim(fields: dict[str, Any], margins: dict[str, float]) -> Claim:
    fields = dict(fields)
    name = fields.get("id", "?")
    rule = fields.pop("rule", None)
    if not isinstance(rule, dict) or len(rule) != 1 or not set(rule) <= {"all", "report", "follows"}:
        raise ClaimError(f"claim {name} needs a rule with one of: all, report, follows; it has {rule!r}")
    kind, body = next(iter(rule.items()))
    if not body:
        raise ClaimError(f"claim {name} has an empty rule: {rule!r}")
    try:
        if kind == "follows":
            return Claim(**fields, follows=body)
        judged = kind == "all"
        conditions = tuple(_condition(name, c, margins, judged=judged) for c in body)
        return Claim(**fields, judged=judged, conditions=conditions)
    except TypeError as error:
        raise ClaimError(f"claim {name} is not well formed: {str(error).split(') ')[-1]}") from None


def _condition(claim: str, fields: dict[str, Any], margins: dict[str, float], *, judged: bool) -> Condition:
    condition = Condition(**fields)
    bound = condition.above if condition.above is not None else condition.below
    if not isinstance(condition.metric, str) or not isinstance(condition.contrast, str):
        raise ClaimError(f"claim {claim}: contrast and metric must be text, not {fields!r}")
    if bound is not None and type(bound) not in (int, float):
        raise ClaimError(f"claim {claim}: a bound must be a number, not {bound!r}")
    condition = replace(condition, margin=margins.get(condition.metric.split("/")[-1]))
    bounds = (condition.above is not None) + (condition.below is not None)
    if bounds != judged:
        raise ClaimError(f"claim {claim}: a judged condition has one of above and below, a reported one neither")
    try:
        _checked(condition.contrast)
    except ClaimError as error:
        raise ClaimError(f"claim {claim}: {error}") from None
    return condition
