"""Key frames with the boxes and actions of their actors: what detectors are trained and tested on, wherever it lies.

for batch in key_frames.clips("rgb", [rows]):
    batch.rows, batch.clips                  # the clip around each key frame, as the network sees it
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class KeyFrameBatch(NamedTuple):
    """Clips around key frames.

    Attributes:
        rows: int64 (B,), which key frames.
        clips: float32 (B, C, T, H, W), the input of a network.
        mirrored: bool (B,), whether left and right are exchanged.
    """

    rows: np.ndarray
    clips: Tensor
    mirrored: Tensor


class KeyFrames(ABC):
    """Key frames of one split; those of rendered scenes lie in memory, those of video files on disk.

    Attributes:
        boxes: float32 (N, 4): x1, y1, x2, y2 of every actor, fractions of the frame.
        scene_of_box: int64 (N,), ascending, the key frame of each box.
        labels: (N, K), 1 for each action of an actor, else 0.
        actions: the number of each of the K actions in AVA's files.
    """

    boxes: Tensor
    scene_of_box: Tensor
    labels: Tensor
    actions: Sequence[int]

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """The device of boxes, labels and clips."""
        return self.boxes.device

    @abstractmethod
    def clips(
        self, stream: str, batches: Sequence[np.ndarray], draws: Sequence[tuple[int, ...]] = ()
    ) -> Iterator[KeyFrameBatch]:
        """Yields the clips of one batch after another; a batch may lack key frames whose file cannot be read.

        Args:
            stream: what the network sees, rgb or flow.
            batches: rows of each batch.
            draws: for training, the seeds of each batch's random views; empty: as they are.
        """


class Actors:
    """Chooses the boxes that a training step sees: equally many of every key frame, so that all steps have one shape.

    A key frame with fewer fills up with its own boxes again, so that the statistics of batch norm are those of actors;
    these repeats have no part in the loss. Of a key frame with more, each step draws some anew.

    Args:
        key_frames: the training key frames.
        most: boxes per key frame.
    """

    def __init__(self, key_frames: KeyFrames, most: int) -> None:
        self.key_frames, self.most = key_frames, most
        numbers = torch.arange(len(key_frames), device=key_frames.device)
        self.first, end = (torch.searchsorted(key_frames.scene_of_box, numbers, side=s) for s in ("left", "right"))
        self.count = end - self.first

    def of(self, batch: KeyFrameBatch, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the boxes of a batch with their labels.

        Returns:
            Boxes (B, M, 4), labels float32 (B, M, K), and float32 (B, M), 1 where a box counts, 0 where it is a repeat.
        """
        rows = torch.from_numpy(batch.rows).to(self.key_frames.device)
        count, place = self.count[rows, None], torch.arange(self.most, device=rows.device)
        start = torch.from_numpy(rng.integers(0, 2**31, (len(rows), 1))).to(rows.device)
        start = torch.where(count > self.most, start % count, 0)
        source = self.first[rows, None] + (start + place) % count
        boxes = self.key_frames.boxes[source]
        x1, y1, x2, y2 = boxes.unbind(2)
        mirrored = torch.stack([1 - x2, y1, 1 - x1, y2], 2)
        boxes = torch.where(batch.mirrored[:, None, None], mirrored, boxes)
        return boxes, self.key_frames.labels[source].float(), (place < count).float()
