"""The book's page of evidence: every claim with its conditions as measured, and the command that measures them."""

from collections.abc import Iterable
from pathlib import Path

from d3d.report import effects
from d3d.report.clips import ClipScores
from d3d.report.labels import number_text
from d3d.report.ledger import Finding, Verdict
from d3d.study import records

HEAD = """# The evidence

Every claim, its conditions as measured, and the command that measures them. Each number is a mean over seeds with its
95 % confidence interval (Student's t). *Detectable* is the distance from the bound that so many seeds, with the spread
that was seen, would have shown with a probability of 80 %. *Over seeds and clips* is the 95 % interval of a bootstrap
that draws both seeds and test clips, for accuracies whose predictions are published; it decides nothing. The commands
of the rows B1 to B11 need the data sets, prepared as in [Bring your own video](../videos.md). A network that starts
from weights of another data set gets a new classifier.
"""


def page(verdicts: Iterable[Verdict], results: Path) -> str:
    """Returns the page as Markdown.

    Args:
        verdicts: on all claims.
        results: the records behind them, as a folder or a published file.
    """
    clips = ClipScores(results) if records.is_archive(results) else None
    blocks = [HEAD]
    for verdict in verdicts:
        claim = verdict.claim
        blocks.append(f"## {claim.id} · {verdict.word}\n\n{claim.statement} *({claim.source})*\n")
        blocks.append(f"{verdict.reason[:1].upper()}{verdict.reason[1:]}.\n")
        blocks += ["- `{}`: {}".format(*finding_text(f, clips).split(": ")) for f in verdict.findings]
        blocks.append(f"\n```sh\n{claim.command}\n```\n")
    return "\n".join(blocks)


def finding_text(finding: Finding, clips: ClipScores | None = None) -> str:
    """Prints a condition as the ledger has it, what was measured, and for a judged one what could have been seen."""
    condition = finding.condition
    required = f" {'>' if condition.side > 0 else '<'} {condition.bound:g}" if condition.side else ""
    over = f" over {finding.interval.n:,} clips" if condition.over == "clips" and finding.interval else ""
    text = f"{condition.contrast}{required} on {condition.metric}{over}: {number_text(finding.interval, signed=True)}"
    if condition.side and len(finding.values) > 1:
        text += f"; detectable {effects.detectable(finding.values):.3f}"
    over_seeds = condition.over == "seeds" and finding.interval
    over_clips = clips.interval(condition) if clips and condition.side and over_seeds else None
    if over_clips:
        low, high = (f"{end:+.3f}".replace("-", "−") for end in (over_clips.low, over_clips.high))
        text += f"; over seeds and clips [{low}, {high}]"
    return text
