"""Shards: tar files that hold many videos one after another, each with an index, so that a video is read in place.

    read_frames("shards/train-000000.tar/wave/a.mp4")     # what reads a video file also reads one inside of a shard

The tars follow the convention of webdataset: the members of one video follow each other and share a key, as in
000000012.json, 000000012.cls, 000000012.mp4, 000000012.flow.mkv. Beside train-000000.tar lies its index,
train-000000.jsonl. Its first line has the number of bytes of the tar and the SHA-256 of the lines below, one per video:
where its bytes are, a checksum of every MiB of them, and its clips. Nothing is unpacked. `d3d data --shards` writes
shards (d3d/data/shard_writer.py).
"""

import errno
import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from d3d import files
from d3d.messages import printable
from d3d.video.tables import FACTS, SPLITS

SCHEMA = 1
# Bytes that are read and checked at once: a short video is one block, and of a long flow file few are needed.
BLOCK = 2**20
# Blocks of one file that stay in memory: a container's index may lie at its end.
KEPT_BLOCKS = 4
# A video and its flow are named like a file and a file in a folder of its name: of loose files only one could exist.
FLOW_NAME = "flow.mkv"
MAX_INDEX_BYTES = 2**29
HEXADECIMAL = re.compile("[0-9a-f]*", re.ASCII)
# The name comes first in a line, so that a line is found by it.
LINE_START = b'{"name": '
LINE = re.compile(rb'^\{"name": ("(?:[^"\\\n]|\\.)*"), .*$', re.MULTILINE)
WRITE_AGAIN = "delete it, and run the `d3d data … --shards` that wrote it again"


class ShardError(ValueError):
    """A folder holds no shards, or not all of them, or something else; the message names it."""


