"""The optical flow of a set of video files on disk: one lossless file a video, and a manifest of what it is.

    spec = FlowSpec(fps=25, short_side=256, bound=20)
    open_cache("flow", spec)                                  # raises where the fields are others
    read_fields(path, first=50, count=63, spec=spec)          # uint8 (63, 2, H, W)

A cache holds manifest.json, one Matroska file (FFV1, grey, every frame a key frame) a video at <path below root>.mkv,
and a line a video in videos-<shard>.jsonl. Frame t of such a file is the field that carries frame t onto t + 1, x above
y, in 8 bits over ± bound. `d3d flow` makes one (d3d/flow/extract.py).
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

from d3d.video.decode import PastEndError, shown

# Of the 8 bits: no motion is exactly ZERO, the bound exactly STEPS away on either side, so that a flip is exact.
ZERO, STEPS = 128, 127
SCHEMA = 1


class CacheError(ValueError):
    """A flow cache that is none, or was made with other parameters; the message names it and what is right."""


@dataclass(frozen=True, kw_only=True)
class FlowSpec:
    """What the fields of a cache are; its manifest keeps it. The rest is `d3d.flow.tvl1`'s defaults.

    fps: frames per second, between which the flow is. short_side: pixels to which frames are resized before.
    bound: flow is clipped to ± bound pixels.
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
    """Flow in pixels as uint8: 128 is no motion, 1 and 255 are ∓ bound, beyond which it is clipped."""
    return (flow.clamp(-bound, bound) * (STEPS / bound)).round_().add_(ZERO).to(torch.uint8)


def dequantise(levels: Tensor, bound: float) -> Tensor:
    """Flow in pixels, float32, of what `quantise` made."""
    return (levels.float() - ZERO) * (bound / STEPS)


def open_cache(folder: str | Path, spec: FlowSpec, *, create: bool = False) -> None:
    """Sees that a cache holds fields of `spec`, and makes an empty one where asked.

    Raises FileNotFoundError for a folder without a manifest, CacheError for one of other parameters.
    """
    folder, path = Path(folder), Path(folder, "manifest.json")
    wanted = {"schema": SCHEMA, "method": "TV-L1, OpenCV's defaults"} | asdict(spec)
    if create and not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / f".manifest.{os.getpid()}"
        staged.write_text(json.dumps(wanted, indent=1) + "\n")
        try:
            os.link(staged, path)  # unlike a rename, never over what another process has just made
        except FileExistsError:
            pass
        finally:
            staged.unlink()
    if not path.is_file():
        raise FileNotFoundError(f"no flow cache at {folder}: `d3d flow --out {folder}` makes one")
    try:
        found = json.loads(path.read_text())
        differing = [
            f"{name} {found.get(name)!r} instead of {value!r}"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
    except (ValueError, AttributeError):
        raise CacheError(f"{path} is no manifest of a flow cache: delete the cache and make it again") from None
    if differing:
        raise CacheError(
            f"the flow cache {folder} was made with {', '.join(differing)}: ask for the same, or give another folder"
        )


def fields_path(cache: str | Path, root: str | Path, video: str | Path) -> Path:
    """Where a cache keeps the fields of a video below `root`."""
    below = os.path.relpath(video, root)
    if below.startswith(".."):
        raise ValueError(f"{video} does not lie below root {root}: a flow cache is laid out like its root")
    return Path(cache, f"{below}.mkv")


def read_fields(path: str | Path, *, first: int, count: int, spec: FlowSpec) -> np.ndarray:
    """Up to `count` fields from `first` on, uint8 (T, 2, H, W); fewer where the video ends, which may be none.

    Raises VideoError for a file that cannot be read.
    """
    try:
        found = list(islice(shown(path, start=first / spec.fps, pixels="gray"), count))
    except PastEndError:
        found = []
    if not found:
        return np.empty((0, 2, 0, 0), np.uint8)
    return np.stack(found).reshape(len(found), 2, -1, found[0].shape[1])


def refusals(cache: str | Path) -> dict[str, str]:
    """Why a cache holds no fields of some videos, by their path below root."""
    return {line["video"]: line["refused"] for line in _lines(Path(cache)) if "refused" in line}


def summary(cache: str | Path) -> dict[str, float]:
    """Over all videos of a cache: their number, fields and bytes; the quantisation's root mean square and largest
    error in pixels, and the share of vectors beyond ± bound."""
    done = [line for line in _lines(Path(cache)) if "refused" not in line]
    fields = sum(line["fields"] for line in done)
    weight = [line["fields"] / max(1, fields) for line in done]
    return {
        "videos": len(done),
        "fields": fields,
        "bytes": sum(line["bytes"] for line in done),
        "rms_px": sum(w * line["rms_px"] ** 2 for w, line in zip(weight, done, strict=True)) ** 0.5,
        "max_px": max((line["max_px"] for line in done), default=0.0),
        "clipped": sum(w * line["clipped"] for w, line in zip(weight, done, strict=True)),
    }


def _lines(cache: Path) -> list[dict[str, Any]]:
    """The last line of each video; a line that a kill cut short does not count."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(cache.glob("videos-*.jsonl")):
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if "refused" not in line or line["video"] not in found:
                found[line["video"]] = line
    return list(found.values())


class FieldsWriter:
    """A Matroska file of grey frames, lossless, opened with the first of them.

    Raises OSError naming the file where the disk does not take it.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.rate, self.stream = path, Fraction(fps).limit_denominator(100_000), None
        self.container = av.open(str(path), "w", format="matroska", options={"fflags": "+bitexact"})

    def __enter__(self) -> "FieldsWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._named():
            if self.stream and kind is None:
                self.container.mux(self.stream.encode())
            self.container.close()

    def add(self, frames: np.ndarray) -> None:
        """Appends frames, uint8 (T, H, W)."""
        with self._named():
            if self.stream is None:
                # Every frame a key frame: a clip is read from its first field on. Check sums tell damage.
                self.stream = self.container.add_stream("ffv1", rate=self.rate, options={"g": "1", "slicecrc": "1"})
                self.stream.height, self.stream.width, self.stream.pix_fmt = *frames.shape[1:], "gray"
            for frame in frames:
                self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:
            raise OSError(error.errno, f"{self.path} could not be written: {error.strerror}") from None
