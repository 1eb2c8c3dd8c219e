"""Clips of video files, decoded by worker processes as they are needed.

clips = FileClips(table=table, labels=labels, view=ViewSpec(frames=64, size=224, fps=25, short_side=256, bound=20))
requests = [([0, 1], (seed, epoch))]                      # rows of the table and the seeds of their random views
for batch in clips.batches(requests, ("rgb", "flow")): ...
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d3d.data.clip_reader import ReadKey, Window, read_clips
from d3d.data.clips import PARTNER, Batch, BatchRequest
from d3d.data.views import FIRST, LEFT, MIRRORED, ROW, TOP, VideoClips, ViewSpec, clip_sizes, to_input
from d3d.video.decode import VideoError


@dataclass(frozen=True, kw_only=True)
class FileClips(VideoClips):
    """The clips of one split, stored in video files.

    Attributes:
        table: one row per clip with path, label, start and end in seconds, seconds of the whole file, and height and
            width of its frames in pixels; for the flow stream also flow, the path of its flow fields.
        labels: int64 (N,), on the device of the batches.
        view: how views are cut.
        damaged: "skip" leaves out unreadable files and adds them to `refused`; "raise" raises VideoError.
        workers: number of processes that decode; 0: this process decodes.
        refused: maps the path of each unreadable file to the reason; grows while clips are read.
        partners: as in `ClipSet`.
    """

    table: pd.DataFrame
    labels: Tensor
    view: ViewSpec
    damaged: str = "skip"
    workers: int = 1
    refused: dict[str, str] = field(default_factory=dict)
    partners: np.ndarray | None = None
    in_memory = False

    def batches(self, requests: Iterable[BatchRequest], streams: Sequence[str]) -> Iterator[Batch]:
        """Yields one batch per request, without the clips that cannot be read.

        Args:
            requests: rows of the table, and the seeds of their random views; no seeds: all test views of each row.
            streams: inputs of the batches, rgb or flow, or partner_rgb or partner_flow.

        Yields:
            The readable views, maybe none; `index` repeats the row of a clip for each of its views.

        Raises:
            VideoError: a file cannot be read and `damaged` is "raise".
            ChildProcessError: a worker died; names the file that it was reading.
        """
        requests = list(requests)
        decoded = self._read(key for request in requests for key in self._read_keys(request, streams))
        for request in requests:
            readable: list[tuple[int, dict[str, Tensor]]] = []
            for row, _ in self._read_keys(request, streams):
                read_row, views_or_reason = next(decoded)
                if isinstance(views_or_reason, str):
                    if self.damaged == "raise":
                        raise VideoError(views_or_reason)
                    self.refused[self.table["path"].iat[read_row]] = views_or_reason
                else:
                    readable.append((row, views_or_reason))
            yield self._batch(readable, streams)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Frames, height and width of each clip, int64 (N, 3)."""
        return clip_sizes(self.table, self.view)

    def _read_keys(self, request: BatchRequest, streams: Sequence[str]) -> Iterator[ReadKey]:
        """Yields what must be read for one request; consecutive views of the same frames are read together."""
        views = self.draw(*request)
        parts: dict[bool, tuple[list[list[int]], dict[str, str]]] = {}
        for name in streams:
            stream, part = self._part_of(name, views)
            parts.setdefault(name.startswith(PARTNER), (part.tolist(), {}))[1][name] = stream

        def frames_of(i: int) -> list[list[int]]:
            return [[part[i][k] for k in (ROW, FIRST, MIRRORED)] for part, _ in parts.values()]

        for _, group in groupby(range(len(views)), frames_of):
            lines = list(group)
            windows = [
                Window(*frames, tuple((part[i][TOP], part[i][LEFT]) for i in lines), inputs)
                for frames, (part, inputs) in zip(frames_of(lines[0]), parts.values(), strict=True)
            ]
            yield int(views[lines[0], ROW]), tuple(windows)

    def _batch(self, readable: list[tuple[int, dict[str, Tensor]]], streams: Sequence[str]) -> Batch:
        device = self.labels.device
        repeated_rows = [row for row, views in readable for _ in range(len(views[streams[0]]))]
        index = torch.tensor(repeated_rows, dtype=torch.long, device=device)
        inputs = {}
        for name in streams if readable else ():
            views_of_clips = [views[name] for _, views in readable]
            stacked = torch.empty(len(index), *views_of_clips[0].shape[1:], dtype=torch.uint8, device=device)
            slots = stacked.split([len(views) for views in views_of_clips])
            for slot, views in zip(slots, views_of_clips, strict=True):
                slot.copy_(views)
            inputs[name] = to_input(stacked, name.removeprefix(PARTNER))
        return Batch(index, self.labels[index], inputs)

    def _read(self, keys: Iterator[ReadKey]) -> Iterator[tuple[int, dict[str, Tensor] | str]]:
        """Yields, per key, its row and its views by input, or the row whose file cannot be read and why."""
        yield from read_clips(self.table, self.view, self.sizes, keys, self.workers)
