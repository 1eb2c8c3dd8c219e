"""Writes a data set of video files, with its flow, as shards that are read in place (d3d/video/shards.py).

    d3d data --dataset … --root … --shards FOLDER     # the same command resumes a killed run

The same videos give the same bytes. Which video lies in which shard is known from the sizes of the files, before any is
read, so that several processes or machines can each write every n-th shard.
"""

import fcntl
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from d3d.data.video_sets import check_videos
from d3d.files import append_to, check_folder, write_atomic
from d3d.flow.cache import CacheError, fields_path, mismatches, read_manifest, refusals, summary
from d3d.messages import printable
from d3d.progress import Progress
from d3d.video import shard_sets
from d3d.video.decode import VideoError
from d3d.video.shards import (
    BLOCK,
    FLOW_NAME,
    SCHEMA,
    Entry,
    ShardError,
    StoredFile,
    checksum,
    file_size,
    find,
    flow_path,
    index_content,
    index_path,
    read_index,
)
from d3d.video.tables import FACTS, Listing

# Bytes of videos and flow after which a shard ends, and videos: an index is searched for each video that is read.
SHARD_BYTES = 10**9
MAX_VIDEOS = 10_000
# Extensions that say what else a sample holds.
RESERVED = ("json", "cls")


@dataclass(frozen=True)
class _Video:
    """A video to be written.

    Attributes:
        key: what its members in the tar have in common.
        path: the file.
        name: its path below the root.
        rows: its rows of the table, as dictionaries.
        flow: the file of its flow; None: it has none.
        no_flow: why a set with flow has none of it, else empty.
    """

    key: str
    path: str
    name: str
    rows: list[dict[str, Any]]
    flow: str | None
    no_flow: str


def write_shards(
    listing: Listing,
    root: str | Path,
    folder: str | Path,
    *,
    flow_cache: str | Path = "",
    shard_bytes: int = SHARD_BYTES,
    part: tuple[int, int] = (1, 1),
    damaged: str = "skip",
    report: Callable[[str], None] = print,
) -> dict[str, int]:
    """Writes the videos of a listing, and their flow, as shards; leaves out shards that exist.

    Each shard appears complete or not at all, after its index. The table of clips keeps its order.

    Args:
        listing: the clips.
        root: folder of the videos, or the CSV file or shards that list them.
        folder: folder of the shards, created if it does not exist.
        flow_cache: folder of a flow cache of the same root; empty: the shards have no flow.
        shard_bytes: bytes of videos and flow after which a shard ends.
        part: (i, n) writes every n-th shard from the i-th on, counted from 1.
        damaged: "skip" leaves out unreadable videos, whose reasons the index keeps; "raise" raises VideoError.
        report: receives lines about the progress.

    Returns:
        Numbers over all shards that exist now: shards, of how many (planned), videos, clips, refused and bytes.

    Raises:
        ShardError: the folder holds shards of something else.
        CacheError: flow in the cache is damaged, or that of other videos.
        OSError: a shard cannot be written.
        VideoError: a video cannot be read and damaged is "raise".
    """
    folder = Path(folder)
    manifest, plan = _make_plan(listing, Path(root), flow_cache, shard_bytes)
    check_folder(folder)
    if os.path.lexists(folder / "manifest.json"):
        if shard_sets.read_manifest(folder) != manifest:
            raise ShardError(
                f"{printable(folder)} holds shards of other videos, tables, flow or sizes: write to another folder, or "
                "delete it"
            )
    else:
        write_atomic({folder / "manifest.json": (json.dumps(manifest, indent=1) + "\n").encode()})
    assigned = manifest["shards"][part[0] - 1 :: part[1]]
    remaining = [name for name in assigned if not (folder / name).is_file() or not index_path(folder / name).is_file()]
    report(f"{len(assigned)} shards, {len(assigned) - len(remaining)} of them already written")
    with Progress(sum(len(plan[name]) for name in remaining), "videos", report, summary=True) as progress:
        for name in remaining:
            try:
                _write_shard(folder / name, plan[name], Path(root), flow_cache, damaged, progress)
            except BlockingIOError:
                report(f"skipped, another process is writing it: {printable(folder / name)}")
    return _totals(folder, manifest["shards"])


