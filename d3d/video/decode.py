"""Reads frames of video files by presentation time, whatever the codec.

clip = read_clip("swim.mp4", frames=16, short_side=64, crop=64)      # (3, 16, 64, 64) in [0, 1]
info = check("swim.mp4")                                             # duration, rate and size, or VideoError
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

# A file that lasts less than this fraction of the duration in its header is truncated.
MIN_COMPLETE = 0.95
# FFmpeg also opens text files and still images as videos.
NON_VIDEO_FORMATS = ("tty", "image2", "_pipe")
# Formats with reliable times after a seek; files of other formats are decoded from their first frame.
SEEKABLE_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts")
# Seconds before the requested time to seek to, tried in turn: an index may mark frames as key frames that are not.
SEEK_MARGINS = (0.0, 2.0, 10.0, 60.0)


class VideoError(ValueError):
    """A file that cannot be read correctly; the message names the file and the reason."""


class PastEndError(VideoError):
    """A file that ends before the requested start."""


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a complete video file.

    Attributes:
        seconds: Duration.
        fps: Average frames per second.
        height: Pixels, after rotation.
        width: Pixels, after rotation.
    """

    seconds: float
    fps: float
    height: int
    width: int


def encode(frames: np.ndarray, *, fps: int) -> bytes:
    """Encodes RGB frames, uint8 (T, H, W, 3), as an MP4 file (H.264).

    Raises:
        ValueError: If the height or width is odd.
    """
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"H.264 needs an even height and width, not {frames.shape[1]} x {frames.shape[2]}")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "slow"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def read_clip(
    path: str | Path,
    *,
    frames: int = 64,
    fps: float | None = None,
    start: float = 0.0,
    short_side: int = 224,
    crop: int = 224,
) -> Tensor:
    """Reads one clip of a video file, resized and cropped at the centre.

    Args:
        path: A video file.
        frames: Number of frames T; a shorter video is looped.
        fps: Takes the frame on screen every 1 / fps seconds; None: consecutive frames.
        start: Seconds after the file's first frame.
        short_side: Pixels to which the short side is resized, antialiased.
        crop: Height and width of the centre crop.

    Returns:
        float32 (3, T, crop, crop), RGB in [0, 1], rotated upright as the file's metadata says.

    Raises:
        VideoError: If the file cannot be read, holds no video, is truncated or damaged within the clip, or ends before
            `start`.
        ValueError: If a parameter is out of range.
    """
    images = read_frames(path, frames=frames, fps=fps, start=start)
    return to_clip(images, frames=frames, short_side=short_side, crop=crop)


def read_frames(
    path: str | Path, *, frames: int = 64, fps: float | None = None, start: float = 0.0
) -> list[np.ndarray]:
    """Reads up to `frames` RGB frames, uint8 (H, W, 3); fewer if the video is shorter.

    Parameters and errors are those of `read_clip`.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, not {frames}")
    return list(islice(iter_frames(path, fps=fps, start=start), frames))


def to_clip(images: list[np.ndarray], *, frames: int = 64, short_side: int = 224, crop: int = 224) -> Tensor:
    """Resizes, centre-crops and loops RGB images to a clip.

    Args:
        images: uint8 (H, W, 3) each.
        frames, short_side, crop: As in `read_clip`.

    Returns:
        float32 (3, T, crop, crop) in [0, 1].

    Raises:
        ValueError: If crop is larger than short_side.
    """
    if crop > short_side:
        raise ValueError(f"crop ({crop}) must not be larger than short_side ({short_side})")
    clip = looped(TF.center_crop(resize(images, short_side), [crop, crop]), frames).permute(1, 0, 2, 3)
    return clip.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def resize(images: list[np.ndarray], short_side: int) -> Tensor:
    """Resizes images, uint8 (H, W, 3), to uint8 (T, 3, H', W') whose short side is `short_side` pixels, antialiased."""
    clip = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return TF.resize(clip, list(resized_size(*clip.shape[2:], short_side)), antialias=True)


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns the height and width of images of this size after `resize`."""
    scale = short_side / min(height, width)
    return round(height * scale), round(width * scale)


def looped(clip: Tensor, frames: int) -> Tensor:
    """Returns the first `frames` frames of a clip (T, ...); a shorter clip is repeated from its start."""
    return clip[:frames] if len(clip) >= frames else clip[torch.arange(frames) % len(clip)]


def iter_frames(
    path: str | Path, *, fps: float | None = None, start: float = 0.0, pixel_format: str = "rgb24"
) -> Iterator[np.ndarray]:
    """Yields the frames of a file from the one on screen at `start` to the last.

    Decodes only from the key frame before `start` to the last frame taken, and converts only frames that it yields.

    Args:
        path: A video file.
        fps: Yields the frame on screen at each of the times start + i / fps; None: every frame.
        start: Seconds after the file's first frame.
        pixel_format: FFmpeg's name of a pixel format.

    Yields:
        uint8 (H, W, 3) for "rgb24", (H, W) for "gray".

    Raises:
        VideoError: As `read_clip` does, and if the file ends before the duration in its header.
        ValueError: If fps or start is out of range.
    """
    if fps is not None and not fps > 0:
        raise ValueError(f"fps must be positive, not {fps}")
    if not start >= 0:
        raise ValueError(f"start must not be negative, it is {start}")
    with _VideoFile(path) as video:
        reformatter, yielded = VideoReformatter(), 0
        for frame, end in video.frames_from(start):
            repeats = 1 if fps is None else 0
            while fps is not None and start + (yielded + repeats) / fps < end - video.tolerance:
                repeats += 1
            if repeats:
                image = video.rotate(reformatter.reformat(frame, format=pixel_format).to_ndarray())
            for _ in range(repeats):
                yield image
            yielded += repeats
        if not yielded:
            raise PastEndError(f"{path} has no frames at or after {start:g} s: it ends after {video.end:.2f} s")


