"""Frames that repeat the one before, as the conversion of a slower video to a faster frame rate inserts them."""

import torch
from torch import Tensor
from torch.nn import functional as F

# The largest mean difference of a repeated frame over blocks of 8 x 8 pixels, in levels of 255. On JHMDB it has two
# modes with a gap at 5 to 8; the mean over whole frames has no gap, since motion may be slow or local.
BLOCK, MAX_LEVELS = 8, 6.0
# A repeat also differs far less than its neighbours: a scene that stands still has no repeats.
NEIGHBOURS, QUANTILE, MAX_RATIO = 3, 0.75, 0.3


def find_repeats(frames: Tensor) -> Tensor:
    """Finds frames that repeat the one before, up to noise and compression.

    Args:
        frames: uint8 (T, 3, H, W), consecutive frames, of about 128 pixels on the short side.

    Returns:
        bool (T,); the first frame is never a repeat.
    """
    repeats = torch.zeros(len(frames), dtype=torch.bool)
    if len(frames) < 2 or min(frames.shape[2:]) < BLOCK:
        return repeats
    difference = (frames[1:].short() - frames[:-1].short()).abs().float().mean(1, keepdim=True)
    largest = F.avg_pool2d(difference, BLOCK).amax((1, 2, 3))
    padded = F.pad(largest, (NEIGHBOURS, NEIGHBOURS), value=torch.nan)
    around = padded.unfold(0, 2 * NEIGHBOURS + 1, 1).clone()
    around[:, NEIGHBOURS] = torch.nan
    usual = around.nanquantile(QUANTILE, dim=1)
    repeats[1:] = (largest < MAX_LEVELS) & (largest < MAX_RATIO * usual)
    return repeats
