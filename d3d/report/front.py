"""The findings and claims of the front page, and their copy in README.md.

The sentences are written in book/index.md; their numbers come from the published study. `front_numbers` refuses records
that contradict a sentence.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from d3d.report.claims import Condition, read_claims
from d3d.report.comparisons import holds, ratio_condition
from d3d.report.labels import NEEDS_DATA, number_text, percent_text
from d3d.report.ledger import REFUTED, SUPPORTED, Verdict, judge, measure, verdict_of
from d3d.report.prose import condition_outcomes
from d3d.report.wording import arm_text, decision_text, difference_text, join_names
from d3d.study import records
from d3d.study.parameters import SPRITE_CLASSES
from d3d.study.plan import PUBLISHED

BEGIN, END = "<!-- findings", "<!-- end of findings -->"
GLUED = re.compile(r"\{glue:text\}`chapters/verdict\.ipynb::(\w+):s`")


def front_numbers() -> dict[str, str]:
    """The numbers of the front page by the names that it glues, with their 95 % intervals.

    Raises:
        ValueError: a sentence of the front page no longer follows from the published records.
    """
    return _numbers(*_published())


def _published() -> tuple[pd.DataFrame, list[Verdict]]:
    table = records.load(PUBLISHED)
    return table, judge(read_claims(), table)


def _numbers(table: pd.DataFrame, verdicts: Sequence[Verdict]) -> dict[str, str]:
    h2 = verdict_of(verdicts, "H2")
    texture = next(f.condition for f in h2.findings if f.condition.metric.endswith("/texture/accuracy"))
    holds(table, "two_stream - rgb_rgb", "iid/top1", above=0)
    holds(table, "d3d - rgb_longer", "decorrelated/top1", above=0)
    holds(table, texture.contrast, texture.metric, below=texture.above)
    holds(table, "d3d - two_stream", "iid/top1", below=0)
    motion, appearance = condition_outcomes(h2)
    if motion.count(SUPPORTED) != 1 or REFUTED in motion or appearance.count(REFUTED) != 1:
        raise ValueError(
            "book/index.md says that of H2's conditions one on motion is met, none violated, and one on "
            f"appearance violated; now they are: {', '.join(motion)}; {', '.join(appearance)}"
        )
    clips = records.of_first_seed(PUBLISHED, "train", ["rgb"])[0].params
    closed = ratio_condition(verdicts, "H3")
    closed_longer = Condition(closed.contrast.replace("d3d", "rgb_longer"), closed.metric)
    return {
        "front_two_stream": arm_text(table, "two_stream", "iid/top1"),
        "front_rgb_rgb": arm_text(table, "rgb_rgb", "iid/top1"),
        "front_gap": _positive(table, "two_stream - rgb_rgb", "iid/top1"),
        "front_gain": difference_text(table, "d3d - rgb_longer", "iid/top1"),
        "front_gain_decorrelated": _positive(table, "d3d - rgb_longer", "decorrelated/top1"),
        "front_texture": _positive(table, "rgb_longer - d3d", texture.metric),
        "front_texture_bound": f"{-texture.above:g}",
        "front_conditions": str(len(motion) + len(appearance)),
        "front_motion": str(len(motion)),
        "front_motion_met": str(motion.count(SUPPORTED)),
        "front_motion_undecided": str(sum(word not in (SUPPORTED, REFUTED) for word in motion)),
        "front_motion_failed": str(motion.count(REFUTED)),
        "front_appearance": str(len(appearance)),
        "front_appearance_violated": str(appearance.count(REFUTED)),
        "front_par": _positive(table, "two_stream - d3d", "iid/top1"),
        "front_closed": percent_text(measure(table, closed).interval),
        "front_closed_longer": percent_text(measure(table, closed_longer).interval),
        "front_closed_bound": f"{closed.above:.0%}".replace("%", " %"),
        "front_seeds": str(read_claims().seeds),
        "front_frames": str(clips["frames"]),
        "front_size": str(clips["size"]),
        "front_classes": str(SPRITE_CLASSES),
    }


def _positive(table: pd.DataFrame, contrast: str, metric: str) -> str:
    """Formats a difference whose direction the sentence around it names, so without its sign."""
    return number_text(measure(table, Condition(contrast, metric)).interval)


def claims_text(verdicts: Sequence[Verdict]) -> str:
    """The claims of the abstract as a Markdown table, verdict first, and the rows of the paper's tables in a line."""
    lines = ["| verdict | claim, and what decided it |", "|---|---|"]
    for verdict in verdicts:
        if verdict.claim.id.startswith("A"):
            basis = next((v for v in verdicts if v.claim.id == verdict.claim.follows), verdict)
            decided = f"Decided by hypothesis {basis.claim.id}: {decision_text(basis)}"
            lines.append(f"| **{verdict.word}** | **{verdict.claim.id}** {verdict.claim.statement}<br>{decided} |")
    by_word: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.claim.id.startswith("B"):
            by_word.setdefault(verdict.word, []).append(verdict.claim.id)
    rows = "; ".join(f"{join_names(ids)}: **{word}**" for word, ids in by_word.items())
    needed = "." if NEEDS_DATA not in by_word else ", because the paper's data sets were not available."
    return "\n".join([*lines, "", f"The rows of the paper's result tables, {rows}{needed}"])


def readme_findings() -> str:
    """The findings of book/index.md with their numbers, and the claims, as Markdown for README.md.

    Raises:
        ValueError: book/index.md lacks a marker, or glues a number that `front_numbers` does not have.
    """
    page = Path("book/index.md").read_text()
    if BEGIN not in page or END not in page:
        raise ValueError(f"book/index.md must hold the markers {BEGIN!r} and {END!r}")
    findings = page.split(BEGIN)[1].split("-->", 1)[1].split(END)[0].strip()
    table, verdicts = _published()
    numbers = _numbers(table, verdicts)
    if unknown := set(GLUED.findall(findings)) - set(numbers):
        raise ValueError(f"book/index.md glues {min(unknown)!r}, which front_numbers does not have")
    return f"{GLUED.sub(lambda match: numbers[match[1]], findings)}\n\n{claims_text(verdicts)}"
