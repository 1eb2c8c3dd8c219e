"""Times of packets and frames where a file does not state them well.

continuous, shown = Continuous(tick, jumps=True), ShownTicks()
continuous.adjust(packet, step)                           # before decoding
ticks = shown.of(frame)                                   # after decoding
"""

from collections import deque
from fractions import Fraction

import av

# Seconds by which a time may fall before the one before it, and may exceed it where a format lets times jump; beyond
# them the film is continued without a gap, as by the ffmpeg command.
MAX_BACKWARD, MAX_FORWARD = 0.1, 10.0
# Packets by which decoding times that FFmpeg guesses may be out of order: codecs reorder at most 16.
MAX_REORDERED = 16


def in_seconds(ticks: int, tick: Fraction) -> float:
    """The same as float(ticks * tick), in a quarter of the time."""
    return ticks * tick.numerator / tick.denominator


class Continuous:
    """Moves the times of packets that follow a restart or a jump, as in recordings that were joined.

    The ffmpeg command does so in formats that let times jump. In others it shows the frames after a restart late or not
    at all; here they follow too, for a film is to be seen whole.

    Args:
        tick: Seconds per tick of the stream.
        jumps: Whether the format lets times jump; in others a gap is a frame that stays on screen, and a small step
            back a wrong guess.
    """

    def __init__(self, tick: Fraction, *, jumps: bool) -> None:
        self.tick, self.jumps = tick, jumps
        self.shift, self.expected = 0, 0
        self.recent: deque[int] = deque(maxlen=MAX_REORDERED + 1)

    def adjust(self, packet: av.Packet, step: int) -> None:
        """Changes a packet's times; `step` is its duration in ticks."""
        if packet.dts is not None:
            dts = packet.dts + self.shift
            if self.recent and self._breaks(dts):
                self.shift += self.expected - dts
                dts = self.expected
            self.recent.append(dts)
            self.expected = dts + step
        if self.shift:
            packet.dts = None if packet.dts is None else packet.dts + self.shift
            packet.pts = None if packet.pts is None else packet.pts + self.shift

    def _breaks(self, dts: int) -> bool:
        if not self.jumps:
            return len(self.recent) > MAX_REORDERED and dts < min(self.recent)
        backward, forward = self.recent[-1] - dts, dts - self.expected
        return backward * self.tick > MAX_BACKWARD or forward * self.tick > MAX_FORWARD


class ShownTicks:
    """Chooses between a frame's presentation and decoding time as the ffmpeg command does.

    FFmpeg guesses presentation times that a format does not store, sometimes wrongly where a codec reorders frames. The
    times that have increased more steadily so far are right.
    """

    def __init__(self) -> None:
        self.last_pts = self.last_dts = float("-inf")
        self.faulty_pts = self.faulty_dts = 0

    def of(self, frame: av.VideoFrame) -> int | None:
        """Ticks at which the next frame in order is shown, None if it has no time."""
        pts, dts = frame.pts, frame.dts
        if dts is not None:
            self.faulty_dts += dts <= self.last_dts
        if pts is not None:
            self.faulty_pts += pts <= self.last_pts
        if pts is not None or dts is not None:
            self.last_dts, self.last_pts = pts if dts is None else dts, dts if pts is None else pts
        return pts if pts is not None and (dts is None or self.faulty_pts <= self.faulty_dts) else dts
