"""Reads the claims and their rules from book/claims.yaml, and checks every key and value.

A rule is one of

    all: [{contrast: d3d - rgb_longer, metric: iid/top1, above: 0}, …]    every interval must lie beyond its bound
    measured: [{…, over: clips}, …]                                       as `all`, of those lines that the records have
    report: [{contrast: two_stream - rgb, metric: iid/top1}, …]           printed, not judged
    follows: H1                                                           takes the verdict of another claim

A contrast is arithmetic on arms (d3d/report/contrasts.py). A bound is a number, given as `above` or `below`. An
interval is one over seeds, or with `over: clips` the interval of one network over the clips that it was tested on; such
a claim says with `clips` how many there must be, as `seeds` says it of seeds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d3d.documents import DocumentError, Entry, check_entries, is_number, read_yaml
from d3d.messages import printable, shown
from d3d.report.contrasts import ClaimError, parse
from d3d.study.arms import NAME
from d3d.study.parameters import MAX_SEED

ID = re.compile(r"[A-Z]\d{1,3}[a-z]?")
# Metrics stand in tables and in code of Markdown.
METRIC = re.compile(r"\w[\w./+-]{0,199}")
KINDS = ("all", "measured", "report", "follows")


@dataclass(frozen=True)
class Condition:
    """One line of a rule; without a bound it is reported only.

    Attributes:
        contrast: arithmetic on arms, such as `d3d - rgb_longer`.
        metric: name of the metric, such as `iid/top1`.
        above: bound that the interval must lie above; None: no lower bound.
        below: bound that the interval must lie below; None: no upper bound.
        over: what the interval is over: seeds, or the clips of one network.
        equivalence_margin: a difference smaller than this counts as zero; None: the metric has no margin.
    """

    contrast: str
    metric: str
    above: float | None = None
    below: float | None = None
    over: str = "seeds"
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
        clips: minimum number of clips for a verdict by one network; None: the rule has no such condition.
        training: the shell command that measures it by training, where `command` evaluates weights; empty: none.
        judged: False for a claim that is reported only.
        any_measured: whether conditions that the records cannot decide are left out if others are decided.
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
    clips: int | None = None
    training: str = ""
    judged: bool = True
    any_measured: bool = False
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """All claims.

    Attributes:
        claims: the claims, in the order of the file.
        seeds: minimum number of seeds for a verdict.
        correction: the method that corrects for the number of claims, holm; empty: none.
    """

    claims: tuple[Claim, ...]
    seeds: int
    correction: str = ""


def read_claims(path: str | Path = "book/claims.yaml") -> Ledger:
    """Reads the ledger.

    Raises:
        ClaimError: the file is no YAML, a key is missing or unknown, a value is of another kind, a rule does not parse,
            or a claim follows one that does not exist.
        FileNotFoundError: there is no such file.
    """
    path, where = Path(path), printable(path)
    if not path.is_file():
        raise FileNotFoundError(f"no ledger of claims at {where}: run this at the root of the repository")
    try:
        content = read_yaml(path)
    except DocumentError as error:
        raise ClaimError(str(error)) from None
    if not isinstance(content, dict) or not isinstance(content.get("claims"), list) or not content["claims"]:
        raise ClaimError(f"{where} must hold seeds and a list of claims")
    _check(content, LEDGER_KEYS, where)
    margins = content.get("margins", {})
    for name, margin in margins.items():
        if not is_number(margin) or margin <= 0:
            raise ClaimError(f"{where}: the margin of {shown(name)} must be a number above 0, not {shown(margin)}")
    claims = tuple(_claim(fields, margins, f"{where}: claim {n}") for n, fields in enumerate(content["claims"], 1))
    ids = [claim.id for claim in claims]
    if duplicates := sorted({i for i in ids if ids.count(i) > 1}):
        raise ClaimError(f"{where} lists a claim twice: {', '.join(duplicates[:5])}")
    measured = [claim.id for claim in claims if not claim.follows]
    for claim in claims:
        if claim.follows and claim.follows not in measured:
            reason = f"follows {shown(claim.follows)}, which is not a claim with its own conditions"
            raise ClaimError(f"{where}: claim {claim.id} {reason}")
    return Ledger(claims, content["seeds"], content.get("correction", ""))


def _is_sentence(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


_SENTENCE = Entry("text on one line", _is_sentence, optional=False)
_OPTIONAL_SENTENCE = Entry("text on one line", _is_sentence)
_SEEDS = Entry(f"a whole number from 1 to {MAX_SEED}", lambda value: type(value) is int and 1 <= value <= MAX_SEED)
_BOUND = Entry("a finite number", is_number)
LEDGER_KEYS = {
    "seeds": Entry(_SEEDS.words, _SEEDS.passes, optional=False),
    "correction": Entry("holm", lambda value: value == "holm"),
    "margins": Entry("numbers by metric", lambda value: isinstance(value, dict)),
    "claims": Entry("a list of claims", lambda value: isinstance(value, list), optional=False),
}
CLAIM_KEYS = {
    "id": Entry(
        "a capital letter and a number, such as H1 or H2b",
        lambda value: isinstance(value, str) and bool(ID.fullmatch(value)),
        optional=False,
    ),
    "statement": _SENTENCE,
    "source": _SENTENCE,
    "command": _SENTENCE,
    "claimed": Entry("a finite number", is_number),
    "data": _OPTIONAL_SENTENCE,
    "seeds": _SEEDS,
    "clips": Entry("a whole number from 1 on", lambda value: type(value) is int and value >= 1),
    "training": _OPTIONAL_SENTENCE,
    "rule": Entry(
        f"a rule with one of: {', '.join(KINDS)}",
        lambda value: isinstance(value, dict) and len(value) == 1 and set(value) <= set(KINDS),
        optional=False,
    ),
}
CONDITION_KEYS = {
    "contrast": Entry("a contrast such as d3d - rgb", lambda value: isinstance(value, str), optional=False),
    "metric": Entry(
        "the name of a metric such as iid/top1",
        lambda value: isinstance(value, str) and bool(METRIC.fullmatch(value)),
        optional=False,
    ),
    "above": _BOUND,
    "below": _BOUND,
    "over": Entry("clips", lambda value: value == "clips"),
}


def _check(fields: Any, keys: Mapping[str, Entry], where: str) -> None:
    """Checks the keys and values of a mapping; `where` names it in errors."""
    if not isinstance(fields, dict):
        raise ClaimError(f"{where} must map {', '.join(keys)} to values, not be {shown(fields)}")
    if unknown := sorted(set(fields) - set(keys)):
        raise ClaimError(f"{where} has the unknown key {shown(unknown[0])}; there are {', '.join(keys)}")
    check_entries(fields, keys, where, ClaimError)


def _claim(fields: Any, margins: Mapping[str, float], where: str) -> Claim:
    """Makes a claim from its keys; `where` names it in errors by its number in the file."""
    if isinstance(fields, dict) and _is_sentence(fields.get("id")):
        where = f"{where.rpartition(' ')[0]} {fields['id'][:20]}"
    _check(fields, CLAIM_KEYS, where)
    kind, body = next(iter(fields["rule"].items()))
    plain = {name: value for name, value in fields.items() if name != "rule"}
    if kind == "follows":
        if not isinstance(body, str) or not body:
            raise ClaimError(f"{where}: follows must be the id of another claim, not {shown(body)}")
        return Claim(**plain, follows=body)
    if not isinstance(body, list) or not body:
        raise ClaimError(f"{where}: {kind} must list one condition or more, not {shown(body)}")
    judged = kind in ("all", "measured")
    conditions = tuple(
        _condition(condition, margins, f"{where}, condition {n}", judged=judged) for n, condition in enumerate(body, 1)
    )
    if ("clips" in fields) != any(condition.over == "clips" for condition in conditions):
        raise ClaimError(f"{where}: clips, a number, and conditions over clips need each other")
    return Claim(**plain, judged=judged, any_measured=kind == "measured", conditions=conditions)


def _condition(fields: Any, margins: Mapping[str, float], where: str, *, judged: bool) -> Condition:
    _check(fields, CONDITION_KEYS, where)
    if ("above" in fields) + ("below" in fields) != judged:
        raise ClaimError(f"{where}: a judged condition has one of above and below, a reported one neither")
    try:
        parse(fields["contrast"])
    except ClaimError as error:
        raise ClaimError(f"{where}: {error}") from None
    if "over" in fields and not (NAME.fullmatch(fields["contrast"]) and fields["metric"].endswith("/top1")):
        raise ClaimError(f"{where}: only the top1 of one arm has an interval over clips")
    return Condition(**fields, equivalence_margin=margins.get(fields["metric"].split("/")[-1]))