def _make_plan(
    listing: Listing, root: Path, flow_cache: str | Path, shard_bytes: int
) -> tuple[dict[str, Any], dict[str, list[_Video]]]:
    """Returns the manifest and the videos of each shard."""
    names = _names(list(dict.fromkeys(listing.table["path"])), _video_root(root))
    flow, absent = listing.flow and {"manifest": listing.flow.manifest, "summary": listing.flow.summary}, {}
    if flow_cache:
        flow = {"manifest": read_manifest(flow_cache), "summary": summary(flow_cache)}
        reasons = refusals(flow_cache)
    elif listing.flow:
        absent = listing.flow.absent
    # Rows of one file follow each other here, in the order of the first.
    rows: dict[str, list[dict[str, Any]]] = {path: [] for path in names}
    for number, row in enumerate(listing.table.to_dict("records")):
        values = {name: None if pd.isna(value) else value for name, value in row.items() if name != "path"}
        rows[row["path"]].append({"row": number} | values)
    plan: dict[str, list[_Video]] = {}
    filled: dict[str, tuple[int, int]] = {}  # per split, the number of its last shard and the bytes of that
    digest = hashlib.sha256(json.dumps([SCHEMA, shard_bytes, flow]).encode())
    for number, (path, name) in enumerate(names.items()):
        flow_file, no_flow = None, ""
        if flow_cache:
            flow_file = str(fields_path(flow_cache, _video_root(root), path))
            if not os.path.isfile(flow_file):
                flow_file, no_flow = None, reasons.get(name, f"{printable(name)} had no flow in its cache")
        elif flow:
            flow_file, no_flow = (None, absent[path]) if path in absent else (flow_path(path), "")
        video = _Video(f"{number:09d}", path, name, rows[path], flow_file, no_flow)
        sizes = [_size_or_zero(file) for file in (path, flow_file) if file]
        digest.update(json.dumps([name, sizes, no_flow, video.rows]).encode())
        split = video.rows[0]["split"] or shard_sets.NO_SPLIT
        last, size = filled.get(split, (0, 0))
        full = size + sum(sizes) > shard_bytes or len(plan.get(_shard_name(split, last), ())) == MAX_VIDEOS
        if size and full:
            last, size = last + 1, 0
        filled[split] = last, size + sum(sizes)
        plan.setdefault(_shard_name(split, last), []).append(video)
    manifest = {
        "schema": SCHEMA, "shards": list(plan), "classes": list(listing.classes), "listed": listing.listed,
        "missing": list(listing.missing), "flow": flow, "source": digest.hexdigest(),
    }  # fmt: skip
    return manifest, plan


def _video_root(root: Path) -> Path:
    return root if root.is_dir() else root.parent


def _shard_name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def _names(paths: list[str], root: Path) -> dict[str, str]:
    """Returns the name of each video: its path below the root, or below the folder that all have in common."""
    names = {path: os.path.relpath(path, root) for path in paths}
    if any(name.split(os.sep)[0] == os.pardir for name in names.values()):
        common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
        names = {path: os.path.relpath(os.path.abspath(path), common) for path in paths}
    return names


def _size_or_zero(path: str | Path) -> int:
    try:
        return file_size(path)
    except OSError:  # opening it will say why
        return 0


def _write_shard(
    shard: Path, videos: list[_Video], root: Path, flow_cache: str | Path, damaged: str, progress: Progress
) -> None:
    """Writes a shard and its index.

    Raises:
        BlockingIOError: another process is writing it.
    """
    partial = shard.with_name(f".{shard.name}.part")
    with append_to(partial) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            # What a killed process left.
            file.truncate(0)
            facts = _check(videos, damaged)
            if flow_cache:
                _check_flow(videos, root, flow_cache)
            entries = []
            for video in videos:
                entries.append(_add_video(file, video, facts[video.path], damaged))
                progress.update()
            # Ends as tar files do: with two empty blocks, and a multiple of its record size.
            end = _end(file) + 2 * tarfile.BLOCKSIZE
            _write(file, bytes(-end % tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE))
            os.fsync(file.fileno())
            # The index first: a shard that exists has one.
            write_atomic({index_path(shard): index_content(shard.name, _end(file), entries)})
            os.replace(partial, shard)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.strerror != os.strerror(error.errno or 0):
                raise
            raise OSError(error.errno, f"{printable(shard)} could not be written: {error.strerror}") from None
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _check(videos: list[_Video], damaged: str) -> dict[str, dict[str, float] | str]:
    """Returns seconds, fps, height and width of each video by path, or why it cannot be read."""
    table = pd.DataFrame([{"path": video.path} | row for video in videos for row in video.rows])
    checked, refused = check_videos(table, damaged=damaged, report=lambda line: None)
    facts = checked.drop_duplicates("path").set_index("path")[list(FACTS)].to_dict("index")
    return facts | refused


