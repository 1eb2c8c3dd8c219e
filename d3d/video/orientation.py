"""The orientation in which a file wants its frames shown, from the display matrix that cameras and editors write.

upright = orientation(frame).apply(image)
"""

import struct
from math import atan2, degrees, hypot
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type

# Degrees by which an angle may differ from a multiple of 90 and still be one, as in the ffmpeg command.
TOLERANCE = 1.0


class Orientation(NamedTuple):
    """One of the eight ways to lay an image on a rectangle: first transposed, then mirrored.

    Attributes:
        transposed: Rows become columns.
        mirrored: Left and right are exchanged.
        inverted: Top and bottom are exchanged.
    """

    transposed: bool = False
    mirrored: bool = False
    inverted: bool = False

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Lays out an image (H, W) or (H, W, C)."""
        if not any(self):
            return image
        if self.transposed:
            image = image.swapaxes(0, 1)
        return np.ascontiguousarray(image[:: -1 if self.inverted else 1, :: -1 if self.mirrored else 1])


UPRIGHT = Orientation()


def orientation(frame: av.VideoFrame) -> Orientation:
    """Reads a decoded frame's display matrix; without one, the frame is upright as it is.

    All eight orientations are those of the ffmpeg command. Any other angle is left as it is: ffmpeg would rotate by
    exactly this angle and fill the corners with black, which would be part of the image for a network.
    """
    matrix = frame.side_data.get(Type.DISPLAYMATRIX) if frame.side_data else None
    if matrix is None:
        return UPRIGHT
    # Column vectors of the image's axes: x maps to (a, b), y to (c, d).
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    scale_x, scale_y = hypot(a, c), hypot(b, d)
    if not scale_x or not scale_y:
        return UPRIGHT
    angle = degrees(atan2(b / scale_y, a / scale_x)) % 360
    quarters, rest = divmod(angle + TOLERANCE, 90)
    if rest > 2 * TOLERANCE:
        return UPRIGHT
    return Orientation(True, c < 0, b < 0) if quarters % 2 else Orientation(False, a < 0, d < 0)
