"""One clip from one video file, whatever the codec.

clip = read_clip("swim.mp4", frames=16, short_side=64, crop=64)      # (3, 16, 64, 64) in [0, 1]
"""

import io
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

# A file that holds less than this share of what its header promises was cut.
WHOLE = 0.95
# FFmpeg would also show text files and still images as films.
NO_FILMS = ("tty", "image2", "_pipe")


class VideoError(ValueError):
    """A file from which no honest clip can be read; the message names the file and the reason."""


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
    """`frames` RGB frames from `start` seconds on, as float32 (3, T, H, W) in [0, 1].

    Consecutive frames, or the frames shown at `fps` a second; a shorter video is looped. The short side is resized
    (antialiased) to `short_side` pixels and the centre `crop` x `crop` is kept.
    Raises VideoError where the file cannot be read, holds no video, ends early or has no frame after `start`.
    """
    return to_clip(
        read_frames(path, frames=frames, fps=fps, start=start), frames=frames, short_side=short_side, crop=crop
    )


def read_frames(
    path: str | Path, *, frames: int = 64, fps: float | None = None, start: float = 0.0
) -> list[np.ndarray]:
    """Up to `frames` RGB frames, uint8 (H, W, 3), as `read_clip` takes them; fewer where the video is shorter.

    Raises VideoError as `read_clip` does.
    """
    shown = _decode(Path(path), frames, fps, start)
    if fps is not None:
        shown = _resample(shown, frames, fps, start)
    return [frame for _, frame in shown[:frames]]


def to_clip(shown: list[np.ndarray], *, frames: int = 64, short_side: int = 224, crop: int = 224) -> Tensor:
    """Frames, looped to `frames`, as a clip: float32 (3, T, H, W) in [0, 1], resized and cropped as by `read_clip`."""
    if crop > short_side:
        raise ValueError(f"crop ({crop}) must not be larger than short_side ({short_side})")
    clip = torch.from_numpy(np.stack([shown[i % len(shown)] for i in range(frames)])).permute(0, 3, 1, 2)
    height, width = clip.shape[2:]
    scale = short_side / min(height, width)
    clip = TF.resize(clip, [round(height * scale), round(width * scale)], antialias=True)
    return TF.center_crop(clip, [crop, crop]).permute(1, 0, 2, 3).float() / 255


def _decode(path: Path, frames: int, fps: float | None, start: float) -> list[tuple[float, np.ndarray]]:
    """(seconds, RGB) of the frames needed. The rest of the file is only demuxed, to see that it is whole."""
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path} cannot be opened as a video: {error.strerror}") from None
    with container:
        if not container.streams.video or container.format.name.endswith(NO_FILMS):
            raise VideoError(f"{path} holds no video, but {container.format.long_name or container.format.name}")
        stream = container.streams.video[0]
        shown: list[tuple[float, np.ndarray]] = []
        packets, end = 0, 0.0
        try:
            for packet in container.demux(stream):
                if packet.dts is not None:
                    packets += 1
                    end = max(end, float((packet.dts + (packet.duration or 0)) * stream.time_base))
                if not _enough(shown, frames, fps, start):
                    for frame in packet.decode():
                        if frame.time is None or frame.time >= start - 1e-6 or fps is not None:
                            shown.append((frame.time or 0.0, frame.to_ndarray(format="rgb24")))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{path} is damaged: {error.strerror}") from None
        duration = _duration(container, stream)
        if packets < WHOLE * stream.frames - 1:
            raise VideoError(f"{path} is cut: {packets} of {stream.frames} frames are there")
        if not stream.frames and end < WHOLE * duration - 0.1:
            raise VideoError(f"{path} is cut: {end:.1f} of {duration:.1f} seconds are there")
    if not shown:
        raise VideoError(f"{path} has no frame to decode from {start} s on")
    return shown


def _duration(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds that the header promises of the video stream; 0 where it promises none. Audio may go on for longer."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if tag := stream.metadata.get("DURATION"):
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    return container.duration / av.time_base if container.duration and len(container.streams) == 1 else 0.0


def _enough(shown: list, frames: int, fps: float | None, start: float) -> bool:
    if fps is None:
        return len(shown) >= frames
    return bool(shown) and shown[-1][0] > start + frames / fps


def _resample(shown: list, frames: int, fps: float, start: float) -> list:
    """The frame on the screen at each of the times start + i / fps that the file covers."""
    times = np.array([seconds for seconds, _ in shown])
    wanted = start + np.arange(frames) / fps
    wanted = wanted[wanted <= times[-1] + 1 / fps]
    at = np.searchsorted(times, wanted + 1e-6, side="right") - 1
    return [shown[max(i, 0)] for i in at] or shown[-1:]