def check(path: str | Path) -> VideoInfo:
    """Checks that a video file is complete and returns its duration, frame rate and size.

    Reads all packets, but decodes only the first frame.

    Raises:
        VideoError: If the file cannot be read, holds no video or ends before the duration in its header.
    """
    with _VideoFile(path) as video:
        first = next(iter(video.frames_from(0.0)), None)
        if first is None:
            raise VideoError(f"{path} has no frame that can be decoded")
        shape = video.rotate(first[0].to_ndarray(format="rgb24")).shape
        return VideoInfo(video.measure_duration(), video.rate, *shape[:2])


class _VideoFile:
    """An open file's video stream: its frames in order, with their times in seconds since the first frame."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():
            raise VideoError(f"{path} is not a regular file")
        try:
            # Metadata may be in any encoding, and a playlist must not open other addresses.
            self.container = av.open(str(path), metadata_errors="ignore", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{path} cannot be opened as a video: {getattr(error, 'strerror', error)}") from None
        name = self.container.format.name
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams or name.endswith(NON_VIDEO_FORMATS):
            self.container.close()
            raise VideoError(f"{path} holds no video stream: its format is {self.container.format.long_name or name}")
        self.stream = streams[0]
        if self.stream.codec_context is None:
            self.container.close()
            raise VideoError(f"{path} holds a video in a format that cannot be decoded")
        # One core per file: several files are read in parallel.
        self.stream.codec_context.thread_count = 1
        self.rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        # If the time base is finer than a frame, rounded times may be off by up to one tick; otherwise they are exact.
        tick = float(self.stream.time_base)
        self.tolerance = 0.75 * tick if tick < 0.25 / self.rate else 1e-6
        self.seekable = name in SEEKABLE_FORMATS
        # AVI stores no presentation times, and FFmpeg guesses them wrongly if a codec reorders frames.
        self.uses_dts = name == "avi"
        self.origin: float | None = None
        self.rotation, self.end = 0, 0.0

    def __enter__(self) -> "_VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def rotate(self, image: np.ndarray) -> np.ndarray:
        """Rotates an image upright as the file's metadata says."""
        return np.ascontiguousarray(np.rot90(image, self.rotation // 90)) if self.rotation else image

    def frames_from(self, start: float) -> Iterator[tuple[av.VideoFrame, float]]:
        """Yields the frames that are on screen at `start` seconds or later, each with the time at which it ends.

        Raises:
            VideoError: If a frame is damaged or the file ends before the duration in its header.
        """
        timed = self._decode_from_key_frame(start) if self.seekable and start > 1 / self.rate else self._decode()
        damaged = False
        for (seconds, frame), (end, _) in pairwise(chain(timed, [(None, None)])):
            # Damage spreads to all frames up to the next key frame.
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            if end is None:
                self.end = end = seconds + self._frame_duration(frame)
            if end > start + self.tolerance:
                if damaged:
                    raise VideoError(f"{self.path} is damaged at {seconds:.2f} s")
                yield frame, end
        self._require_complete()

    def measure_duration(self) -> float:
        """Seconds from the first packet to the end of the last.

        Raises:
            VideoError: If a packet is damaged or the file ends before the duration in its header.
        """
        first, end = float("inf"), 0.0
        try:
            self.container.seek(0)
            for packet in self.container.demux(self.stream):
                if packet.dts is not None:
                    ticks = packet.dts if self.uses_dts or packet.pts is None else packet.pts
                    first = min(first, float(ticks * packet.time_base))
                    end = max(end, float((ticks + (packet.duration or 0)) * packet.time_base))
                    end = max(end, float(ticks * packet.time_base) + (0 if packet.duration else 1 / self.rate))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path} is damaged: {error.strerror}") from None
        self.end = max(0.0, end - first)
        self._require_complete()
        return self.end

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decodes from the current position, each frame with its seconds since the file's first frame."""
        seconds = 0.0
        try:
            for frame in self.container.decode(self.stream):
                ticks = frame.dts if self.uses_dts or frame.pts is None else frame.pts
                absolute = seconds + (self.origin or 0.0) if ticks is None else float(ticks * frame.time_base)
                if self.origin is None:
                    self.origin, self.rotation = absolute, frame.rotation
                yield absolute - self.origin, frame
                seconds = absolute - self.origin + self._frame_duration(frame)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path} is damaged: {error.strerror}") from None

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
        self.container.seek(0)
        return self._decode()

    def _frame_duration(self, frame: av.VideoFrame) -> float:
        return float(frame.duration * frame.time_base) if frame.duration and not self.uses_dts else 1 / self.rate

    def _require_complete(self) -> None:
        expected = self._header_duration()
        if self.end < MIN_COMPLETE * expected - 0.1:
            raise VideoError(
                f"{self.path} is truncated: it has {self.end:.1f} of the {expected:.1f} seconds that its header states"
            )

    def _header_duration(self) -> float:
        """Seconds of video according to the header, 0 if it states none; audio may last longer."""
        container, stream = self.container, self.stream
        # For a truncated AVI, FFmpeg reports the remaining seconds but the original number of frames.
        if self.uses_dts and stream.frames:
            return stream.frames / self.rate
        if stream.duration:
            return float(stream.duration * stream.time_base)
        # Matroska stores the end time counted from zero, not from the first frame.
        if tag := stream.metadata.get("DURATION"):
            hours, minutes, seconds = tag.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds) - (self.origin or 0.0)
        if container.duration and len(container.streams) == 1:
            return container.duration / av.time_base - (self.origin or 0.0)
        return 0.0
