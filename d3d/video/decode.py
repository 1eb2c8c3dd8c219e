"""Frames of video files, by the times at which a player would show them, whatever the codec.

clip = read_clip("swim.mp4", frames=16, short_side=64, crop=64)      # (3, 16, 64, 64) in [0, 1]
info = check("swim.mp4")                                             # seconds, rate and size, or VideoError
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

# A file that holds less than this share of the seconds that its header promises was cut.
WHOLE = 0.95
# FFmpeg would also show text files and still images as films.
NO_FILMS = ("tty", "image2", "_pipe")
# Where a time after a seek can be trusted; other files are decoded from their beginning on.
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts")
# Seconds before the asked time to seek to, for files whose index promises a key frame that is none.
BACK = (0.0, 2.0, 10.0, 60.0)


class VideoError(ValueError):
    """A file from which no honest clip can be read; the message names the file and the reason."""


class PastEndError(VideoError):
    """A file that ends before the asked time."""


@dataclass(frozen=True)
class VideoInfo:
    """What a whole file holds: seconds shown, frames per second on average, height and width in pixels as shown."""

    seconds: float
    fps: float
    height: int
    width: int


def encode(frames: np.ndarray, *, fps: int) -> bytes:
    """An MP4 file (H.264) of RGB frames, uint8 (T, H, W, 3). Raises ValueError for an odd height or width."""
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
    """`frames` RGB frames from `start` seconds after the first on, as float32 (3, T, H, W) in [0, 1].

    Consecutive frames, or those on the screen every 1 / `fps` seconds, upright as the file says; a shorter video is
    looped. The short side is resized (antialiased) to `short_side` pixels and the centre `crop` x `crop` is kept.
    Raises VideoError where the file cannot be read, holds no video, is cut or damaged where the clip lies, or ends
    before `start`; ValueError for a parameter out of range.
    """
    shown = read_frames(path, frames=frames, fps=fps, start=start)
    return to_clip(shown, frames=frames, short_side=short_side, crop=crop)


def read_frames(
    path: str | Path, *, frames: int = 64, fps: float | None = None, start: float = 0.0
) -> list[np.ndarray]:
    """Up to `frames` RGB frames, uint8 (H, W, 3), as `read_clip` takes them; fewer where the video is shorter.

    Raises as `read_clip` does.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, not {frames}")
    return list(islice(shown(path, fps=fps, start=start), frames))


def to_clip(shown: list[np.ndarray], *, frames: int = 64, short_side: int = 224, crop: int = 224) -> Tensor:
    """Frames, looped to `frames`, as a clip: float32 (3, T, H, W) in [0, 1], resized and cropped as by `read_clip`."""
    if crop > short_side:
        raise ValueError(f"crop ({crop}) must not be larger than short_side ({short_side})")
    clip = looped(TF.center_crop(resize(shown, short_side), [crop, crop]), frames).permute(1, 0, 2, 3)
    return clip.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def resize(shown: list[np.ndarray], short_side: int) -> Tensor:
    """Frames, uint8 (H, W, 3), as uint8 (T, 3, H', W') whose short side has `short_side` pixels, antialiased."""
    clip = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)
    height, width = clip.shape[2:]
    scale = short_side / min(height, width)
    return TF.resize(clip, [round(height * scale), round(width * scale)], antialias=True)


def looped(clip: Tensor, frames: int) -> Tensor:
    """The first `frames` of a clip (T, ...), from its beginning again where there are fewer."""
    return clip[:frames] if len(clip) >= frames else clip[torch.arange(frames) % len(clip)]


def shown(
    path: str | Path, *, fps: float | None = None, start: float = 0.0, pixels: str = "rgb24"
) -> Iterator[np.ndarray]:
    """RGB frames, uint8 (H, W, 3), from the one on the screen `start` seconds after the first on, to the end.

    Every frame, or the one on the screen at each of the times start + i / fps. Only what lies between the key frame
    before `start` and the last frame taken is decoded, and only what is yielded becomes RGB. pixels: FFmpeg's name of
    another format, "gray" for (H, W).
    Raises as `read_clip` does, and where the file ends before the end that its header promises.
    """
    if fps is not None and not fps > 0:
        raise ValueError(f"fps must be positive, not {fps}")
    if not start >= 0:
        raise ValueError(f"start must not be negative, it is {start}")
    with _Film(path) as film:
        convert, taken = VideoReformatter(), 0
        for frame, until in film.shown_from(start):
            wanted = 1 if fps is None else 0
            while fps is not None and start + (taken + wanted) / fps < until - film.rounding:
                wanted += 1
            if wanted:
                picture = film.upright(convert.reformat(frame, format=pixels).to_ndarray())
            for _ in range(wanted):
                yield picture
            taken += wanted
        if not taken:
            raise PastEndError(f"{path} has no frame to decode from {start:g} s on: it ends after {film.end:.2f} s")


def check(path: str | Path) -> VideoInfo:
    """What a file holds, once its packets were counted to the end; only its first frame is decoded.

    Raises VideoError where it cannot be read, holds no video or ends before the end that its header promises.
    """
    with _Film(path) as film:
        first = next(iter(film.shown_from(0.0)), None)
        if first is None:
            raise VideoError(f"{path} has no frame to decode")
        size = film.upright(first[0].to_ndarray(format="rgb24")).shape
        return VideoInfo(film.count_packets(), film.rate, *size[:2])


