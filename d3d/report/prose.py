"""Sentences of the chapters, made from records and verdicts: they read right whatever was measured."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from d3d.report.comparisons import (
    CONTROLS,
    EXPLORING,
    GROUPED,
    STRESSED,
    against_controls,
    explored,
    halves,
    over_endpoints,
    share,
    variants,
    versus,
)
from d3d.report.labels import contrast_label, label, metric_label, number_text
from d3d.report.ledger import (
    NEEDS_DATA,
    REFUTED,
    SUPPORTED,
    Condition,
    Finding,
    Verdict,
    measure,
    outcome,
    read_claims,
    verdict_of,
)
from d3d.report.stats import interval

# The words of a verdict as they stand after `is` or `are`.
STANDING = {NEEDS_DATA: "waiting for data"}
# Comparisons that chapters show and no claim is judged by.
SHOWN_CONTRASTS = [
    ("two_stream_logits - two_stream", "iid/top1"),
    ("d3d - two_stream_logits", "iid/top1"),
    ("flow - rgb", "iid/motion/top1"),
    ("flow - rgb", "iid/appearance/top1"),
    ("flow_exact - flow", "iid/top1"),
    ("rgb_rgb", "iid/top1_gain"),
    ("d3d_rgb - rgb_rgb", "iid/top1_gain"),
    ("rgb - flow", "Mixed_4f/motion/r2_within"),
    ("rgb - flow", "Mixed_4f/target_epe"),
]


def arm_text(rows: pd.DataFrame, arm: str, metric: str) -> str:
    """An arm's metric over its seeds, as `number_text` writes it."""
    values = rows[(rows["arm"] == arm) & (rows["metric"] == metric)]["value"]
    return number_text(interval(values) if len(values) else None)


def difference_text(table: pd.DataFrame, contrast: str, metric: str) -> str:
    """A contrast over its seeds, as `number_text` writes it, with its sign."""
    return number_text(measure(table, Condition(contrast, metric)).interval, signed=True)


def streams(table: pd.DataFrame, *, seeds: int) -> str:
    """Whether the two streams complement each other, in two sentences."""
    gap = measure(table, Condition("two_stream - rgb_rgb", "iid/top1", above=0))
    opening = {
        SUPPORTED: "The two streams complement each other",
        REFUTED: "The two streams complement each other less than two RGB networks do",
    }.get(outcome(gap, seeds), "It is not shown that the two streams complement each other")
    if gap.interval and gap.interval.n < seeds:
        opening = (
            f"With {gap.interval.n} of {seeds} seeds it is not judged yet whether the two streams complement each other"
        )
    together = arm_text(table, "two_stream", "iid/top1")
    groups = [difference_text(table, "flow - rgb", f"iid/{group}/top1") for group in ("motion", "appearance")]
    return (
        f"{opening}: their top-1 together is {together}, and the difference to that of two RGB networks is "
        f"{number_text(gap.interval, signed=True)}. Flow minus RGB is {groups[0]} on the motion pairs and {groups[1]} "
        "on the appearance pairs."
    )


def missing_motion(found: Sequence[Verdict], table: pd.DataFrame) -> str:
    """H1 in two sentences: whether motion is missing, and how much."""
    verdict, asks = verdict_of(found, "H1"), share(found, "H1")
    first = {
        SUPPORTED: "The spatial stream is missing motion that it could hold.",
        REFUTED: "By the rule fixed beforehand, the spatial stream is not missing motion that it could hold.",
    }.get(verdict.word, f"Whether the spatial stream is missing motion that it could hold {_undecided(verdict)}.")
    rgb, tuned, random = (arm_text(table, arm, asks.metric) for arm in ("rgb", "tuned", "random"))
    m = number_text(measure(table, Condition(asks.contrast, asks.metric)).interval)
    return (
        f"{first} At {asks.metric.split('/')[0]} the error of decoded flow on the target, in px a frame, is {rgb} from "
        f"RGB, {tuned} from the same network tuned for flow and {random} from random weights; of what tuning takes "
        f"away from the error of random weights, RGB still has the share m = {m}."
    )


def _undecided(one: Verdict) -> str:
    return "is not measured" if one.word == NEEDS_DATA else f"is {one.word}: {one.reason}"


