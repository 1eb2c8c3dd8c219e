"""Opens a video file, chooses its stream, and gives the times of its frames.

with VideoFile("swim.mp4") as video:
    for frame, end in video.frames_from(0.0):
        image = video.to_image(frame, "rgb24")
"""

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice, pairwise
from math import inf
from pathlib import Path

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from d3d.messages import printable
from d3d.video import shards
from d3d.video.orientation import orientation
from d3d.video.times import Continuous, ShownTicks, in_seconds

# A file that lasts less than this fraction of the duration in its header is truncated.
MIN_COMPLETE = 0.95
# FFmpeg also opens text files and still images as videos.
NON_VIDEO_FORMATS = ("tty", "image2", "_pipe")
# Formats whose packets have exact times and can be sought; files of others are decoded from their first frame.
INDEXED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
# Formats that store decoding times only: FFmpeg guesses presentation times wrongly if a codec reorders frames.
DECODING_TIME_FORMATS = ("avi", "asf", "asf_o")
# Seconds before the requested time to seek to, tried in turn: an index may mark frames as key frames that are not.
SEEK_MARGINS = (0.0, 2.0, 10.0, 60.0)
# Frames per second from which on a rate is only the reciprocal of the time base.
MAX_RATE = 1000
# Codecs of cover pictures, and the number of packets among which a film has a second picture.
PICTURE_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegls", "ljpeg", "apng", "jpegxl")
FILM_PACKETS = 200
# What FFmpeg raises where a file is damaged.
DAMAGE = (av.FFmpegError, OSError)


class VideoError(ValueError):
    """A file that cannot be read correctly; the message names the file and the reason."""


