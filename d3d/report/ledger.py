"""The ledger: reads the claims and their rules, evaluates the conditions from run records, and decides the verdicts.

A rule in book/claims.yaml is one of

    all: [{contrast: d3d - rgb_longer, metric: iid/top1, above: 0}, …]    every interval must lie beyond its bound
    report: [{contrast: two_stream - rgb, metric: iid/top1}, …]           printed, not judged
    follows: H1                                                           takes the verdict of another claim

A contrast is arithmetic on arms and numbers, with max(…) and min(…). It is computed seed by seed, and its 95 % interval
is Student's t over the seeds. A bound is a number, given as `above` or `below`. A verdict's `word` is one of

    supported          every interval lies beyond its bound
    refuted            at least one interval lies wholly on the wrong side of its bound
    practically zero   no condition is refuted, and for at least one with bound zero, the mean is equivalent to zero:
                       within ± the metric's margin, by two one-sided t tests (TOST) at 5 %
    undecided          an interval contains its bound, or there are too few seeds
    reported           the rule has no bound to test
    needs data         the records lack a metric of a condition

A claim that follows another is not measured itself: its supported, refuted or practically zero gets the suffix
` on sprites`.
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

from d3d.report.labels import ARM_NAME, NEEDS_DATA, contrast_label, metric_label, number_text
from d3d.report.stats import Interval, interval
from d3d.study import records

SUPPORTED, REFUTED, ZERO, UNDECIDED = "supported", "refuted", "practically zero", "undecided"
REPORTED = "reported"
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
FUNCTIONS: dict[str, Callable] = {
    "max": lambda *a: reduce(np.maximum, a),
    "min": lambda *a: reduce(np.minimum, a),
}


class ClaimError(ValueError):
    """A claim or rule that does not parse; the message names the claim and what is allowed."""


@dataclass(frozen=True)
class Condition:
    """One line of a rule; without a bound it is reported only.

    Attributes:
        contrast: arithmetic on arms, such as `d3d - rgb_longer`.
        metric: name of the metric, such as `iid/top1`.
        above: bound that the interval must lie above; None: no lower bound.
        below: bound that the interval must lie below; None: no upper bound.
        equivalence_margin: a difference smaller than this counts as zero; None: the metric has no margin.
    """

    contrast: str
    metric: str
    above: float | None = None
    below: float | None = None
    equivalence_margin: float | None = None

    @property
    def bound(self) -> float:
        """The bound, above or below; NaN where there is none."""
        if self.above is not None:
            return self.above
        return self.below if self.below is not None else float("nan")

    @property
    def side(self) -> int:
        """The required side of the bound: 1 for above, -1 for below, 0 where there is no bound."""
        return 1 if self.above is not None else -1 if self.below is not None else 0


@dataclass(frozen=True)
class Claim:
    """One row of the ledger.

    Attributes:
        id: identifier, such as A1, B1 or H1.
        statement: the claim in a sentence.
        source: where the claim comes from.
        command: the shell command that measures it.
        claimed: the number in the paper; None for a claim without one.
        data: the data sets that the claim needs; if set, records of sprites (`stand_in`) are ignored.
        follows: id of the claim whose verdict it takes; empty for a claim with its own conditions.
        seeds: minimum number of seeds for a verdict; None: the ledger's.
        judged: False for a claim that is reported only.
        conditions: the lines of its rule.
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
    """A condition measured on records.

    Attributes:
        condition: the condition.
        interval: mean and 95 % interval; None where the records lack the metric.
        values: one per seed.
        missing: the arms and metrics that the records lack.
    """

    condition: Condition
    interval: Interval | None
    values: tuple[float, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim.

    Attributes:
        claim: the claim.
        word: see the module's docstring.
        reason: short explanation.
        findings: all conditions as measured.
        deciding: the findings that decided the verdict.
    """

    claim: Claim
    word: str
    reason: str
    findings: tuple[Finding, ...] = ()
    deciding: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """All claims.

    Attributes:
        claims: the claims, in the order of the file.
        seeds: minimum number of seeds for a verdict.
    """

    claims: tuple[Claim, ...]
    seeds: int


def read_claims(path: str | Path = "book/claims.yaml") -> Ledger:
    """Reads the ledger.

    Raises:
        ClaimError: a key is unknown, a rule does not parse, or a claim follows one that does not exist.
        FileNotFoundError: there is no such file.
    """
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
            reason = f"follows {claim.follows!r}, which is not a claim with its own conditions"
            raise ClaimError(f"claim {claim.id} {reason}")
    if len(set(ids)) != len(ids):
        raise ClaimError(f"{path} lists a claim twice: {', '.join(sorted({i for i in ids if ids.count(i) > 1}))}")
    return Ledger(claims, seeds)


def verdicts(results: str | Path) -> list[Verdict]:
    """Returns the verdicts on all claims from the records of a working folder or an archive."""
    return judge(read_claims(), records.load(results))


def judge(ledger: Ledger, table: pd.DataFrame) -> list[Verdict]:
    """Returns the verdicts on all claims, in order, from a table of `records.load`."""
    direct = {c.id: _verdict(c, table, c.seeds or ledger.seeds) for c in ledger.claims if not c.follows}
    in_order = []
    for claim in ledger.claims:
        verdict = direct[claim.follows or claim.id]
        if claim.follows:
            word = f"{verdict.word} on sprites" if verdict.word in (SUPPORTED, REFUTED, ZERO) else verdict.word
            verdict = replace(verdict, claim=claim, word=word, reason=f"follows {claim.follows}: {verdict.reason}")
        in_order.append(verdict)
    return in_order


def verdict_of(verdicts: Iterable[Verdict], claim_id: str) -> Verdict:
    """Returns the verdict on the claim with this id."""
    return next(v for v in verdicts if v.claim.id == claim_id)


def _verdict(claim: Claim, table: pd.DataFrame, min_seeds: int) -> Verdict:
    if claim.data:
        table = table[~table["stand_in"].astype(bool)]
    findings = tuple(measure(table, condition) for condition in claim.conditions)
    if missing := list(dict.fromkeys(name for f in findings for name in f.missing)):
        reason = f"needs {claim.data}" if claim.data else f"no records of {', '.join(missing)}"
        return Verdict(claim, NEEDS_DATA, reason, findings)
    if not claim.judged:
        return Verdict(claim, REPORTED, "reported, not judged", findings)
    fewest = min(f.interval.n for f in findings)
    if fewest < min_seeds:
        return Verdict(claim, UNDECIDED, f"{fewest} of {min_seeds} seeds", findings)
    by_word = {word: tuple(f for f in findings if outcome(f, min_seeds) == word) for word in (REFUTED, ZERO, UNDECIDED)}
    word = next((word for word, deciding in by_word.items() if deciding), SUPPORTED)
    deciding = by_word[word] if word != SUPPORTED else (min(findings, key=_distance_to_bound),)
    return Verdict(claim, word, "; ".join(map(condition_text, deciding)), findings, deciding)


def outcome(finding: Finding, min_seeds: int) -> str:
    """Returns the word of a verdict on one condition alone; undecided with fewer than `min_seeds` values."""
    measured, bound, side = finding.interval, finding.condition.bound, finding.condition.side
    if measured is None or not side:
        return REPORTED if measured else NEEDS_DATA
    if measured.n < max(2, min_seeds):
        return UNDECIDED
    nearest, farthest = sorted((side * (measured.low - bound), side * (measured.high - bound)))
    if nearest > 0:
        return SUPPORTED
    if farthest < 0:
        return REFUTED
    return ZERO if bound == 0 and _practically_zero(finding) else UNDECIDED


def _practically_zero(finding: Finding) -> bool:
    """Whether two one-sided t tests at 5 % show equivalence: the 90 % interval lies within ± margin."""
    margin = finding.condition.equivalence_margin
    if margin is None:
        return False
    inner = interval(finding.values, confidence=0.9)
    return -margin < inner.low and inner.high < margin


def _distance_to_bound(finding: Finding) -> float:
    """Returns the distance of a mean from its bound, in half-widths of its interval."""
    half = finding.interval.high - finding.interval.mean
    return abs(finding.interval.mean - finding.condition.bound) / max(1e-12, half)


def condition_text(finding: Finding) -> str:
    """Formats a finding as text: contrast, metric, mean with interval, and the required bound."""
    condition = finding.condition
    required = f", must be {'>' if condition.side > 0 else '<'} {condition.bound:g}" if condition.side else ""
    compared = f"{contrast_label(condition.contrast)} in {metric_label(condition.metric)}:"
    # Only differences get a plus sign.
    signed = " - " in condition.contrast or condition.metric.endswith("_gain")
    return f"{compared} {number_text(finding.interval, signed=signed)}{required.replace('-', '−')}"


def measure(table: pd.DataFrame, condition: Condition) -> Finding:
    """Evaluates a condition seed by seed; it need not belong to a claim.

    Args:
        table: a table of `records.load`; seeds that lack an arm of the contrast are ignored.
        condition: any contrast and metric.

    Raises:
        ClaimError: the contrast does not parse.
    """
    rows = table[table["metric"] == condition.metric]
    tree, names = _checked(condition.contrast)
    arms = sorted(names.values())
    if absent := [arm for arm in arms if arm not in set(rows["arm"])]:
        # If no arm has the metric, only the metric is named.
        missing = (condition.metric,) if rows.empty else tuple(f"{arm} {condition.metric}" for arm in absent)
        return Finding(condition, None, missing=missing)
    wide = rows[rows["arm"].isin(arms)].pivot(index="seed", columns="arm", values="value").dropna()
    if wide.empty:
        return Finding(condition, None, missing=(f"{condition.metric} of all of {', '.join(arms)} for the same seed",))
    # A ratio whose denominator is zero is infinite, and its interval NaN.
    with np.errstate(invalid="ignore"):
        values = _evaluate(tree, {name: wide[arm] for name, arm in names.items()}).to_numpy()
        return Finding(condition, interval(values), tuple(values))


def arms_of(contrast: str) -> set[str]:
    """Returns the arms that a contrast names."""
    return set(_parsed(contrast)[1].values())


def _checked(contrast: str) -> tuple[ast.expr, dict[str, str]]:
    """Parses a contrast and evaluates it once on ones; raises ClaimError if it is not a contrast."""
    try:
        tree, names = _parsed(contrast)
        value = _evaluate(tree, dict.fromkeys(names, pd.Series([1.0])))
    except ClaimError:
        raise
    except (SyntaxError, ValueError, TypeError, ZeroDivisionError):
        raise ClaimError(f"{contrast!r} is not a contrast such as d3d - rgb") from None
    if not isinstance(value, pd.Series):
        raise ClaimError(f"{contrast!r} names no arm: write a contrast such as d3d - rgb")
    return tree, names


def _parsed(contrast: str) -> tuple[ast.expr, dict[str, str]]:
    """Returns the syntax tree of a contrast, and the arm of each identifier; names of arms may contain a dot."""
    names: dict[str, str] = {}

    def identifier(match: re.Match) -> str:
        if match[0] in FUNCTIONS:
            return match[0]
        name = match[0].replace(".", "_dot_")
        names[name] = match[0]
        return name

    return ast.parse(re.sub(ARM_NAME, identifier, contrast), mode="eval").body, names


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
    claim_id = fields.get("id", "?")
    rule = fields.pop("rule", None)
    if not isinstance(rule, dict) or len(rule) != 1 or not set(rule) <= {"all", "report", "follows"}:
        raise ClaimError(f"claim {claim_id} needs a rule with one of: all, report, follows; it has {rule!r}")
    kind, body = next(iter(rule.items()))
    if not body:
        raise ClaimError(f"claim {claim_id} has an empty rule: {rule!r}")
    try:
        if kind == "follows":
            return Claim(**fields, follows=body)
        judged = kind == "all"
        conditions = tuple(_condition(claim_id, c, margins, judged=judged) for c in body)
        return Claim(**fields, judged=judged, conditions=conditions)
    except TypeError as error:
        raise ClaimError(f"claim {claim_id} is not well formed: {str(error).split(') ')[-1]}") from None


def _condition(claim_id: str, fields: dict[str, Any], margins: dict[str, float], *, judged: bool) -> Condition:
    condition = Condition(**fields)
    bound = condition.above if condition.above is not None else condition.below
    if not isinstance(condition.metric, str) or not isinstance(condition.contrast, str):
        raise ClaimError(f"claim {claim_id}: contrast and metric must be text, not {fields!r}")
    if bound is not None and type(bound) not in (int, float):
        raise ClaimError(f"claim {claim_id}: a bound must be a number, not {bound!r}")
    condition = replace(condition, equivalence_margin=margins.get(condition.metric.split("/")[-1]))
    bounds = (condition.above is not None) + (condition.below is not None)
    if bounds != judged:
        raise ClaimError(f"claim {claim_id}: a judged condition has one of above and below, a reported one neither")
    try:
        _checked(condition.contrast)
    except ClaimError as error:
        raise ClaimError(f"claim {claim_id}: {error}") from None
    return condition
