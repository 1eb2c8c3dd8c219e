"""Progress of long work: a bar in a terminal, a line every ten seconds in a log, and metrics per step in a file.

None of it ends the work: a line or a row for which the disk is too full is left out.
"""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from d3d.documents import DocumentError, parse_json, read_bytes
from d3d.files import write_atomic
from d3d.messages import printable

LOG_INTERVAL = 10.0  # seconds
MAX_BYTES = 256 * 2**20  # of a file of metrics


def print_line(line: str) -> None:
    """Prints a line at once, or later if its disk is full; if nobody reads it, sends this process SIGTERM."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        os.kill(os.getpid(), signal.SIGTERM)
    except OSError:
        pass  # the line stays in the buffer


def close_output() -> None:
    """Gives up lines that still cannot be printed, which would change the exit status; for the end of a process."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


class Progress:
    """Reports progress: a bar in a terminal, else a line every `LOG_INTERVAL` seconds.

    with Progress(120, "videos") as progress:
        progress.update(fields=250)        # 1 of 120 videos, 2.1 videos/s, 525.0 fields/s, 57 s left

    Args:
        total: Number of units to do.
        unit: Name of the units, plural.
        report: Receives each line.
        summary: Whether to report rates and duration at the end.
    """

    def __init__(self, total: int, unit: str, report: Callable[[str], None] = print, *, summary: bool = False) -> None:
        self.total, self.unit, self.report, self.summary = total, unit, report, summary
        self.done, self.counts = 0, {}
        self.start = self.last_report = time.perf_counter()
        self.bar = tqdm(
            total=total, unit=f" {unit}", file=sys.stderr, disable=None, leave=False, dynamic_ncols=True,
            smoothing=0,  # the rate since the start, as in the log: units can be reported several at a time
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        self.bar.close()
        if self.summary and error_type is None:
            self.report(f"{self._rates()}, took {format_duration(time.perf_counter() - self.start)}")

    def update(self, **counts: float) -> None:
        """Counts one more unit as done, and `counts` of other things, whose rates are also reported."""
        self.done += 1
        self.bar.update()
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        now = time.perf_counter()
        if self.bar.disable and now - self.last_report >= LOG_INTERVAL:
            self.last_report = now
            remaining = (self.total - self.done) * (now - self.start) / self.done
            self.report(f"{self._rates()}, {format_duration(remaining)} left")

    def log(self, line: str) -> None:
        """Reports a line, above the bar if there is one."""
        if self.bar.disable:
            self.report(line)
        else:
            self.bar.clear()
            self.report(line)
            self.bar.refresh()

    def _rates(self) -> str:
        seconds = max(1e-9, time.perf_counter() - self.start)
        counts = {self.unit: self.done} | self.counts
        rates = "".join(f", {count / seconds:.1f} {name}/s" for name, count in counts.items())
        return f"{self.done} of {self.total} {self.unit}{rates}"


def format_duration(seconds: float) -> str:
    """Formats seconds as in `95 s`, `10 min` or `3 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class MetricsFile:
    """A file of metrics, one JSON object per line, each with the `time` of writing in seconds since 1970.

    Args:
        path: File to write.
        last_step: Step from which the run resumes: rows of later steps and an incomplete line are dropped. 0 starts an
            empty file.
        report: Receives a line when rows cannot be written, and when they can be again.
        check: Called before each write; what it raises is passed on, and nothing is written.

    Raises:
        OSError: The file cannot be started.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        last_step: int = 0,
        report: Callable[[str], None] = print,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.report, self.check, self.left_out = Path(path), report, check, 0
        self.check()
        rows = [row for row in read_metrics(self.path) if row.get("step", 0) <= last_step] if last_step else []
        write_atomic({self.path: "".join(json.dumps(row) + "\n" for row in rows).encode()})

    def append(self, row: dict[str, Any]) -> None:
        """Appends a row, or leaves it out if it cannot be written, as on a full disk."""
        self.check()
        try:
            self._append(json.dumps({"time": round(time.time(), 3)} | row) + "\n")
        except OSError as error:
            if not self.left_out:
                self.report(f"{self.path} cannot be written: {error.strerror}; work continues without its rows")
            self.left_out += 1
            return
        if self.left_out:
            self.report(f"{self.path} is written again, without {self.left_out} rows")
            self.left_out = 0

    def _append(self, line: str) -> None:
        """Writes the whole line or nothing."""
        content = line.encode()
        with self.path.open("ab", buffering=0) as file:
            size = file.tell()
            if file.write(content) < len(content):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads the rows of a `MetricsFile`, without an incomplete last line; empty if there is no file.

    Raises:
        DocumentError: for a line that is no row of metrics, naming it.
    """
    rows = []
    content = read_bytes(path, max_bytes=MAX_BYTES) if Path(path).is_file() else b""
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"}\n"):
            continue
        where = f"line {number} of {printable(path)}"
        row = parse_json(line, where, finite=False)  # the loss of a run that diverged
        if any(type(row.get(name, 0)) not in (int, float) for name in ("step", "epoch", "loss")):
            raise DocumentError(f"{where} is no row of metrics: step, epoch and loss must be numbers")
        rows.append(row)
    return rows