class VideoFile:
    """An open file's video stream: its frames in order, with their times in seconds since the first frame.

    Attributes:
        path: The file, loose or inside of a shard.
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
        self.readers: list[shards.StoredFileReader] = []  # of a file inside of a shard
        try:
            self.stored = shards.find(path)
        except OSError as error:
            raise VideoError(error.strerror) from None
        self.index: int | None = None
        self._open()
        name = self.container.format.name
        # If the time base is finer than a frame, rounded times may be off by up to one tick; otherwise they are exact.
        tick = float(self.tick)
        rates = (self.stream.average_rate, self.stream.guessed_rate)
        self.rate = float(next((rate for rate in rates if rate and rate < MAX_RATE), 25))
        self.tolerance = 0.75 * tick if tick < 0.25 / self.rate else 1e-6
        self.indexed = name in INDEXED_FORMATS
        flags = self.container.format.flags
        self.edited = name == INDEXED_FORMATS[0]
        self.jumps = bool(flags & Flags.ts_discont.value)
        # Of files without times or an index FFmpeg guesses the duration from the last time or the bit rate.
        self.estimated = self.jumps or bool(flags & Flags.generic_index.value)
        self.uses_dts = name in DECODING_TIME_FORMATS
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
        self.gap = 0  # the longest time between two packets of the stream, in ticks
        try:
            if self.index is None:
                self.index = self._choose_stream()
        except BaseException:
            self.container.close()
            raise
        self.stream = self.container.streams[self.index]
        self.tick = self.stream.time_base
        # One core per file: several files are read in parallel.
        self.stream.codec_context.thread_count = 1

    def _open_container(self) -> av.container.InputContainer:
        source = self.address
        if self.stored:
            source = shards.StoredFileReader(self.stored, self.address)
            self.readers.append(source)
        try:
            # Metadata may be in any encoding, and a playlist must not open other addresses.
            container = av.open(source, metadata_errors="ignore", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError) as error:
            self._require_undamaged()
            reason = getattr(error, "strerror", error)
            raise VideoError(f"{self.path} cannot be opened as a video: {reason}") from None
        try:
            self._require_undamaged()
        except VideoError:
            container.close()
            raise
        return container

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
        if stream.frames:
            return stream.frames == 1
        if stream.codec_context.name not in PICTURE_CODECS:
            return False
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
        interpolation = "BICUBIC" if scaled else None
        try:
            image = self.reformatter.reformat(
                frame, width, height, pixel_format, interpolation=interpolation, threads=1
            )
        except DAMAGE as error:
            raise self._damaged(error) from None
        if pixel_format != "rgb24" or image is frame:
            return turn.apply(image.to_ndarray())
        # What to_ndarray returns, in half the time.
        plane = image.planes[0]
        return turn.apply(np.ndarray((height, width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1)))

    def frames_from(self, start: float) -> Iterator[tuple[av.VideoFrame, float]]:
        """Yields the frames that are on screen at `start` seconds or later, each with the time at which it ends.

        Raises:
            VideoError: If a frame is damaged or the file ends before the duration in its header.
        """
        # What lies beyond the stated duration is in no index.
        stated = (self.container.duration or inf) / av.time_base
        indexed = self.indexed and 1 / self.rate < start < stated
        timed = self._decode_from_key_frame(start) if indexed else self._decode()
        damaged = False
        for (seconds, frame), (end, _) in pairwise(chain(timed, [(None, None)])):
            # Damage spreads to all frames up to the next key frame.
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            if end is None:
                self.end = end = seconds + self._duration(frame, self.tick)
            # From the start on, frames that are on screen for no time count too.
            if end > start + self.tolerance or not start:
                if damaged:
                    raise VideoError(f"{self.path} is damaged at {seconds:.2f} s")
                yield frame, end
        self._require_complete()

    def measure_duration(self) -> float:
        """Seconds from the first frame to the end of the last, of a file at its start.

        The first frame is converted. An indexed file is not decoded further: its packets have the times of its frames.
        Files of other formats are decoded.

        Raises:
            VideoError: If no frame can be decoded, a packet is damaged or the file ends before the duration in its
                header.
        """
        if not self.indexed:
            for i, (frame, _) in enumerate(self.frames_from(0.0)):
                if i == 0:
                    self.to_image(frame, "rgb24")
        else:
            last, delay, flushed = 0.0, -1, False
            try:
                for packet in self._packets():
                    if self.origin is None:
                        delay, flushed = delay + 1, packet.dts is None
                        for frame in packet.decode():
                            self._seconds(frame, frame.dts if self.uses_dts else ShownTicks().of(frame), 0.0)
                            self.to_image(frame, "rgb24")
                    if (ticks := self._ticks(packet)) is not None and not packet.is_discard:
                        last = max(last, in_seconds(ticks, self.tick) + self._duration(packet, self.tick))
            except DAMAGE as error:
                raise self._damaged(error) from None
            self.end = last - (self.origin or 0.0)
            if self.uses_dts:
                # A frame has the time of a packet further on, and those that come last have none.
                self.end = delay / self.rate + (0.0 if flushed else self.end)
            self._require_complete()
        if self.origin is None:
            raise VideoError(f"{self.path} has no frame that can be decoded")
        return self.end

    def _packets(self) -> Iterator[av.Packet]:
        """Demuxes the stream from the current position; where times restart or jump, moves all that follow."""
        last, continuous = None, Continuous(self.tick, jumps=self.jumps)
        step = round(1 / self.rate / self.tick)
        for packet in self.container.demux() if self._states_file_duration() else self.container.demux(self.stream):
            self._require_undamaged()
            pts, dts, taken = packet.pts, packet.dts, packet.stream is self.stream
            if pts is not None or dts is not None:
                latest = pts if dts is None or (pts is not None and pts > dts) else dts
                tick = self.tick if taken else packet.time_base
                self.furthest = max(self.furthest, in_seconds(latest, tick) + self._duration(packet, tick))
            # A packet without data stands for an image that is shown again; to a decoder it would be the end.
            if not taken or (dts is not None and not packet.size):
                continue
            # The pieces of an edit list overlap in packets that are not shown.
            if not self.edited:
                continuous.adjust(packet, packet.duration or step)
                dts = packet.dts
            if dts is not None:
                self.gap = max(self.gap, dts - (dts if last is None else last))
                last = dts
            yield packet

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decodes from the current position, each frame with its seconds since the file's first frame."""
        end, previous, shown = 0.0, None, ShownTicks()
        try:
            for packet in self._packets():
                for frame in packet.decode():
                    ticks = frame.dts if self.uses_dts else shown.of(frame)
                    seconds = self._seconds(frame, ticks, end)
                    # Decoders give frames in the order in which they are shown, whatever their times say.
                    previous = seconds = seconds if previous is None else max(previous, seconds)
                    yield seconds, frame
                    end = seconds + self._duration(frame, self.tick)
        except DAMAGE as error:
            raise self._damaged(error) from None

    def _decode_from_key_frame(self, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decodes from a key frame at or before `start`."""
        next(self._decode(), None)  # sets the origin
        for margin in SEEK_MARGINS:
            if start <= margin or self.origin is None:
                break
            target = self.origin + start - margin
            try:
                self.container.seek(int(target / self.tick), stream=self.stream)
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

    def _seconds(self, frame: av.VideoFrame, ticks: int | None, expected: float) -> float:
        """A frame's seconds since the first, `expected` if it has no time; the first of all sets the origin."""
        absolute = expected + (self.origin or 0.0) if ticks is None else in_seconds(ticks, self.tick)
        if self.origin is None:
            self.origin, self.height, self.width = absolute, frame.height, frame.width
            if orientation(frame).transposed:
                self.height, self.width = self.width, self.height
        return absolute - self.origin

    def _ticks(self, item: av.Packet) -> int | None:
        return item.dts if self.uses_dts or item.pts is None else item.pts

    def _duration(self, item: av.Packet | av.VideoFrame, tick: Fraction) -> float:
        return in_seconds(ticks, tick) if (ticks := item.duration) and not self.uses_dts else 1 / self.rate

    def _damaged(self, error: av.FFmpegError | OSError) -> VideoError:
        self._require_undamaged()
        return VideoError(f"{self.path} is damaged: {error.strerror}")

    def _require_undamaged(self) -> None:
        """Raises VideoError if bytes inside of a shard were read that are not what was written."""
        for reader in self.readers:
            if reader.damage:
                raise VideoError(f"{self.path} is damaged: {reader.damage}")

    def _require_complete(self) -> None:
        self._require_undamaged()
        stated, read = self._stream_duration(), self.furthest
        if self._states_file_duration():
            stated = self.container.duration / av.time_base
        # The header may count how long the last frame stays on screen, which is not always stored.
        if read + in_seconds(self.gap, self.tick) < MIN_COMPLETE * stated - 0.1:
            raise VideoError(
                f"{self.path} is truncated: it has {read:.1f} of the {stated:.1f} seconds that its header states"
            )

    def _states_file_duration(self) -> bool:
        """Whether the header states a duration of the whole file only, which the longest stream must reach."""
        return bool(self.container.duration) and not self.estimated and not self._stream_duration()

    def _stream_duration(self) -> float:
        """Seconds of video according to the header, 0 if it states none; audio may last longer.

        Some formats count from the first frame, others from zero, which may be earlier.
        """
        stream = self.stream
        if self.estimated:
            return 0.0
        # For a truncated AVI, FFmpeg reports the remaining seconds but the original number of frames.
        if self.uses_dts and stream.frames:
            return stream.frames / self.rate
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
            # A stream that ends with the file may have been given the file's end by FFmpeg.
            end = seconds + float((stream.start_time or 0) * stream.time_base)
            file_end = ((self.container.start_time or 0) + (self.container.duration or 0)) / av.time_base
            return seconds if self.indexed or abs(end - file_end) > 0.1 else 0.0
        if tag := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = map(float, tag.groups())
            return 3600 * hours + 60 * minutes + seconds
        return 0.0
