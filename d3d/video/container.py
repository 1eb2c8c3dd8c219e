"""Opens a video file, chooses its stream, and gives the times of its frames.

with VideoFile("swim.mp4") as video:
    for frame, end in video.frames_from(0.0):
        image = video.to_image(frame, "rgb24")
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice, pairwise
from pathlib import Path

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from d3d.files import printable
from d3d.video.orientation import orientation

# A file that lasts less than this fraction of the duration in its header is truncated.
MIN_COMPLETE = 0.95
# FFmpeg also opens text files and still images as videos.
NON_VIDEO_FORMATS = ("tty", "image2", "_pipe")
# Formats whose packets have exact times and can be sought; files of others are decoded from their first frame.
INDEXED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
# Formats that state a duration for each stream which is that of the whole file.
FILE_DURATION_FORMATS = ("asf", "asf_o")
# Seconds before the requested time to seek to, tried in turn: an index may mark frames as key frames that are not.
SEEK_MARGINS = (0.0, 2.0, 10.0, 60.0)
# Seconds by which a time may fall before the one before it, and may exceed it where a format lets times jump; beyond
# them the file is continued without a gap, as the ffmpeg command does.
MAX_BACKWARD, MAX_FORWARD = 0.1, 10.0
# Codecs of cover pictures, and the number of packets among which a film has a second picture.
PICTURE_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegls", "ljpeg", "apng", "jpegxl")
FILM_PACKETS = 200


class VideoError(ValueError):
    """A file that cannot be read correctly; the message names the file and the reason."""


class VideoFile:
    """An open file's video stream: its frames in order, with their times in seconds since the first frame.

    Attributes:
        path: The file.
        rate: Average frames per second.
        tolerance: Seconds by which times may differ from exact ones.
        origin: The first frame's time in the file, None until it is decoded.
        height, width: Pixels of the first frame, upright; 0 until it is decoded.
        end: Seconds at which the last frame that was read ends.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = printable(path)
        if os.path.exists(path) and not os.path.isfile(path):
            raise VideoError(f"{self.path} is not a regular file")
        # Without the protocol, FFmpeg would take what precedes a colon in a name as one.
        self.address = f"file:{os.fspath(path)}"
        self.index: int | None = None
        self._open()
        name = self.container.format.name
        # If the time base is finer than a frame, rounded times may be off by up to one tick; otherwise they are exact.
        tick = float(self.stream.time_base)
        self.rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.tolerance = 0.75 * tick if tick < 0.25 / self.rate else 1e-6
        self.indexed = name in INDEXED_FORMATS
        flags = self.container.format.flags
        self.edited = name == INDEXED_FORMATS[0]
        self.jumps = bool(flags & Flags.ts_discont.value)
        # Of files without times or an index FFmpeg guesses the duration from the last time or the bit rate.
        self.estimated = self.jumps or bool(flags & Flags.generic_index.value)
        # AVI stores no presentation times, and FFmpeg guesses them wrongly if a codec reorders frames.
        self.uses_dts = name == "avi"
        self.origin: float | None = None
        self.height, self.width, self.end = 0, 0, 0.0
        self.reformatter = VideoReformatter()

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _open(self) -> None:
        """Opens the file at its start and chooses a stream.

        Raises:
            VideoError: If it cannot be opened or holds no video that can be decoded.
        """
        self.container = self._open_container()
        self.furthest = 0.0  # the latest end of any stream that was read, seconds in the file
        try:
            if self.index is None:
                self.index = self._choose_stream()
        except BaseException:
            self.container.close()
            raise
        self.stream = self.container.streams[self.index]
        # One core per file: several files are read in parallel.
        self.stream.codec_context.thread_count = 1

    def _open_container(self) -> av.container.InputContainer:
        try:
            # Metadata may be in any encoding, and a playlist must not open other addresses.
            return av.open(self.address, metadata_errors="ignore", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", error)
            raise VideoError(f"{self.path} cannot be opened as a video: {reason}") from None

    def _choose_stream(self) -> int:
        """Returns the index of the stream to show: of those marked default the one with the largest images.

        This is the choice of the ffmpeg command, except that ffmpeg prefers a stream of 5 million pixels more to the
        default one. Cover pictures are never taken, whether they are marked as such or not.
        """
        videos = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        container_format = self.container.format
        if not videos or container_format.name.endswith(NON_VIDEO_FORMATS):
            kind = container_format.long_name or container_format.name
            raise VideoError(f"{self.path} holds no video stream: its format is {kind}")
        decodable = [s for s in videos if s.codec_context is not None]
        if not decodable:
            raise VideoError(f"{self.path} holds a video in a format that cannot be decoded")
        films = [s for s in decodable if len(videos) == 1 or not self._is_picture(s)] or decodable
        return max(films, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height, -s.index)).index

    def _is_picture(self, stream: av.VideoStream) -> bool:
        """Whether a stream beside others is a single picture."""
        if stream.codec_context.name not in PICTURE_CODECS or stream.frames > 1:
            return False
        if stream.frames == 1:
            return True
        with self._open_container() as container:
            packets = islice(container.demux(video=list(range(len(container.streams.video)))), FILM_PACKETS)
            return sum(p.stream_index == stream.index and p.size > 0 for p in packets) < 2

    def to_image(self, frame: av.VideoFrame, pixel_format: str) -> np.ndarray:
        """Converts a frame to an upright image of the size of the file's first frame.

        A frame of another size is scaled, bicubically, as the ffmpeg command does.

        Args:
            frame: A frame of this file.
            pixel_format: FFmpeg's name of a pixel format.

        Returns:
            uint8 (H, W, 3) for "rgb24", (H, W) for "gray".
        """
        turn = orientation(frame)
        height, width = (self.width, self.height) if turn.transposed else (self.height, self.width)
        scaled = (height, width) != (frame.height, frame.width)
        image = self.reformatter.reformat(
            frame, width, height, pixel_format, interpolation="BICUBIC" if scaled else None
        )  # fmt: skip
        return turn.apply(image.to_ndarray())

    def frames_from(self, start: float) -> Iterator[tuple[av.VideoFrame, float]]:
        """Yields the frames that are on screen at `start` seconds or later, each with the time at which it ends.

        Raises:
            VideoError: If a frame is damaged or the file ends before the duration in its header.
        """
        timed = self._decode_from_key_frame(start) if self.indexed and start > 1 / self.rate else self._decode()
        damaged = False
        for (seconds, frame), (end, _) in pairwise(chain(timed, [(None, None)])):
            # Damage spreads to all frames up to the next key frame.
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            if end is None:
                self.end = end = seconds + self._frame_duration(frame)
            # From the start on, frames that are on screen for no time count too.
            if end > start + self.tolerance or not start:
                if damaged:
                    raise VideoError(f"{self.path} is damaged at {seconds:.2f} s")
                yield frame, end
        self._require_complete()

    def measure_duration(self) -> float:
        """Seconds from the first frame to the end of the last, of a file at its start.

        An indexed file is not decoded beyond its first frame: its packets have the times of its frames. Files of other
        formats are decoded.

        Raises:
            VideoError: If no frame can be decoded, a packet is damaged or the file ends before the duration in its
                header.
        """
        if not self.indexed:
            for _ in self.frames_from(0.0):
                pass
        else:
            last = 0.0
            with self._errors_named():
                for packet in self._packets():
                    if self.origin is None:
                        for frame in packet.decode():
                            self._seconds(frame, 0.0)
                    ticks = packet.dts if self.uses_dts or packet.pts is None else packet.pts
                    if ticks is not None and not packet.is_discard:
                        duration = packet.duration * packet.time_base if packet.duration else 1 / self.rate
                        last = max(last, float(ticks * packet.time_base + duration))
            self.end = last - (self.origin or 0.0)
            self._require_complete()
        if self.origin is None:
            raise VideoError(f"{self.path} has no frame that can be decoded")
        return self.end

    def _packets(self) -> Iterator[av.Packet]:
        """Demuxes the stream from the current position; where times restart or jump, moves all that follow."""
        tick = self.stream.time_base
        shift, last, expected = 0, None, None
        for packet in self.container.demux() if self._states_file_duration() else self.container.demux(self.stream):
            if packet.pts is not None:
                self.furthest = max(self.furthest, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            # A packet without data stands for an image that is shown again; to a decoder it would be the end.
            if packet.stream.index != self.index or (not packet.size and packet.dts is not None):
                continue
            # The pieces of an edit list overlap in packets that are not shown.
            if packet.dts is not None and not self.edited:
                step = packet.duration or round(1 / self.rate / tick)
                dts = packet.dts + shift
                if last is not None and (
                    (dts - last) * tick < -MAX_BACKWARD or (self.jumps and (dts - expected) * tick > MAX_FORWARD)
                ):
                    shift += expected - dts
                    dts = expected
                last, expected = dts, dts + step
            if shift:
                packet.dts = None if packet.dts is None else packet.dts + shift
                packet.pts = None if packet.pts is None else packet.pts + shift
            yield packet

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decodes from the current position, each frame with its seconds since the file's first frame."""
        end, previous = 0.0, None
        with self._errors_named():
            for packet in self._packets():
                for frame in packet.decode():
                    seconds = self._seconds(frame, end)
                    # Decoders give frames in the order in which they are shown, whatever their times say.
                    previous = seconds = seconds if previous is None else max(previous, seconds)
                    yield seconds, frame
                    end = seconds + self._frame_duration(frame)

    def _decode_from_key_frame(self, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decodes from a key frame at or before `start`."""
        next(self._decode(), None)  # sets the origin
        for margin in SEEK_MARGINS:
            if start <= margin or self.origin is None:
                break
            target = self.origin + start - margin
            try:
                self.container.seek(int(target / self.stream.time_base), stream=self.stream)
            except (av.FFmpegError, OSError):
                break
            timed = self._decode()
            # Frames before the key frame may refer to frames that were skipped.
            key = next(((seconds, frame) for seconds, frame in timed if frame.key_frame), None)
            if key is not None and key[0] <= start + self.tolerance:
                return chain([key], timed)
        # A file need not have a frame at time 0 to seek to.
        self.container.close()
        self._open()
        return self._decode()

    def _seconds(self, frame: av.VideoFrame, expected: float) -> float:
        """A frame's seconds since the first, `expected` if it has no time; the first of all sets the origin."""
        ticks = frame.dts if self.uses_dts or frame.pts is None else frame.pts
        absolute = expected + (self.origin or 0.0) if ticks is None else float(ticks * frame.time_base)
        if self.origin is None:
            self.origin, self.height, self.width = absolute, frame.height, frame.width
            if orientation(frame).transposed:
                self.height, self.width = self.width, self.height
        return absolute - self.origin

    def _frame_duration(self, frame: av.VideoFrame) -> float:
        return float(frame.duration * frame.time_base) if frame.duration and not self.uses_dts else 1 / self.rate

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Turns FFmpeg's errors into VideoError with the file's name."""
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path} is damaged: {error.strerror}") from None

    def _require_complete(self) -> None:
        stated, read = self._stream_duration(), self.end
        if self._states_file_duration():
            stated, read = self.container.duration / av.time_base, self.furthest
        if read < MIN_COMPLETE * stated - 0.1:
            raise VideoError(
                f"{self.path} is truncated: it has {read:.1f} of the {stated:.1f} seconds that its header states"
            )

    def _states_file_duration(self) -> bool:
        """Whether the header states a duration of the whole file only, which the longest stream must reach."""
        return bool(self.container.duration) and not self.estimated and not self._stream_duration()

    def _stream_duration(self) -> float:
        """Seconds of video according to the header, 0 if it states none; audio may last longer."""
        stream = self.stream
        if self.estimated:
            return 0.0
        # For a truncated AVI, FFmpeg reports the remaining seconds but the original number of frames.
        if self.uses_dts and stream.frames:
            return stream.frames / self.rate
        if stream.duration and self.container.format.name not in FILE_DURATION_FORMATS:
            return float(stream.duration * stream.time_base)
        # Matroska stores the end time counted from zero, not from the first frame.
        if tag := stream.metadata.get("DURATION"):
            hours, minutes, seconds = tag.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds) - (self.origin or 0.0)
        return 0.0