def _check_flow(videos: list[_Video], root: Path, cache: str | Path) -> None:
    """Raises CacheError for the first video whose flow is not what was computed from it."""
    with_flow = [video.path for video in videos if video.flow]
    if wrong := mismatches(cache, _video_root(root), with_flow):
        raise CacheError(next(iter(wrong.values())))


def _add_video(file: BinaryIO, video: _Video, facts: dict[str, float] | str, damaged: str) -> Entry:
    """Appends the members of a video; returns its entry, which has the reason if the video cannot be read."""
    clips = [{name: value for name, value in row.items() if name not in FACTS} for row in video.rows]
    if isinstance(facts, str):
        return Entry(video.name, clips, refused=facts, no_flow=video.no_flow)
    described = [{name: value for name, value in clip.items() if name != "row"} for clip in clips]
    labels = {clip["label"] for clip in clips}
    extension = Path(video.path).suffix[1:].lower()
    if not (extension.isascii() and extension.isalnum()) or extension in RESERVED:
        extension = "video"
    start = _end(file)
    try:
        texts = {"json": json.dumps({"name": video.name} | facts | {"clips": described})}
        if len(labels) == 1:
            texts["cls"] = str(labels.pop())
        for suffix, text in texts.items():
            _add(file, f"{video.key}.{suffix}", len(text), [text.encode()])
        stored = _copy(file, f"{video.key}.{extension}", video.path)
        flow = _copy(file, f"{video.key}.{FLOW_NAME}", video.flow) if video.flow else None
    except VideoError as error:
        if damaged == "raise":
            raise
        file.truncate(start)
        return Entry(video.name, clips, refused=str(error), no_flow=video.no_flow)
    return Entry(video.name, clips, facts, stored, flow, no_flow=video.no_flow)


def _copy(file: BinaryIO, member: str, path: str | Path) -> StoredFile:
    """Appends a file, loose or inside of a shard; raises VideoError if it cannot be read."""
    checksums: list[str] = []
    try:
        size = file_size(path)
    except OSError as error:
        raise _unreadable(path, error) from None

    def blocks() -> Iterator[bytes]:
        count = 0
        for block in _blocks(path):
            checksums.append(checksum(block))
            count += len(block)
            yield block
        if count != size:
            raise VideoError(f"{printable(path)} changed while it was read")

    offset = _add(file, member, size, blocks())
    return StoredFile("", offset, size, "".join(checksums))


def _blocks(path: str | Path) -> Iterator[bytes]:
    """Reads a file block by block; raises VideoError if it cannot be read."""
    try:
        if stored := find(path):
            yield from stored.blocks()
        else:
            with open(path, "rb", buffering=0) as source:
                while block := source.read(BLOCK):
                    yield block
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str | Path, error: OSError) -> VideoError:
    return VideoError(f"{printable(path)} cannot be read: {error.strerror}")


def _add(file: BinaryIO, name: str, size: int, blocks: Iterable[bytes]) -> int:
    """Appends a member, always with the same time and owner; returns the offset of its content."""
    header = tarfile.TarInfo(name)
    header.size = size
    _write(file, header.tobuf(tarfile.GNU_FORMAT))
    offset = _end(file)
    for block in blocks:
        _write(file, block)
    _write(file, bytes(-size % tarfile.BLOCKSIZE))
    return offset


def _write(file: BinaryIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _end(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _totals(folder: Path, shards: Sequence[str]) -> dict[str, int]:
    written = [folder / name for name in shards if (folder / name).is_file() and index_path(folder / name).is_file()]
    totals = dict.fromkeys(("videos", "clips", "refused", "bytes"), 0)
    for shard in written:
        size, entries = read_index(shard)
        totals["bytes"] += size
        for entry in entries:
            totals["refused" if entry.refused else "videos"] += 1
            totals["clips"] += 0 if entry.refused else len(entry.clips)
    return {"shards": len(written), "planned": len(shards)} | totals
