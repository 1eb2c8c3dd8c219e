"""The controls of distillation: teachers that know a clip's class, but nothing of its motion, or have not seen it."""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pandas as pd

from d3d.data.clips import ClipSet


def class_means(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns for each clip the mean output of its class, float32 (N, D); clips whose output is nan are left out.

    Args:
        outputs: (N, D), a teacher's outputs for the training clips.
        labels: (N,).
    """
    return pd.DataFrame(outputs).groupby(labels).transform("mean").to_numpy(np.float32, copy=True)


def draw_partners(labels: np.ndarray, classes: Sequence[str], seed: int) -> np.ndarray:
    """Draws for each clip another one of its class, each exactly once: int64 (N,).

    The clips of a class form one random cycle, so no clip is its own partner, and over an epoch the partners' outputs
    are those of the clips themselves in another order.

    Args:
        labels: (N,), labels of the training clips.
        classes: names of the classes, by label.
        seed: the run's seed.

    Raises:
        ValueError: if a class has only one clip.
    """
    rng = np.random.default_rng((seed, crc32(b"partners")))
    partners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise ValueError(
                f"outputs 'shuffled' needs two training clips per class, and class {classes[label]!r} has one: add "
                "clips, or use outputs 'class_mean'"
            )
        partners[members] = np.roll(members, 1)
    return partners


def draw_halves(labels: np.ndarray, sources: np.ndarray, seed: int) -> np.ndarray:
    """Divides clips into halves 1 and 2, class by class: int64 (N,).

    Clips of one source stay together; those of a class differ in number by at most the clips of one source.

    Args:
        labels: (N,), labels of the training clips.
        sources: (N,), what each clip was cut from; clips of one source have one label.
        seed: the run's seed.
    """
    rng = np.random.default_rng((seed, crc32(b"halves")))
    halves = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        counts = [0, 0]
        for source in rng.permutation(np.unique(sources[members])):
            clips = members[sources[members] == source]
            smaller = int(counts[1] < counts[0])
            halves[clips] = 1 + smaller
            counts[smaller] += len(clips)
    return halves


def halves_of(clips: ClipSet, seed: int) -> np.ndarray:
    """Returns `draw_halves` of a training split; video files have sources, each sprite is its own."""
    sources = clips.table["group"].to_numpy() if "path" in clips.table else np.arange(len(clips))
    return draw_halves(clips.labels.cpu().numpy(), sources, seed)
