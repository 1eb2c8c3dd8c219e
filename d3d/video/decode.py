"""Reads frames of video files by presentation time, whatever the codec.

clip = read_clip("swim.mp4", frames=16, short_side=64, crop=64)      # (3, 16, 64, 64) in [0, 1]
info = check("swim.mp4")                                             # duration, rate and size, or VideoError
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from d3d.video.container import VideoError, VideoFile


class PastEndError(VideoError):
    """A file that ends before the requested start."""


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a complete video file.

    Attributes:
        seconds: Duration.
        fps: Average frames per second.
        height: Pixels of every frame, upright.
        width: Pixels of every frame, upright.
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
        float32 (3, T, crop, crop), RGB in [0, 1], turned and mirrored as the file's metadata says.

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
    # Imported here because it takes two seconds, which runs without video files do not need.
    from torchvision.transforms.v2 import functional as TF

    if crop > short_side:
        raise ValueError(f"crop ({crop}) must not be larger than short_side ({short_side})")
    clip = looped(TF.center_crop(resize(images, short_side), [crop, crop]), frames).permute(1, 0, 2, 3)
    return clip.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def resize(images: list[np.ndarray], short_side: int) -> Tensor:
    """Resizes images, uint8 (H, W, 3), to uint8 (T, 3, H', W') whose short side is `short_side` pixels, antialiased."""
    from torchvision.transforms.v2 import functional as TF

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
    All frames have the size of the file's first; others are scaled to it, as the ffmpeg command does.

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
    with VideoFile(path) as video:
        yielded = 0
        for frame, end in video.frames_from(start):
            repeats = 1 if fps is None else 0
            while fps is not None and start + (yielded + repeats) / fps < end - video.tolerance:
                repeats += 1
            if repeats:
                image = video.to_image(frame, pixel_format)
            for _ in range(repeats):
                yield image
            yielded += repeats
        if not yielded:
            raise PastEndError(f"{video.path} has no frames at or after {start:g} s: it ends after {video.end:.2f} s")


def check(path: str | Path) -> VideoInfo:
    """Checks that a video file is complete and returns its duration, frame rate and size.

    The duration is that of the frames which `iter_frames` yields, and each has this height and width. An MP4, Matroska
    or AVI file is not decoded beyond its first frame; a file of another format is.

    Raises:
        VideoError: If the file cannot be read, holds no video or ends before the duration in its header.
    """
    with VideoFile(path) as video:
        seconds = video.measure_duration()
        return VideoInfo(seconds, video.rate, video.height, video.width)
