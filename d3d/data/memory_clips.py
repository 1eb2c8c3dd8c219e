"""Clips of video files in the memory of one device, from which views are cut inside a captured training step."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d3d.data.clips import ClipsInMemory
from d3d.data.views import VideoClips, ViewSpec, negate_x, to_input


@dataclass(frozen=True, kw_only=True)
class MemoryClips(VideoClips, ClipsInMemory):
    """The clips of one split, decoded once and kept as bytes, of any length and size.

    Attributes:
        table: as in `FileClips`.
        labels: int64 (N,).
        view: how views are cut.
        sizes: int64 (N, 3), frames, height and width of each clip.
        pixels: maps each stream to the pixels of all clips, uint8 (P, C), frame by frame and line by line; flow is
            ZERO + STEPS * flow / bound.
        starts: maps each stream to the first pixel of each clip, int64 (N,), on the device.
        sizes_on_device: a copy of `sizes`.
        partners: as in `ClipSet`.
    """

    table: pd.DataFrame
    labels: Tensor
    view: ViewSpec
    sizes: np.ndarray
    pixels: dict[str, Tensor]
    starts: dict[str, Tensor]
    sizes_on_device: Tensor
    partners: np.ndarray | None = None

    def _subset(self, rows: np.ndarray) -> dict[str, Any]:
        index = torch.from_numpy(rows).to(self.labels.device)
        starts = {stream: x[index] for stream, x in self.starts.items()}
        return {"sizes": self.sizes[rows], "starts": starts, "sizes_on_device": self.sizes_on_device[index]}

    def _input(self, stream: str, views: Tensor) -> Tensor:
        row, first, top, left, mirrored = views.unsqueeze(-1).unbind(1)  # (V, 1) each
        frames, height, width = self.sizes_on_device[row[:, 0]].unsqueeze(-1).unbind(1)
        side = torch.arange(self.view.size, device=row.device)
        x = left + torch.where(mirrored.bool(), side.flip(0), side)
        line = (first + self._frame_order(stream, frames))[:, :, None] * height[:, None] + (top + side)[:, None]
        pixel = self.starts[stream][row][:, :, None] + line * width[:, None]
        levels = self.pixels[stream][pixel[..., None] + x[:, None, None]]
        return to_input(negate_x(levels, mirrored[:, 0].bool()) if stream == "flow" else levels, stream)

    def _frame_order(self, stream: str, frames: Tensor) -> Tensor:
        """Returns the frames or fields of a view (V, T), counted from its first, looped as `clip_reader` does.

        Args:
            stream: rgb or flow.
            frames: (V, 1), frames of each clip.
        """
        looped = frames.clamp(max=self.view.frames)
        order = torch.arange(self.view.frames, device=frames.device) % looped
        if stream == "flow":
            order = torch.minimum(order, looped - 2)
            # No field leads to a frame that the RGB stream does not see.
            order = torch.cat([order[:, :-1], order[:, -2:-1] if self.view.frames > 1 else order], 1)
        return order
