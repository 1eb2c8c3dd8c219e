"""The optical flow of a set of video files on disk: one lossless file per video, and a manifest of the parameters.

    spec = FlowSpec(fps=25, short_side=256, bound=20)
    open_cache("flow", spec)                                  # raises if the cache was made with other parameters
    read_fields(path, first=50, count=63, spec=spec)          # uint8 (63, 2, H, W)

A cache holds manifest.json; per video one Matroska file (FFV1, grey, key frames only) at <path below root>.mkv; and one
line per video in videos-<shard>.jsonl. Frame t of a file is the flow from video frame t to t + 1, x above y, as 8 bits
over ± bound. `d3d flow` fills a cache (d3d/flow/extract.py).
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from d3d.video.decode import PastEndError, iter_frames

# 8-bit levels: no motion is exactly ZERO and ± bound is ZERO ± STEPS, so that negated flow is exact too.
ZERO, STEPS = 128, 127
SCHEMA = 1


class CacheError(ValueError):
    """A folder is not a flow cache or was made with other parameters; the message names it and the difference."""


@dataclass(frozen=True, kw_only=True)
class FlowSpec:
    """Parameters of the flow in a cache, stored in its manifest; those of TV-L1 are the defaults of `d3d.flow.tvl1`.

    Attributes:
        fps: Frames per second of the frames between which flow is computed.
        short_side: Pixels to which the frames' short side is resized first.
        bound: Flow is clipped to ± bound pixels per frame.
    """

    fps: float = 25.0
    short_side: int = 256
    bound: float = 20.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.short_side < 16:
            raise ValueError(f"short_side must be at least 16 pixels, not {self.short_side}")


def quantise(flow: Tensor, bound: float) -> Tensor:
    """Quantises flow in pixels to uint8: 128 is no motion, 1 and 255 are ∓ bound, where it is clipped."""
    return (flow.clamp(-bound, bound) * (STEPS / bound)).round_().add_(ZERO).to(torch.uint8)


def dequantise(levels: Tensor, bound: float) -> Tensor:
    """Converts levels from `quantise` back to flow in pixels, float32."""
    return (levels.float() - ZERO) * (bound / STEPS)


def open_cache(folder: str | Path, spec: FlowSpec, *, create: bool = False) -> None:
    """Checks that a cache was made with `spec`, or makes one.

    Args:
        folder: The cache.
        spec: The expected parameters.
        create: Whether to make an empty cache if there is none.

    Raises:
        FileNotFoundError: If the folder has no manifest.
        CacheError: If the manifest has other parameters or cannot be read.
    """
    folder, path = Path(folder), Path(folder, "manifest.json")
    expected = {"schema": SCHEMA, "method": "TV-L1, OpenCV's defaults"} | asdict(spec)
    if create and not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / f".manifest.{os.getpid()}"
        staged.write_text(json.dumps(expected, indent=1) + "\n")
        try:
            os.link(staged, path)  # unlike a rename, never replaces what another process has just written
        except FileExistsError:
            pass
        finally:
            staged.unlink()
    if not path.is_file():
        raise FileNotFoundError(f"no flow cache at {folder}: `d3d flow --out {folder}` makes one")
    try:
        manifest = json.loads(path.read_text())
        differences = [
            f"{name} {manifest.get(name)!r} instead of {value!r}"
            for name, value in expected.items()
            if manifest.get(name) != value
        ]
    except (ValueError, AttributeError):
        raise CacheError(f"{path} is not the manifest of a flow cache: delete the cache and make it again") from None
    if differences:
        raise CacheError(
            f"the flow cache {folder} was made with {', '.join(differences)}: use its parameters or another folder"
        )


def fields_path(cache: str | Path, root: str | Path, video: str | Path) -> Path:
    """Path of a video's flow in a cache, which has the folders of `root`.

    Raises:
        ValueError: If the video does not lie below root.
    """
    relative = os.path.relpath(video, root)
    if relative.split(os.sep)[0] == os.pardir:
        raise ValueError(f"{video} does not lie below root {root}: a flow cache has the folders of its root")
    return Path(cache, f"{relative}.mkv")


def read_fields(path: str | Path, *, first: int, count: int, spec: FlowSpec) -> np.ndarray:
    """Reads up to `count` fields from index `first` on, uint8 (T, 2, H, W); fewer or none if the video ends before.

    Raises:
        VideoError: If the file cannot be read.
    """
    try:
        frames = list(islice(iter_frames(path, start=first / spec.fps, pixel_format="gray"), count))
    except PastEndError:
        frames = []
    if not frames:
        return np.empty((0, 2, 0, 0), np.uint8)
    return np.stack(frames).reshape(len(frames), 2, -1, frames[0].shape[1])


def refusals(cache: str | Path) -> dict[str, str]:
    """Maps the path below root of each unreadable video to the reason."""
    return {entry["video"]: entry["refused"] for entry in _read_logs(Path(cache)) if "refused" in entry}


def summary(cache: str | Path) -> dict[str, float]:
    """Totals over all videos of a cache.

    Returns:
        videos, fields, bytes: Totals.
        rms_px, max_px: Root mean square and maximum of the quantisation error, pixels.
        clipped: Fraction of the values beyond ± bound.
    """
    entries = [entry for entry in _read_logs(Path(cache)) if "refused" not in entry]
    fields = sum(entry["fields"] for entry in entries)
    weights = [entry["fields"] / max(1, fields) for entry in entries]
    return {
        "videos": len(entries),
        "fields": fields,
        "bytes": sum(entry["bytes"] for entry in entries),
        "rms_px": sum(w * entry["rms_px"] ** 2 for w, entry in zip(weights, entries, strict=True)) ** 0.5,
        "max_px": max((entry["max_px"] for entry in entries), default=0.0),
        "clipped": sum(w * entry["clipped"] for w, entry in zip(weights, entries, strict=True)),
    }


def _read_logs(cache: Path) -> list[dict[str, Any]]:
    """Reads the log entry of each video: the last with flow, else the first error; skips incomplete lines."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(cache.glob("videos-*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if "refused" not in entry or entry["video"] not in entries:
                entries[entry["video"]] = entry
    return list(entries.values())


class FieldsWriter:
    """Writes grey frames of one size losslessly to a Matroska file.

    Raises:
        OSError: If the file cannot be written, naming it.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.rate, self.stream = path, Fraction(fps).limit_denominator(100_000), None
        # Without the protocol, FFmpeg would take what precedes a colon in a name as one.
        self.container = av.open(f"file:{path}", "w", format="matroska", options={"fflags": "+bitexact"})

    def __enter__(self) -> "FieldsWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._errors_named():
            if self.stream and kind is None:
                self.container.mux(self.stream.encode())
            self.container.close()

    def add(self, frames: np.ndarray) -> None:
        """Appends frames, uint8 (T, H, W)."""
        with self._errors_named():
            if self.stream is None:
                # Key frames only, so that a clip can start anywhere; check sums, so that damage is detected.
                self.stream = self.container.add_stream("ffv1", rate=self.rate, options={"g": "1", "slicecrc": "1"})
                self.stream.height, self.stream.width, self.stream.pix_fmt = *frames.shape[1:], "gray"
            for frame in frames:
                self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Turns FFmpeg's errors into OSError with the file's name."""
        try:
            yield
        except av.FFmpegError as error:
            raise OSError(error.errno, f"{self.path} could not be written: {error.strerror}") from None