def distillation(found: Sequence[Verdict], table: pd.DataFrame) -> str:
    """H2 and H3 in two sentences: whether distillation puts motion there, and whether D3D equals two streams."""
    puts = {
        SUPPORTED: "Distillation puts motion into the spatial stream without losing appearance",
        REFUTED: "By the rule fixed beforehand, distillation does not put motion into the spatial stream without "
        "losing appearance",
    }.get(
        verdict_of(found, "H2").word,
        "It is not shown that distillation puts motion into the spatial stream without losing appearance",
    )
    equals = {
        SUPPORTED: "D3D is on par with two-stream",
        REFUTED: "D3D does not meet the conditions of being on par with two-stream",
    }.get(verdict_of(found, "H3").word, "it is not shown that D3D is on par with two-stream")
    tested = share(found, "H1").metric.split("/")[0]
    motion = difference_text(table, "d3d - rgb_longer", f"{tested}/motion/r2_within")
    longer, gap = (difference_text(table, f"d3d - {arm}", "iid/top1") for arm in ("rgb_longer", "two_stream"))
    asks = share(found, "H3")
    parts = [asks.contrast, asks.contrast.replace("d3d", "rgb_longer")]
    recovered, without = (number_text(measure(table, Condition(part, asks.metric)).interval) for part in parts)
    return (
        f"{puts}, and {equals}. D3D minus RGB-longer is {motion} in within-class R² of motion at {tested} and {longer} "
        f"in top-1, D3D minus two-stream is {gap} in top-1, and the part of the gap from RGB to two-stream that D3D "
        f"recovers is {recovered}; RGB-longer recovers {without}."
    )


def best_ablation(table: pd.DataFrame) -> str:
    """The most accurate student other than D3D itself, against RGB-longer, in a sentence; empty where there is none."""
    arms = variants(table)
    found = dict(zip(arms, versus(table, arms, "iid/top1", base="rgb_longer"), strict=True))
    means = {arm: finding.interval.mean for arm, (_, finding) in found.items() if finding.interval}
    if not means:
        return ""
    best = max(means, key=means.get)
    gain = number_text(found[best][1].interval, signed=True)
    taught = difference_text(table, f"{best} - rgb_teacher", "iid/top1")
    return (
        f"The best of the {len(means)} students that differ from D3D in one thing is {label(best)}: minus RGB-longer "
        f"it is {gain} in top-1, minus RGB-teacher {taught}; some of that is the luck of the best of {len(means)}."
    )


