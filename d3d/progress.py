"""How far long work is: a bar in a terminal, a line every ten seconds in a log."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

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
