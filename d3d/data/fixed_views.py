"""Video clips as rendered ones are: the test views of a split in memory, with TV-L1 as their true flow.

data = load(config.data, seed=0, streams=("rgb", "flow"))
fixed_views(data.splits["jhmdb/test"]).true_flow
"""

import numpy as np
import torch
from torch import Tensor

from d3d.data.clips import Clips
from d3d.data.views import VideoClips
from d3d.video.repeats import find_repeats

# Clips read at once.
BATCH = 32


def fixed_views(clips: VideoClips) -> Clips:
    """Reads the test views of all clips of a split; those of files that cannot be read are left out.

    Args:
        clips: a split with both streams.

    Returns:
        The views, with TV-L1 flow as both `flow` and `true_flow`. `mask` is set, in the whole frame, for fields that
        lead to a new frame: not to one that repeats the one before, whose flow is about zero whatever moves, and not
        back to the first frame of a short clip, which is looped. `table` has one row per view, and in `group` that of
        the clip.

    Raises:
        ValueError: no clip can be read.
    """
    bound, rows = clips.view.bound, np.arange(len(clips))
    rgb, flow, new, index = [], [], [], []
    for batch in clips.batches(
        [(part, ()) for part in np.split(rows, range(BATCH, len(rows), BATCH))], ("rgb", "flow")
    ):
        if len(batch.index):
            rgb.append((batch.inputs["rgb"] * 255).round().byte())
            flow.append((batch.inputs["flow"] * bound).half())
            lengths = clips.sizes[batch.index.cpu().numpy(), 0]
            new += [_leads_to_a_new_frame(x, int(length)) for x, length in zip(rgb[-1].cpu(), lengths, strict=True)]
            index.append(batch.index.cpu().numpy())
    if not index:
        raise ValueError("no clip of a split could be read")
    read = np.concatenate(index)
    true_flow, device = torch.cat(flow), clips.labels.device
    mask = torch.stack(new).to(device)[:, :, None, None].expand(-1, -1, *true_flow.shape[3:])
    table = clips.table.iloc[read].reset_index(drop=True).assign(group=clips.groups[read])
    labels = clips.labels[torch.from_numpy(read).to(device)]
    return Clips(torch.cat(rgb), true_flow, true_flow, mask, labels, table, bound)


def _leads_to_a_new_frame(rgb: Tensor, length: int) -> Tensor:
    """Whether each field of a view leads to a new frame: bool (T,); the last field repeats the one before.

    Args:
        rgb: uint8 (3, T, H, W).
        length: frames of the clip, which is looped if they are fewer than T.
    """
    frames = rgb.shape[1]
    new = torch.ones(frames, dtype=torch.bool)
    new[:-1] = ~find_repeats(rgb.transpose(0, 1))[1:]
    new[torch.arange(1, frames + 1) % min(length, frames) == 0] = False
    new[-1] = new[-2]
    return new