def changes(table: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """At which endpoints D3D differs from its controls with the whole interval, as a Markdown table; `titles` names the
    scores."""
    lines = ["| | D3D − RGB-longer | D3D − RGB-teacher |", "|---|---|---|"]
    for score, name in titles.items():
        cells = [_where(over_endpoints(table, f"d3d - {control}", score)) for control in CONTROLS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _where(found: pd.DataFrame) -> str:
    """Endpoints at which an interval lies above zero, and those at which it lies below; three on end as `a to c`."""
    sides = {"above zero at": found["low"] > 0, "below at": found["high"] < 0} if len(found) else {}
    told = []
    for word, beyond in sides.items():
        runs = found[beyond].groupby((~beyond).cumsum())["endpoint"].agg(list)
        names = [n for run in runs for n in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else run)]
        told += [f"{word} {listed(names)}"] if names else []
    return "; ".join(told) or "nowhere"


def exploration(settled: pd.DataFrame) -> str:
    """What D3D has over its controls where streams trained longer, in two sentences; empty where that was not run."""
    if settled.empty:
        return ""
    first, last = halves(settled).values()
    asks = [measure(last, Condition(f"d3d - {control}", "iid/top1", above=0)) for control in CONTROLS]
    held = all(outcome(finding, len(EXPLORING)) == SUPPORTED for finding in asks)
    longer, teacher = (number_text(finding.interval, signed=True) for finding in asks)
    trained = difference_text(settled, "rgb_longer - rgb", "iid/top1")
    gap = difference_text(first, "d3d - two_stream", "iid/top1")
    return (
        "Where the streams trained longer, which was explored after the study's numbers were known, RGB-longer minus "
        f"RGB is {trained} in top-1. On the seeds that confirm, D3D minus RGB-longer is {longer} and D3D minus "
        f"RGB-teacher {teacher}, {'both' if held else 'not both'} above zero; on the seeds that explored, D3D minus "
        f"two-stream is {gap}."
    )


def without_looks(table: pd.DataFrame) -> str:
    """What D3D has over its controls on clips whose looks do not help, which no claim asks for, in a sentence."""
    longer, teacher = (difference_text(table, f"d3d - {control}", "decorrelated/top1") for control in CONTROLS)
    return (
        f"Reported, not tested: on decorrelated clips, where looks do not help, D3D minus RGB-longer is {longer} and "
        f"D3D minus RGB-teacher {teacher} in top-1."
    )


def ensembles(found: Sequence[Verdict], table: pd.DataFrame) -> str:
    """H4 in two sentences, the gain of two RGB networks beside it."""
    opening = {
        SUPPORTED: "Ensembles add to D3D.",
        REFUTED: "By the rule fixed beforehand, ensembles do not add to D3D.",
    }.get(verdict_of(found, "H4").word, "It is not shown that ensembles add to D3D.")
    gains = {arm: difference_text(table, arm, "iid/top1_gain") for arm in ("d3d_d3d", "d3d_rgb", "rgb_rgb")}
    beside = difference_text(table, "d3d_rgb - rgb_rgb", "iid/top1_gain")
    return (
        f"{opening} Top-1 over the better member: {', '.join(f'{label(a)} {text}' for a, text in gains.items())}; the "
        f"gain of D3D + RGB minus that of RGB + RGB is {beside}."
    )


def verdict(found: Sequence[Verdict]) -> str:
    """The whole ledger in two sentences: the paper's claims, then the hypotheses and the rows of its tables."""
    claims, rows, hypotheses = (_standings([v for v in found if v.claim.id[0] == kind]) for kind in "ABH")
    return (
        f"Of the paper's claims, {claims}. Of this study's hypotheses, {hypotheses}; of the rows of the paper's "
        f"tables, {rows}."
    )


def _standings(found: Sequence[Verdict]) -> str:
    by_word: dict[str, list[str]] = {}
    for one in found:
        by_word.setdefault(standing(one), []).append(one.claim.id)
    return listed([f"{listed(ids)} {'is' if len(ids) == 1 else 'are'} {word}" for word, ids in by_word.items()])


def standing(one: Verdict) -> str:
    """The word of a verdict as it stands after `is` or `are`."""
    return STANDING.get(one.word, one.word)


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; three or more that are numbered on, such as H5, H6, H7, as `H5 to H7`."""
    parts: list[list[str]] = []
    for name in names:
        last = parts[-1][-1] if parts else ""
        follows = name[1:].isdigit() and last[1:].isdigit() and name == f"{last[0]}{int(last[1:]) + 1}"
        parts[-1:] = [[*parts[-1], name]] if follows else [*parts[-1:], [name]]
    words = [word for part in parts for word in ([f"{part[0]} to {part[-1]}"] if len(part) > 2 else part)]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def why(one: Verdict) -> str:
    """What a verdict comes from, in words: the conditions that decided it, or what there is too little of."""
    if one.claim.follows:
        return f"as {one.claim.follows}"
    if absent := dict.fromkeys(metric_label(f.condition.metric) for f in one.findings if f.interval is None):
        return one.reason if one.claim.data else f"not measured: {'; '.join(absent)}"
    if not one.deciding:
        return one.reason
    counted = f"{sum(outcome(f, 2) == SUPPORTED for f in one.findings)} of {len(one.findings)} conditions hold"
    word = "closest to its bound" if one.word == SUPPORTED else one.word
    return f"{counted}; {word}: {one.reason}"


def plainly(found: Iterable[Verdict]) -> str:
    """The paper's claims and this study's hypotheses with their verdicts in words, as a Markdown table."""
    lines = ["| | claim | verdict | what decided |", "|---|---|---|---|"]
    for one in found:
        if one.claim.id[0] != "B":
            lines.append(f"| **{one.claim.id}** | {one.claim.statement} | **{standing(one)}** | {why(one)} |")
    return "\n".join(lines)


def every_comparison(found: Sequence[Verdict], table: pd.DataFrame, settled: pd.DataFrame) -> str:
    """Every comparison made, as a Markdown table: those of the claims, and after them those that chapters only show,
    the exploration's (`settled`) among them.

    Those of the paper's tables come last. Curves over endpoints are not among them.
    """
    seeds = read_claims().seeds
    given = [(v.claim, f) for v in found if not v.claim.follows for f in v.findings]
    head = ["| claim | comparison | in | seeds | mean and 95 % interval | asked | |", "|---|---|---|---|---|---|---|"]
    lines = []
    for claim, finding in given:
        said = outcome(finding, claim.seeds or seeds)
        lines.append(_comparison(claim.id, finding, f"test: {said}" if claim.judged else "reported"))
    shown_only = [measure(table, Condition(contrast, metric)) for contrast, metric in SHOWN_CONTRASTS]
    shown_only += against_controls(table, GROUPED + STRESSED)
    for base in ("d3d", "rgb_longer"):
        shown_only += [finding for _, finding in versus(table, variants(table), "iid/top1", base=base)]
    lines += [_comparison("—", finding, "reported") for finding in shown_only]
    lines += [_comparison("—", finding, f"explored: {where}") for where, finding in explored(table, settled)]
    return "\n".join([*head, *sorted(lines, key=lambda line: line.startswith("| B"))])


def _comparison(claim: str, finding: Finding, said: str) -> str:
    condition, (bound, side) = finding.condition, finding.condition.asked
    asks = f"{'>' if side > 0 else '<'} {bound:g}".replace("-", "−") if side else ""
    n = finding.interval.n if finding.interval else 0
    what = contrast_label(condition.contrast)
    numbers = number_text(finding.interval, signed=True)
    return f"| {claim} | {what} | {metric_label(condition.metric)} | {n} | {numbers} | {asks} | {said} |"
