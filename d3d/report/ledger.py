"""Claims, rules, verdicts: what the records say about each claim of book/claims.yaml.

A rule is one of

    all: [{contrast: d3d - rgb_longer, metric: iid/top1, above: 0}, …]    every interval must lie beyond its bound
    report: [{contrast: two_stream - rgb, metric: iid/top1}, …]           printed, not judged
    follows: H1                                                           the verdict of another claim

A contrast is arithmetic on arms and numbers, with max(…) and min(…); it is computed seed by seed, and its 95 %
interval is Student's t over the seeds. A bound is a number, as `above` or `below`.
"""

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from d3d.report.stats import Interval, interval

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
REPORTED, NEEDS_DATA = "reported", "needs data"
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
FUNCTIONS: dict[str, Callable] = {
    "max": lambda *a: pd.concat(a, axis=1).max(axis=1),
    "min": lambda *a: pd.concat(a, axis=1).min(axis=1),
}


class ClaimError(ValueError):
    """A claim or rule that does not parse; the message names the claim and what is allowed."""


@dataclass(frozen=True)
class Condition:
    """One line of a rule; without a bound it is only reported."""

    contrast: str
    metric: str
    above: float | None = None
    below: float | None = None


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
    """What the records say on one condition, a value a seed; `interval` is None where they say nothing."""

    condition: Condition
    interval: Interval | None
    values: tuple[float, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The word, why, and the findings it follows from."""

    claim: Claim
    word: str
    reason: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Claims:
    """The ledger: its claims in order, and how many seeds a verdict needs."""

    claims: tuple[Claim, ...]
    seeds: int


def read_claims(path: str | Path = "book/claims.yaml") -> Claims:
    """Raises ClaimError for an unknown key, a rule that does not parse or a claim that follows no other."""
    content = yaml.safe_load(Path(path).read_text())
    claims = tuple(_claim(fields) for fields in content["claims"])
    ids = [claim.id for claim in claims]
    for claim in claims:
        if claim.follows and claim.follows not in ids:
            raise ClaimError(f"claim {claim.id} follows {claim.follows!r}, which is no claim")
    if len(set(ids)) != len(ids):
        raise ClaimError(f"{path} lists a claim twice: {', '.join(sorted({i for i in ids if ids.count(i) > 1}))}")
    return Claims(claims, content["seeds"])


def judge(claims: Claims, table: pd.DataFrame) -> list[Verdict]:
    """The verdict on every claim, from `records.load`'s table alone."""
    direct = {c.id: _verdict(c, table, c.seeds or claims.seeds) for c in claims.claims if not c.follows}
    verdicts = []
    for claim in claims.claims:
        if claim.follows:
            followed = direct[claim.follows]
            word = followed.word
            if word in (SUPPORTED, NOT_SUPPORTED):
                word = f"{word} on sprites"
            verdicts.append(Verdict(claim, word, f"follows {claim.follows}: {followed.reason}", followed.findings))
        else:
            verdicts.append(direct[claim.id])
    return verdicts


def _verdict(claim: Claim, table: pd.DataFrame, seeds: int) -> Verdict:
    if claim.data:
        table = table[~table["stand_in"].astype(bool)]
    findings = tuple(_finding(condition, table) for condition in claim.conditions)
    absent = list(dict.fromkeys(name for f in findings for name in f.missing))
    if claim.data and absent:
        return Verdict(claim, NEEDS_DATA, f"needs {claim.data}", findings)
    if absent:
        return Verdict(claim, INCONCLUSIVE, f"not measured yet: {', '.join(absent)}", findings)
    if not claim.judged:
        return Verdict(claim, REPORTED, "reported, not judged", findings)
    words = [_beyond(f) for f in findings]
    fewest = min(f.interval.n for f in findings)
    if fewest < seeds:
        return Verdict(claim, INCONCLUSIVE, f"{fewest} of {seeds} seeds", findings)
    if all(word == SUPPORTED for word in words):
        return Verdict(claim, SUPPORTED, "every interval lies beyond its bound", findings)
    if NOT_SUPPORTED in words:
        return Verdict(claim, NOT_SUPPORTED, "an interval lies wholly on the wrong side of its bound", findings)
    return Verdict(claim, INCONCLUSIVE, "an interval holds its bound", findings)


def _beyond(finding: Finding) -> str:
    condition, found = finding.condition, finding.interval
    bound, sign = (condition.above, 1) if condition.above is not None else (condition.below, -1)
    low, high = sorted((sign * (found.low - bound), sign * (found.high - bound)))
    return SUPPORTED if low > 0 else NOT_SUPPORTED if high < 0 else INCONCLUSIVE


def _finding(condition: Condition, table: pd.DataFrame) -> Finding:
    rows = table[table["metric"] == condition.metric]
    tree = ast.parse(condition.contrast, mode="eval").body
    arms = sorted(_arms(tree))
    if missing := [arm for arm in arms if arm not in set(rows["arm"])]:
        # Where no network has the metric, naming every arm would say no more.
        absent = (condition.metric,) if rows.empty else tuple(f"{arm} {condition.metric}" for arm in missing)
        return Finding(condition, None, missing=absent)
    wide = rows[rows["arm"].isin(arms)].pivot(index="seed", columns="arm", values="value").dropna()
    if wide.empty:
        return Finding(condition, None, missing=(f"{condition.metric} of {', '.join(arms)} for one and the same seed",))
    values = _evaluate(tree, wide).to_numpy()
    return Finding(condition, interval(values), tuple(values))


def _evaluate(node: ast.expr, wide: pd.DataFrame) -> Any:
    match node:
        case ast.Name(id=arm):
            return wide[arm]
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_evaluate(inner, wide)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_evaluate(left, wide), _evaluate(right, wide))
        case ast.Call(func=ast.Name(id=name), args=args) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_evaluate(a, wide) for a in args))
    raise ClaimError(f"a contrast is arithmetic on arms and numbers with max and min, not {ast.unparse(node)!r}")


def _arms(node: ast.expr) -> set[str]:
    functions = {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - functions


def _claim(fields: dict[str, Any]) -> Claim:
    fields = dict(fields)
    name = fields.get("id", "?")
    rule = fields.pop("rule", None)
    if not isinstance(rule, dict) or len(rule) != 1 or not set(rule) <= {"all", "report", "follows"}:
        raise ClaimError(f"claim {name} needs a rule with one of: all, report, follows; it has {rule!r}")
    kind, body = next(iter(rule.items()))
    try:
        conditions = () if kind == "follows" else tuple(_condition(name, c, judged=kind == "all") for c in body)
        follows = body if kind == "follows" else ""
        return Claim(**fields, follows=follows, judged=kind == "all", conditions=conditions)
    except TypeError as error:
        raise ClaimError(f"claim {name} is not well formed: {str(error).split(') ')[-1]}") from None


def _condition(claim: str, fields: dict[str, Any], *, judged: bool) -> Condition:
    condition = Condition(**fields)
    bounds = (condition.above is not None) + (condition.below is not None)
    if bounds != judged:
        raise ClaimError(f"claim {claim}: a judged condition has one of above and below, a reported one neither")
    try:
        arms = _arms(ast.parse(condition.contrast, mode="eval").body)
        _evaluate(ast.parse(condition.contrast, mode="eval").body, pd.DataFrame({arm: [1.0] for arm in arms}))
    except SyntaxError:
        raise ClaimError(f"claim {claim}: {condition.contrast!r} is no contrast such as d3d - rgb") from None
    return condition
