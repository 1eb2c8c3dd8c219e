"""The order in which a run uses its training clips, drawn from the seed alone."""

from zlib import crc32

import numpy as np

from d3d.data.clips import ClipSet
from d3d.study.parameters import TrainConfig


def steps_of(config: TrainConfig, clips: ClipSet, steps_per_epoch: int) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """Lists for each step its clips, as rows of the split's table, and the seeds of their random views.

    Every labelled clip is used once per epoch. If there are unlabelled clips, a step has as many of them as it has
    labelled ones, in turn, and none is used again before all have been.

    Args:
        config: the run's configuration.
        clips: the training clips.
        steps_per_epoch: number of steps per epoch, whose sizes differ by at most one labelled clip.
    """
    # A twin trains on the clips of its seed, in another order.
    seed = config.run.seed, config.run.twin
    order = np.random.default_rng(seed)
    epochs = range(config.optimiser.epochs)
    steps = [
        (rows, (*seed, epoch))
        for epoch in epochs
        for rows in np.array_split(order.permutation(clips.num_labelled), steps_per_epoch)
    ]
    further = np.arange(clips.num_labelled, len(clips))
    if not len(further):
        return steps
    further_order = np.random.default_rng((*seed, crc32(b"unlabelled")))
    passes = -(-clips.num_labelled * len(epochs) // len(further))
    unlabelled = np.concatenate([further_order.permutation(further) for _ in range(passes)])
    ends = np.cumsum([len(rows) for rows, _ in steps])
    # Alternating, so that processes and micro-batches have labelled and unlabelled clips alike.
    return [
        (np.stack([rows, unlabelled[end - len(rows) : end]], 1).ravel(), seeds)
        for (rows, seeds), end in zip(steps, ends, strict=True)
    ]
