"""The optical flow of a set of video files on disk: one lossless file per video, and a manifest of the parameters.

    spec = FlowSpec(fps=25, short_side=256, bound=20)
    open_cache("flow", spec)                                  # raises if the cache was made with other parameters
    read_fields(path, first=50, count=63, spec=spec)          # uint8 (63, 2, H, W)

A cache holds manifest.json; per video one Matroska file (FFV1, grey, key frames only) at <path below root>.mkv; and one
line per video in videos-<shard>.jsonl, with the SHA-256 of its flow and a fingerprint of the video. Frame t of a file
is the flow from video frame t to t + 1, x above y, as 8 bits over ± bound. `d3d flow` fills a cache
(d3d/flow/extract.py).
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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

from d3d.documents import DocumentError, read_json
from d3d.files import check_folder, sha256
from d3d.messages import printable, shown
from d3d.video.decode import PastEndError, iter_frames
from d3d.video.shards import fingerprint

# 8-bit levels: no motion is exactly ZERO and ± bound is ZERO ± STEPS, so that negated flow is exact too.
ZERO, STEPS = 128, 127
# 2: the logs have checksums.
SCHEMA = 2


# Of the parameters: beyond them no video has anything to show.
RANGES = {"fps": (0.001, 1000), "short_side": (16, 8192), "bound": (0.01, 8192)}


class CacheError(ValueError):
    """A folder is no flow cache, or was made with other parameters or from other videos; the message names it."""


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
            low, high = RANGES[name]
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in [{low:g}, {high:g}], not {shown(value)}")


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
        OSError: If the cache cannot be made.
    """
    path = Path(folder, "manifest.json")
    if create and not os.path.lexists(path):
        check_folder(folder)
        try:
            _write_manifest(path, json.dumps(_expected(spec), indent=1) + "\n")
        except OSError as error:
            reason = f"the flow cache {printable(folder)} cannot be made: {error.strerror}"
            raise OSError(error.errno, reason) from None
    check_parameters(read_manifest(folder), spec, f"the flow cache {printable(folder)}")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Reads the manifest of a cache, which has its parameters.

    Raises:
        FileNotFoundError: If the folder has no manifest.
        CacheError: If the manifest cannot be read.
    """
    path, name = Path(folder, "manifest.json"), printable(folder)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no flow cache at {name}: `d3d flow --out FOLDER` makes one")
    foreign = CacheError(f"{printable(path)} is not the manifest of a flow cache: delete the cache and make it again")
    if not os.path.isfile(path):
        raise foreign
    try:
        manifest = read_json(path, finite=False)
    except DocumentError:
        raise foreign from None
    if not isinstance(manifest, dict):
        raise foreign
    if manifest.get("schema") == 1:
        raise CacheError(
            f"the flow cache {name} was made by an earlier version, without checksums: delete it and run `d3d flow` "
            "again"
        )
    return manifest


def check_parameters(manifest: Mapping[str, Any], spec: FlowSpec, name: str) -> None:
    """Raises CacheError if a manifest has other parameters than `spec`; `name` says what it belongs to."""
    differences = [
        f"{key} {shown(manifest.get(key))} instead of {value!r}"
        for key, value in _expected(spec).items()
        if manifest.get(key) != value
    ]
    if differences:
        raise CacheError(f"{name} was made with {', '.join(differences)}: use its parameters or another folder")


def _expected(spec: FlowSpec) -> dict[str, Any]:
    return {"schema": SCHEMA, "method": "TV-L1, OpenCV's defaults"} | asdict(spec)


def _write_manifest(path: Path, content: str) -> None:
    """Writes a manifest complete or not at all, unless another process has just written one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".manifest.{os.getpid()}")
    staged.unlink(missing_ok=True)
    try:
        with open(staged, "x") as file:
            file.write(content)
        os.link(staged, path)  # unlike a rename, never replaces what another process has just written
    except FileExistsError:
        pass
    finally:
        staged.unlink(missing_ok=True)


def fields_path(cache: str | Path, root: str | Path, video: str | Path) -> Path:
    """Path of a video's flow in a cache, which has the folders of `root`.

    Raises:
        ValueError: If the video does not lie below root.
    """
    relative = os.path.relpath(video, root)
    if relative.split(os.sep)[0] == os.pardir:
        raise ValueError(
            f"{printable(video)} does not lie below root {printable(root)}: a flow cache has the folders of its root"
        )
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


def mismatches(cache: str | Path, root: str | Path, videos: Iterable[str | Path]) -> dict[str | Path, str]:
    """Finds videos whose flow in a cache is not what `d3d flow` wrote, or was computed from another video.

    Reads every flow file once, whole: FFmpeg does not report a wrong checksum of FFV1. Of the videos, which may be
    large, it compares fingerprints (see `d3d.files.fingerprint`).

    Args:
        cache: Folder of the cache.
        root: Folder of the videos.
        videos: Videos below root; those without flow in the cache are left out.

    Returns:
        The reason for each such video, with what to do.

    Raises:
        CacheError: If a file in the place of a video's flow is in no log: `d3d flow` has not written it.
        OSError: If a file cannot be read.
    """
    entries = {entry["video"]: entry for entry in _read_logs(Path(cache)) if "refused" not in entry}

    def reason(video: str | Path) -> str | None:
        path = fields_path(cache, root, video)
        entry = entries.get(os.path.relpath(video, root))
        if not path.is_file():
            return None
        if entry is None:
            raise CacheError(f"{printable(path)} is in no log of its flow cache: delete it and run `d3d flow` again")
        if sha256(path) != entry["flow"]:
            return f"{printable(path)} is not the file that `d3d flow` wrote: run `d3d flow` again to replace it"
        if fingerprint(video) != entry["source"]:
            return f"{printable(video)} changed after its flow was computed: run `d3d flow` again to compute it anew"
        return None

    videos = list(dict.fromkeys(videos))
    with ThreadPoolExecutor() as pool:
        return {video: text for video, text in zip(videos, pool.map(reason, videos), strict=True) if text}


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
    """Reads the log entry of each video: the latest with flow, else the first error; skips incomplete lines.

    Raises:
        CacheError: If a log is no regular file or has a complete line that `d3d flow` does not write.
    """
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(cache.glob("videos-*.jsonl")):
        if not path.is_file():
            raise CacheError(f"{printable(path)} is not a regular file: it must be a log of a flow cache")
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not _is_entry(entry):
                wrong = shown(line.decode(errors="backslashreplace"))
                raise CacheError(
                    f"{printable(path)}, line {number}: {wrong}, expected an entry of `d3d flow`: delete the cache and "
                    "run it again"
                )
            before = entries.get(entry["video"])
            if before is None or ("refused" not in entry and entry["time"] >= before.get("time", 0)):
                entries[entry["video"]] = entry
    return list(entries.values())


def _is_entry(entry: Any) -> bool:
    """Whether a line of a log has the keys and types of an entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("video"), str):
        return False
    if "refused" in entry:
        return isinstance(entry["refused"], str)
    numbers = [entry.get(name) for name in ("rms_px", "max_px", "clipped", "fields", "bytes", "time")]
    are_numbers = all(type(value) in (int, float) and 0 <= value < math.inf for value in numbers)
    return are_numbers and all(isinstance(entry.get(name), str) for name in ("flow", "source"))


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
                # Key frames only, so that a clip can start anywhere.
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
            raise OSError(error.errno, f"{printable(self.path)} could not be written: {error.strerror}") from None
