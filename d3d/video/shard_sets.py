"""Folders of shards as data sets: the manifest, the listing of their clips, and a check of every byte.

listing = read_shards("shards")                       # the clips, like those of any data set

A folder of shards holds manifest.json and, per shard, a tar file and its index (d3d/video/shards.py).
"""

import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from d3d.documents import DocumentError, read_json
from d3d.messages import printable
from d3d.video.shards import SCHEMA, WRITE_AGAIN, Entry, ShardError, index_path, read_index
from d3d.video.tables import COLUMNS, FACTS, SPLITS, Listing, StoredFlow

# Name of the shards of a set without splits.
NO_SPLIT = "clips"
SHARD_NAME = re.compile(rf"({'|'.join(filter(None, SPLITS))}|{NO_SPLIT})-\d{{6}}\.tar", re.ASCII)


def read_manifest(root: str | Path) -> dict[str, Any]:
    """Reads manifest.json of a folder of shards.

    Returns:
        schema; shards, their names in order; classes, by label; listed and missing, of the listing that was written;
        flow, the manifest and summary of the flow cache that was written, or None; and source, which identifies what
        the shards were written from.

    Raises:
        FileNotFoundError: there are no shards.
        ShardError: the file is no manifest of shards.
    """
    path = Path(root, "manifest.json")
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no shards at {printable(root)}: `d3d data … --shards FOLDER` writes them")
    try:
        manifest = read_json(path)
    except DocumentError:
        manifest = None
    if not (isinstance(manifest, Mapping) and _is_manifest(manifest)):
        raise ShardError(f"{printable(path)} is not the manifest of a folder of shards: {WRITE_AGAIN}")
    return manifest


def _is_manifest(manifest: Mapping[str, Any]) -> bool:
    lists = [manifest.get(name) for name in ("shards", "classes", "missing")]
    if manifest.get("schema") != SCHEMA or type(manifest.get("listed")) is not int:
        return False
    if not all(isinstance(each, list) and all(isinstance(text, str) for text in each) for each in lists):
        return False
    flow = manifest.get("flow", 0)
    right_flow = flow is None or (
        isinstance(flow, Mapping) and all(isinstance(flow.get(name), Mapping) for name in ("manifest", "summary"))
    )
    return right_flow and bool(lists[0]) and all(SHARD_NAME.fullmatch(name) for name in lists[0])


def read_shards(root: str | Path) -> Listing:
    """Lists the clips of a folder of shards in the order in which they were listed when they were written.

    No video is opened. Videos that could not be read when the shards were written, and those beyond the end of a shard
    that is cut off, have no seconds, fps, height and width: opening them says why.

    Raises:
        FileNotFoundError: a shard or an index is missing.
        ShardError: an index is damaged, or the folder holds tar files of others.
    """
    manifest, folder = read_manifest(root), os.fspath(Path(root))
    shards = [os.path.join(folder, name) for name in manifest["shards"]]
    present = set(os.listdir(folder))
    required = [name for shard in shards for name in (Path(shard).name, index_path(shard).name)]
    if absent := [name for name in required if name not in present]:
        others = f" and {len(absent) - 1} more are" if len(absent) > 1 else " is"
        first = printable(os.path.join(folder, absent[0]))
        raise FileNotFoundError(f"{first}{others} missing: copy what is missing, or run `d3d data … --shards` again")
    if foreign := sorted(name for name in present if name.endswith(".tar") and name not in required):
        raise ShardError(f"{printable(os.path.join(folder, foreign[0]))} is no shard of this set: move it elsewhere")
    rows: list[dict[str, Any]] = []
    no_flow: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        for shard, (_, entries) in zip(shards, pool.map(read_index, shards), strict=True):
            size = os.path.getsize(shard)
            for entry in entries:
                path = f"{shard}/{entry.name}"
                complete = entry.video and entry.video.offset + entry.video.size <= size
                facts = entry.facts if complete else dict.fromkeys(FACTS)
                rows += [{"path": path} | clip | facts for clip in entry.clips]
                if entry.no_flow or not entry.flow:
                    no_flow[path] = entry.no_flow or entry.refused
    table = pd.DataFrame(sorted(rows, key=lambda row: row["row"])).drop(columns="row", errors="ignore")
    classes = tuple(manifest["classes"])
    if table.empty or not (table["class"] == table["label"].map(dict(enumerate(classes)))).all():
        raise ShardError(f"{printable(folder)} has a manifest of other shards: copy the folder as a whole")
    empty = [name for name in table if table[name].isna().all()]
    table = table.astype(dict.fromkeys({"start", "end", *empty}, float))
    table = table[[*COLUMNS, *(name for name in table if name not in COLUMNS)]]
    flow = manifest["flow"] and StoredFlow(**manifest["flow"], absent=no_flow)
    return Listing(table, classes, tuple(manifest["missing"]), manifest["listed"], flow)


def damaged_videos(root: str | Path) -> Iterator[tuple[str, str]]:
    """Reads every video and its flow whole, in the order of the shards.

    Yields:
        The path of each video, and why it or its flow is damaged; empty if neither is.
    """
    for name in read_manifest(root)["shards"]:
        shard = os.path.join(os.fspath(Path(root)), name)
        for entry in read_index(shard)[1]:
            yield f"{shard}/{entry.name}", _damage(f"{shard}/{entry.name}", entry)


def _damage(path: str, entry: Entry) -> str:
    for stored, what in ((entry.video, ""), (entry.flow, "the flow of ")):
        try:
            for _ in stored.blocks() if stored else ():
                pass
        except OSError as error:
            return f"{what}{printable(path)} is damaged: {error.strerror}"
    return entry.refused
