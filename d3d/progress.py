"""How far long work is: a bar in a terminal, a line every ten seconds in a log, and numbers by the step in a file."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from d3d.files import write_atomic

EVERY = 10.0  # seconds between lines


class Progress:
    """Counts `total` things done, and what else comes of them.

    with Progress(120, "videos") as progress:
        progress.step(fields=250)          # 1 of 120 videos, 2.1 videos/s, 525.0 fields/s, 57 s left
    """

    def __init__(self, total: int, what: str, report: Callable[[str], None] = print, *, closing: bool = False) -> None:
        self.total, self.what, self.report, self.closing = total, what, report, closing
        self.done, self.amounts = 0, {}
        self.began = self.told = time.perf_counter()
        self.bar = tqdm(total=total, unit=f" {what}", file=sys.stderr, disable=None, leave=False, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.bar.close()
        if self.closing and kind is None:
            self.report(f"{self._rates()}, took {duration(time.perf_counter() - self.began)}")

    def step(self, **amounts: float) -> None:
        """One more is done."""
        self.done += 1
        self.bar.update()
        for name, amount in amounts.items():
            self.amounts[name] = self.amounts.get(name, 0) + amount
        now = time.perf_counter()
        if self.bar.disable and now - self.told >= EVERY:
            self.told = now
            left = (self.total - self.done) * (now - self.began) / self.done
            self.report(f"{self._rates()}, {duration(left)} left")

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self.bar.disable:
            self.report(line)
        else:
            self.bar.clear()
            self.report(line)
            self.bar.refresh()

    def _rates(self) -> str:
        seconds = max(1e-9, time.perf_counter() - self.began)
        counted = {self.what: self.done} | self.amounts
        rates = "".join(f", {count / seconds:.1f} {name}/s" for name, count in counted.items())
        return f"{self.done} of {self.total} {self.what}{rates}"


def duration(seconds: float) -> str:
    """Such as `95 s` or `3 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class MetricsFile:
    """Rows of numbers, one JSON object a line, each with the `time` it was written at in seconds since 1970.

    A run that goes on where it was killed goes on in its file: rows of steps after the one it goes on from are dropped,
    and so is a line that was cut.
    """

    def __init__(self, path: str | Path, *, keep: int = 0) -> None:
        self.path = Path(path)
        kept = [row for row in read_metrics(self.path) if row.get("step", 0) <= keep] if keep else []
        write_atomic({self.path: "".join(json.dumps(row) + "\n" for row in kept).encode()})

    def append(self, row: dict[str, Any]) -> None:
        """Raises OSError naming the file where the disk does not take it."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"time": round(time.time(), 3)} | row) + "\n")
        except OSError as error:
            raise OSError(error.errno, f"{self.path} cannot be written: {error.strerror}") from None


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows so far; empty where there is no file. A line that is being written is left for later."""
    path = Path(path)
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]
