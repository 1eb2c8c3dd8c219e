"""Snakemake's output as one line per finished notebook, with the time left.

    snakemake … 2>&1 | python -m d3d.study.follow

Each job of the Snakefile ends with a line `finished FILE SECONDS`.
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
COUNT = re.compile(r"(\w+) +(\d+)")
# Lines of Snakemake that say nothing a reader needs.
NOISE = re.compile(
    r"\s*$|Select jobs|Execute \d+ jobs|Assuming unrestricted|Building DAG|Using shell|Provided |Rules claiming|"
    r"Complete log|Job stats|job +count|-+ +-+$|total +\d+$|\d+ of \d+ steps|Finished job|\[.*\d{4}\]$|Reasons:"
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
    total = done = 0
    for line in map(str.rstrip, lines):
        if finished := FINISHED.fullmatch(line):
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