class StoredFile(NamedTuple):
    """A file inside of a shard.

    Attributes:
        shard: the tar file.
        offset: its first byte in the tar.
        size: its bytes.
        checksums: CRC-32 of each `BLOCK` of it, eight hexadecimal digits each.
    """

    shard: str
    offset: int
    size: int
    checksums: str

    def block(self, number: int) -> bytes:
        """Reads and checks a block.

        Raises:
            OSError: the shard is cut off or damaged there, or cannot be read.
        """
        first = self.offset + number * BLOCK
        length = min(BLOCK, self.size - number * BLOCK)
        content = _read(self.shard, first, length)
        if len(content) < length:
            raise OSError(errno.EIO, f"{printable(self.shard)} is cut off after {first + len(content)} bytes")
        if checksum(content) != self.checksums[8 * number : 8 * number + 8]:
            end = first + length - 1
            raise OSError(errno.EIO, f"bytes {first} to {end} of {printable(self.shard)} are not what was written")
        return content

    def blocks(self) -> Iterator[bytes]:
        """Reads and checks all blocks in order; raises OSError as `block` does."""
        return map(self.block, range(-(-self.size // BLOCK)))

    def read(self, start: int, length: int) -> bytes:
        """Reads and checks up to `length` bytes from `start` on; raises OSError as `block` does."""
        end = min(start + length, self.size)
        blocks = [self.block(number) for number in range(start // BLOCK, -(-end // BLOCK))]
        return b"".join(blocks)[start % BLOCK :][: max(0, end - start)]


def checksum(block: bytes) -> str:
    """The CRC-32 of a block, as eight hexadecimal digits."""
    return f"{crc32(block):08x}"


def _read(path: str, first: int, length: int) -> bytes:
    status = os.stat(path)
    return os.pread(_opened(path, status.st_ino, status.st_mtime_ns).descriptor, length, first)


class _Opened:
    """An open file, closed when nobody uses it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(maxsize=64)
def _opened(path: str, _file: int, _changed: int) -> _Opened:
    """Keeps files open, so that the system sees when one is read in order and reads ahead."""
    return _Opened(path)


class StoredFileReader:
    """A file inside of a shard as PyAV reads it.

    FFmpeg takes some errors for the end of a file, so that they are kept.

    Attributes:
        name: what FFmpeg guesses a format from where the content does not tell it.
        damage: the first reason for which a block could not be read; empty: none.
    """

    def __init__(self, file: StoredFile, path: str) -> None:
        self.file, self.name, self.damage = file, path, ""
        self.position = 0
        self.kept: OrderedDict[int, bytes] = OrderedDict()

    def read(self, length: int) -> bytes:
        """Returns bytes from the current position, at least one and at most `length`; none at the end or at damage."""
        if self.damage or self.position >= self.file.size:
            return b""
        number, start = divmod(self.position, BLOCK)
        if number not in self.kept:
            try:
                self.kept[number] = self.file.block(number)
            except OSError as error:
                self.damage = error.strerror
                return b""
            if len(self.kept) > KEPT_BLOCKS:
                self.kept.popitem(last=False)
        content = self.kept[number][start : start + length]
        self.position += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.file.size}[whence]
        self.position = max(0, origin + offset)
        return self.position

    def tell(self) -> int:
        return self.position


class Entry(NamedTuple):
    """A video in the index of a shard.

    Attributes:
        name: its path below the root that it was read from.
        clips: its rows of the table of clips, each with its number in `row`.
        facts: seconds, fps, height and width; None if it could not be read.
        video: its file in the shard; None if it could not be read.
        flow: its flow in the shard, or None.
        refused: why it could not be read, else empty.
        no_flow: why a set with flow has none of it, else empty.
    """

    name: str
    clips: list[dict[str, Any]]
    facts: dict[str, float] | None = None
    video: StoredFile | None = None
    flow: StoredFile | None = None
    refused: str = ""
    no_flow: str = ""

    def to_line(self) -> bytes:
        """The line of the index, without its end."""
        places = {"video": self.video, "flow": self.flow}
        places = {name: list(file[1:]) for name, file in places.items() if file}
        reasons = {"refused": self.refused, "no_flow": self.no_flow}
        reasons = {name: reason for name, reason in reasons.items() if reason}
        facts = {"facts": self.facts} if self.facts else {}
        return json.dumps({"name": self.name} | places | reasons | facts | {"clips": self.clips}).encode()

    @classmethod
    def from_line(cls, line: bytes, shard: str) -> "Entry":
        """Reads a line of the index of a shard; raises ShardError if it is none."""
        try:
            values = json.loads(line)
            name, clips, facts = values["name"], values["clips"], values.get("facts")
            places = {key: StoredFile(shard, *values[key]) for key in ("video", "flow") if key in values}
            reasons = {key: values.get(key, "") for key in ("refused", "no_flow")}
            right = _is_name(name) and all(map(_is_place, places.values())) and all(map(_is_clip, clips))
            right &= all(isinstance(reason, str) for reason in reasons.values())
            right &= ("video" in places) != bool(reasons["refused"]) and bool(facts) == ("video" in places)
            right &= facts is None or all(low <= facts[key] <= high for key, (low, high) in FACTS.items())
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            right = False
        if not right:
            raise _wrong_index(shard)
        return cls(name, clips, facts, **places, **reasons)


def _is_name(name: Any) -> bool:
    """Whether a name is a path below a folder."""
    return isinstance(name, str) and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def _is_place(file: StoredFile) -> bool:
    if any(type(value) is not int or not 0 <= value < 2**63 for value in (file.offset, file.size)):
        return False
    return len(file.checksums) == 8 * -(-file.size // BLOCK) and HEXADECIMAL.fullmatch(file.checksums) is not None


def _is_clip(clip: dict[str, Any]) -> bool:
    texts = all(isinstance(clip[name], str) for name in ("class", "split", "group"))
    numbers = type(clip["row"]) is int and type(clip["label"]) is int and clip["label"] >= 0
    return texts and numbers and clip["split"] in SPLITS and clip["start"] >= 0


def index_path(shard: str | Path) -> Path:
    """The path of a shard's index."""
    return Path(shard).with_suffix(".jsonl")


def index_content(shard: str, size: int, entries: list[Entry]) -> bytes:
    """The content of the index of a shard, given its name, its bytes and its videos."""
    lines = b"".join(entry.to_line() + b"\n" for entry in entries)
    header = {"schema": SCHEMA, "shard": shard, "bytes": size, "sha256": hashlib.sha256(lines).hexdigest()}
    return json.dumps(header).encode() + b"\n" + lines


def read_index(shard: str | Path) -> tuple[int, list[Entry]]:
    """Reads the index of a shard.

    Returns:
        The bytes of the whole shard, and its videos.

    Raises:
        ShardError: the index is not what was written.
        OSError: it cannot be read.
    """
    path, text = index_path(shard), os.fspath(shard)
    if not path.is_file() or path.stat().st_size > MAX_INDEX_BYTES:
        raise _wrong_index(text)
    header, _, lines = path.read_bytes().partition(b"\n")
    expected = {"schema": SCHEMA, "shard": Path(shard).name, "sha256": hashlib.sha256(lines).hexdigest()}
    try:
        values = json.loads(header)
        right = values == expected | {"bytes": values["bytes"]} and type(values["bytes"]) is int
    except (ValueError, TypeError, LookupError, RecursionError):
        right = False
    if not right:
        raise _wrong_index(text)
    return values["bytes"], [Entry.from_line(line, text) for line in lines.split(b"\n")[:-1]]


def _wrong_index(shard: str) -> ShardError:
    return ShardError(f"{printable(index_path(shard))} is not the index that was written with its shard: {WRITE_AGAIN}")


def find(path: str | Path) -> StoredFile | None:
    """Finds a file inside of a shard by its path, such as shards/train-000000.tar/wave/a.mp4; None: it is loose.

    Raises:
        OSError: the shard has no such file, or its index is damaged; the text is a sentence.
    """
    text, start = os.fspath(path), 0
    while (end := text.find(".tar/", start)) >= 0:
        start = end + len(".tar/")
        shard = text[: start - 1]
        if os.path.isfile(shard):
            return _find_in(shard, text[start:], path)
    return None


def _find_in(shard: str, name: str, path: str | Path) -> StoredFile:
    try:
        if entry := _entry_of(shard, name):
            if entry.video is None:
                raise OSError(errno.EINVAL, entry.refused)
            return entry.video
        video, _, last = name.rpartition("/")
        if last == FLOW_NAME and (entry := _entry_of(shard, video)) and entry.flow:
            return entry.flow
    except ShardError as error:
        raise OSError(errno.EINVAL, str(error)) from None
    raise OSError(errno.ENOENT, f"{printable(path)} does not exist in its shard")


def _entry_of(shard: str, name: str) -> Entry | None:
    """Reads the line of a name in the index of a shard."""
    index, quoted = os.fspath(index_path(shard)), json.dumps(name).encode()
    try:
        status = os.stat(index)
        lines = _lines(index, status.st_mtime_ns, status.st_size)
        first, last = (np.searchsorted(lines.hashes, hash(quoted), side) for side in ("left", "right"))
        for start, end in lines.spans[first:last].tolist():
            line = _read(index, start, end - start)
            if line.startswith(LINE_START + quoted + b", "):
                return Entry.from_line(line, shard)
    except (OSError, ValueError):
        raise _wrong_index(shard) from None
    return None


class _Lines(NamedTuple):
    """Where the lines of an index are: 24 bytes per video, which every process keeps of each shard that it has read.

    Attributes:
        hashes: int64 (N,), of the names in quotes, sorted.
        spans: int64 (N, 2), start and end of their lines in the file.
    """

    hashes: np.ndarray
    spans: np.ndarray


@cache
def _lines(index: str, _changed: int, size: int) -> _Lines:
    """Scans an index; raises ValueError if it is larger than any."""
    if size > MAX_INDEX_BYTES:
        raise ValueError("too large")
    places = [(hash(line[1]), *line.span()) for line in LINE.finditer(_read(index, 0, size))]
    hashes, *spans = np.array(places, dtype=np.int64).reshape(-1, 3).T
    order = np.argsort(hashes)
    return _Lines(hashes[order], np.stack(spans, 1)[order])


def file_size(path: str | Path) -> int:
    """The bytes of a file, loose or inside of a shard; raises OSError if there is none."""
    return os.stat(path).st_size if (stored := find(path)) is None else stored.size


def fingerprint(path: str | Path) -> str:
    """`d3d.files.fingerprint` of a file, loose or inside of a shard: the same for the same content."""
    stored = find(path)
    return files.fingerprint(path) if stored is None else files.fingerprint_of(stored.size, stored.read)


def flow_path(video: str) -> str:
    """The path of the flow of a video that is inside of a shard."""
    return f"{video}/{FLOW_NAME}"
