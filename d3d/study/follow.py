"""Snakemake's output as one line per finished notebook, with the time left.

    snakemake … 2>&1 | python -m d3d.study.follow

Each job of the Snakefile ends with a line `finished FILE SECONDS`. Jobs on a cluster print into logs of their own; of
those, Snakemake says which files they make, that they have finished, or that they have failed.
"""

import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from d3d.progress import format_duration
from d3d.study import records

# Seconds per job at smoke scale on two cores: used, in proportion, until a rule's first job has been timed.
TYPICAL = {
    "train": 20, "distill": 15, "fuse": 5, "compare": 5, "leak": 20, "tvl1": 10, "probe": 60, "attribution": 20,
    "detect": 30, "chapter": 8, "book": 45, "flow": 30, "comparison": 5,
}  # fmt: skip
FINISHED = re.compile(r"finished (\S+) (\d+)")
# Paragraphs of Snakemake about a job on a cluster, and their indented lines.
ABOUT_JOB = re.compile(r"((?:local)?rule|Error in rule) (\w+):")
ITEM = re.compile(r"    (\w+): (.*)")
ENDED_ELSEWHERE = re.compile(r"Finished jobid: (\d+) \(Rule: \w+\)")
CHECK_LOG = " (check log file(s) for error details)"
STARTED_AGAIN = re.compile(r"Trying to restart job (\d+)\.")
COUNT = re.compile(r"(\w+) +(\d+)")
# Lines of Snakemake that say nothing a reader needs.
NOISE = re.compile(
    r"\s*$|Select jobs|Execute \d+ jobs|Assuming unrestricted|Building DAG|Using shell|Provided |Rules claiming|"
    r"Complete log|Job stats|job +count|-+ +-+$|total +\d+$|\d+ of \d+ steps|Finished job|\[.*\d{4}\]$|Reasons:|"
    r"Using workflow specific profile|SLURM run ID|Job \d+ has been submitted|Cleaning up SLURM log files"
)


class Timing:
    """Estimates how long the remaining jobs take from those that are finished."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.remaining: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {}

    def finish(self, rule: str, seconds: float) -> None:
        self.remaining[rule] -= 1
        self.seconds.setdefault(rule, []).append(seconds)

    def left(self, now: float) -> float:
        """Seconds until all jobs are finished, if as many run at once as did so far."""
        busy = sum(map(sum, self.seconds.values()))
        scale = busy / sum(TYPICAL.get(rule, 10) * len(times) for rule, times in self.seconds.items())
        at_once = max(1.0, busy / max(1.0, now - self.started))
        return sum(max(0, jobs) * self._mean(rule, scale) for rule, jobs in self.remaining.items()) / at_once

    def _mean(self, rule: str, scale: float) -> float:
        times = self.seconds.get(rule)
        return sum(times) / len(times) if times else TYPICAL.get(rule, 10) * scale


def follow(lines: Iterable[str], *, clock=time.monotonic) -> Iterator[str]:
    """The lines to print: one per finished job, and what Snakemake says beside its progress.

    Args:
        lines: Snakemake's output with its job counts, as it comes.
        clock: seconds, from any origin.
    """
    timing = Timing(clock())
    jobs = ClusterJobs()
    total = done = 0
    for line in map(str.rstrip, lines):
        if jobs.read(line):
            continue
        yield from jobs.failures()
        if again := STARTED_AGAIN.fullmatch(line):
            yield f"starting {jobs.files.get(again[1], f'job {again[1]}')} again"
        elif finished := FINISHED.fullmatch(line) or jobs.finished(line):
            path, seconds = Path(finished[1]), float(finished[2])
            done += 1
            timing.finish(_rule(path), seconds)
            left = f"; about {format_duration(timing.left(clock()))} left" if done < total else ""
            yield f"{done:3d}/{max(total, done)}  {_headline(path, seconds)}{left}"
            if path.suffix == ".md":  # made to be read at once
                yield f"\n{path.read_text()}"
        elif (count := COUNT.fullmatch(line)) and count[1] in TYPICAL:
            timing.remaining[count[1]] = int(count[2])
            total = timing.remaining.total()
        elif not NOISE.match(line) and not COUNT.fullmatch(line):
            yield line
    yield from jobs.failures()


class ClusterJobs:
    """What Snakemake says about jobs on a cluster.

    Attributes:
        files: the first file that each job makes, by Snakemake's number of the job.
    """

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.paragraph: dict[str, str] | None = None  # the one that is being read
        self.failed: list[dict[str, str]] = []

    def read(self, line: str) -> bool:
        """Reads a line; returns whether it belongs to a paragraph about a job."""
        if start := ABOUT_JOB.fullmatch(line):
            self.paragraph = {}
            if start[1] == "Error in rule":
                self.failed.append(self.paragraph)
        elif self.paragraph is None or not line.startswith("    "):
            self.paragraph = None
            return False
        elif item := ITEM.fullmatch(line):
            self.paragraph[item[1]] = item[2]
            if {"jobid", "output"} <= self.paragraph.keys():
                self.files[self.paragraph["jobid"]] = self.paragraph["output"].split(", ")[0]
        return True

    def finished(self, line: str) -> tuple[str, str, float] | None:
        """Returns for the line of a finished job what a match of FINISHED has: the line, the file and the seconds."""
        ended = ENDED_ELSEWHERE.fullmatch(line)
        if not ended or ended[1] not in self.files:
            return None
        path = self.files[ended[1]]
        return line, path, records.read(path).provenance["seconds"] if path.endswith(".json") else 0.0

    def failures(self) -> Iterator[str]:
        """Yields a line per job that has failed, once."""
        for about in self.failed:
            job = f" (job {about['external_jobid']})" if "external_jobid" in about else ""
            log = f", see {about['log'].removesuffix(CHECK_LOG)}" if "log" in about else ""
            yield f"failed: {about.get('output', 'a job').split(', ')[0]}{job}{log}"
        self.failed.clear()


def _rule(path: Path) -> str:
    if path.suffix == ".md":
        return path.stem
    return {"chapters": "chapter", "html": "book"}.get(path.parent.name, path.parent.name)


def _headline(path: Path, seconds: float) -> str:
    if path.suffix == ".json":
        record = records.read(path)
        return records.headline(replace(record, provenance=record.provenance | {"seconds": seconds}))
    return f"{_rule(path):<12} {path.stem:<55} {seconds:6.1f} s"


if __name__ == "__main__":
    # Ctrl-C reaches Snakemake too, whose last lines are still to be shown.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for text in follow(sys.stdin):
        print(text, flush=True)