class _Film:
    """The video stream of one open file, its frames in order with their seconds since the first."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():
            raise VideoError(f"{path} is no file, but a folder or a device")
        try:
            # Neither odd titles nor a playlist's addresses are anything to follow.
            self.container = av.open(str(path), metadata_errors="ignore", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{path} cannot be opened as a video: {getattr(error, 'strerror', error)}") from None
        name = self.container.format.name
        films = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not films or name.endswith(NO_FILMS):
            self.container.close()
            raise VideoError(f"{path} holds no video, but {self.container.format.long_name or name}")
        self.stream = films[0]
        if self.stream.codec_context is None:
            self.container.close()
            raise VideoError(f"{path} holds a video in a format that cannot be decoded")
        # One core a file: clips are read side by side.
        self.stream.codec_context.thread_count = 1
        self.rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        # A container of milliseconds shows a frame of 1/30 s up to one early or late; where a tick is a frame, none.
        tick = float(self.stream.time_base)
        self.rounding = 0.75 * tick if tick < 0.25 / self.rate else 1e-6
        self.seekable = name in SEEKABLE
        # AVI keeps no times: what FFmpeg calls one is wrong where a codec reorders frames; their order is right.
        self.ordered = name == "avi"
        self.origin: float | None = None
        self.rotation, self.end = 0, 0.0

    def __enter__(self) -> "_Film":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def upright(self, rgb: np.ndarray) -> np.ndarray:
        """A frame turned as the file says."""
        return np.ascontiguousarray(np.rot90(rgb, self.rotation // 90)) if self.rotation else rgb

    def shown_from(self, start: float) -> Iterator[tuple[av.VideoFrame, float]]:
        """The frames on the screen from `start` seconds on, each with the seconds until which it is there.

        Raises VideoError for a damaged frame, and for an end before the one that the header promises.
        """
        timed = self._from_key_frame(start) if self.seekable and start > 1 / self.rate else self._timed()
        broken = False
        for (seconds, frame), (until, _) in pairwise(chain(timed, [(None, None)])):
            # What is damaged shows in all frames up to the next that stands on its own.
            broken = frame.is_corrupt or (broken and not frame.key_frame)
            if until is None:
                self.end = until = seconds + self._length(frame)
            if until > start + self.rounding:
                if broken:
                    raise VideoError(f"{self.path} is damaged at {seconds:.2f} s")
                yield frame, until
        self._hold_to_promise()

    def count_packets(self) -> float:
        """Seconds that the file shows. Raises VideoError where they are fewer than its header promises."""
        first, end = float("inf"), 0.0
        try:
            self.container.seek(0)
            for packet in self.container.demux(self.stream):
                if packet.dts is not None:
                    at = packet.dts if self.ordered or packet.pts is None else packet.pts
                    first = min(first, float(at * packet.time_base))
                    end = max(end, float((at + (packet.duration or 0)) * packet.time_base))
                    end = max(end, float(at * packet.time_base) + (0 if packet.duration else 1 / self.rate))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path} is damaged: {error.strerror}") from None
        self.end = max(0.0, end - first)
        self._hold_to_promise()
        return self.end

    def _timed(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decoded frames from here on with their seconds since the file's first."""
        seconds = 0.0
        try:
            for frame in self.container.decode(self.stream):
                ticks = frame.dts if self.ordered or frame.pts is None else frame.pts
                absolute = seconds + (self.origin or 0.0) if ticks is None else float(ticks * frame.time_base)
                if self.origin is None:
                    self.origin, self.rotation = absolute, frame.rotation
                yield absolute - self.origin, frame
                seconds = absolute - self.origin + self._length(frame)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path} is damaged: {error.strerror}") from None

    def _from_key_frame(self, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Frames from a key frame at or before `start` on."""
        next(self._timed(), None)
        for back in BACK:
            if start <= back or self.origin is None:
                break
            target = self.origin + start - back
            try:
                self.container.seek(int(target / self.stream.time_base), stream=self.stream)
            except (av.FFmpegError, OSError):
                break
            timed = self._timed()
            # Frames before the key frame may lack those that they were made from.
            key = next(((seconds, frame) for seconds, frame in timed if frame.key_frame), None)
            if key is not None and key[0] <= start + self.rounding:
                return chain([key], timed)
        self.container.seek(0)
        return self._timed()

    def _length(self, frame: av.VideoFrame) -> float:
        """Seconds for which the last frame is shown."""
        return float(frame.duration * frame.time_base) if frame.duration and not self.ordered else 1 / self.rate

    def _hold_to_promise(self) -> None:
        promised = self._promised()
        if self.end < WHOLE * promised - 0.1:
            raise VideoError(f"{self.path} is cut: {self.end:.1f} of {promised:.1f} seconds are there")

    def _promised(self) -> float:
        """Seconds of video that the header promises; 0 where it promises none. Audio may go on for longer."""
        container, stream = self.container, self.stream
        # Of an AVI that was cut FFmpeg knows the seconds that are left, and the frames that there were.
        if self.ordered and stream.frames:
            return stream.frames / self.rate
        if stream.duration:
            return float(stream.duration * stream.time_base)
        # Matroska tells the time of the end, counted from zero, not from the first frame.
        if tag := stream.metadata.get("DURATION"):
            hours, minutes, seconds = tag.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds) - (self.origin or 0.0)
        if container.duration and len(container.streams) == 1:
            return container.duration / av.time_base - (self.origin or 0.0)
        return 0.0
