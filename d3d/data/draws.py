"""Random numbers that depend on names and indices alone, so that the same draw is the same on every machine."""

from zlib import crc32

import numpy as np


class CounterRng:
    """Draws uniform numbers that depend on (name, index, key) alone: SplitMix64 (Steele et al. 2014).

    The names seed the numbers: changing one changes the draws.

    Args:
        name: name of all draws, such as a split and its seed.
        index: uint64 (B,), one number is drawn for each entry.
    """

    def __init__(self, name: str, index: np.ndarray) -> None:
        self.key = _mix(np.asarray(index, dtype=np.uint64) + np.uint64(crc32(name.encode()) << 20))

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Returns uniform numbers (B,) in [low, high)."""
        bits = _mix(self.key ^ np.uint64(crc32(name.encode())))
        return low + (high - low) * ((bits >> np.uint64(11)).astype(np.float64) / 2.0**53)

    def integer(self, name: str, n: int | np.ndarray) -> np.ndarray:
        """Returns uniform whole numbers (B,) from 0 to n - 1."""
        return np.floor(self(name) * n).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
