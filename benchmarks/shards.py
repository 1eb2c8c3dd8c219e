"""Reading a set of many small videos from a cold cache, as loose files and as shards, for benchmarks/bench.py.

python benchmarks/shards.py [VIDEOS] [FOLDER]     # so many videos, on the disk of this folder
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from videos import write_texture_video

from d3d.data.load import load
from d3d.data.shard_writer import write_shards
from d3d.data.video_sets import check_videos
from d3d.flow.opencv import cores
from d3d.study.experiments import make_config
from d3d.video import annotations
from d3d.video.decode import iter_frames
from d3d.video.shards import find
from d3d.video.tables import write_table

VIDEOS, CLASSES, DISTINCT = 4000, 4, 16
# Clips as those of JHMDB, of about 40 KB.
CLIP_FRAMES, CLIP_SIZE = 40, (128, 170)
VIEW = {"frames": 8, "size": 64, "short_side": 72, "memory": "no", "bound": 5.0}
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
# Decoding, which shards do not change, takes much longer than reading: some videos suffice.
DECODED = 400
RUNS = 5


def bench_shards(videos: int = VIDEOS, folder: str | None = None) -> tuple[dict, dict[str, float]]:
    """Opens a set and reads its videos, each time from a cold cache.

    `open` makes a set ready for training: loose files in class folders are listed and probed, those of a checked
    `table` only listed, of `shards` the indices are read. `read_at_random` fetches the bytes of every video in a
    training order, one after another, and checks those of shards; `read_in_order` in the order of the listing, as for
    testing and for sets that are kept in memory; `decoded` fetches some and decodes their first frame.

    The cache is dropped as root for the whole machine, with names and attributes of files; without that right, for the
    content of the files alone, which spares loose files a part of their cost.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root, shards = Path(name, "videos"), Path(name, "shards")
        paths = _make_videos(root, videos)
        listing = annotations.read("folder", root)
        table = Path(name, "set.csv")
        write_table(table, replace(listing, table=check_videos(listing.table, report=_silent)[0]))
        began = time.perf_counter()
        written = write_shards(annotations.read("table", table), table, shards, report=_silent)
        writing = time.perf_counter() - began
        sets = {"files": ("folder", root), "table": ("table", table), "shards": ("shards", shards)}
        tables = {name: annotations.read(*each).table["path"].to_list() for name, each in sets.items()}
        order = np.random.default_rng(0).permutation(len(paths))
        drop = _dropper([*map(str, paths), *map(str, shards.iterdir()), str(table)])
        seconds: dict[str, list[float]] = {}
        for _ in range(RUNS):
            for contestant, (dataset, place) in sets.items():
                config = make_config("train", VIEW | {"dataset": dataset, "root": str(place)}).data
                seconds.setdefault(f"open/{contestant}", []).append(
                    _timed(drop, lambda config=config: load(config, seed=0, workers=1, report=_silent))
                )
            for contestant in ("files", "shards"):
                listed = tables[contestant]
                drawn = [listed[i] for i in order]
                for step, action, chosen in (
                    ("read_in_order", _fetch, listed), ("read_at_random", _fetch, drawn),
                    ("decoded", _decode, drawn[:DECODED]),
                ):  # fmt: skip
                    run = _timed(drop, lambda action=action, chosen=chosen: action(chosen))
                    seconds.setdefault(f"{step}/{contestant}", []).append(run)
        bytes_per_video = written["bytes"] / written["videos"]
    work = {
        "videos": videos, "bytes_per_video": round(bytes_per_video), "shards": written["shards"], "cores": cores(),
        "runs": RUNS, "dropped": drop.__doc__, "disk": str(Path(name).parent),
    }  # fmt: skip
    metrics = {"write/shards/videos_per_second": videos / writing}
    for contestant, times in seconds.items():
        count = DECODED if contestant.startswith("decoded") else videos
        metrics[f"{contestant}/videos_per_second"] = count / statistics.median(times)
    for contestant, times in seconds.items():
        step, _, each = contestant.partition("/")
        if each != "files":
            pairs = zip(seconds[f"{step}/files"], times, strict=True)
            metrics[f"{contestant}/ratio"] = statistics.median(loose / ours for loose, ours in pairs)
    return work, metrics


def _make_videos(root: Path, count: int) -> list[Path]:
    """Writes a few videos and copies of them, in class folders; content that is the same is not shared on disk."""
    paths = [root / f"class{i % CLASSES}" / f"{i:06d}.mp4" for i in range(count)]
    for path in paths[:CLASSES]:
        path.parent.mkdir(parents=True)
    first = paths[:DISTINCT]
    with ThreadPoolExecutor() as pool:
        films = pool.map(
            lambda i: write_texture_video(first[i], i, frames=CLIP_FRAMES, size=CLIP_SIZE), range(DISTINCT)
        )
        list(films)
    for i, path in enumerate(paths[DISTINCT:]):
        shutil.copyfile(first[i % DISTINCT], path)
    return paths


def _dropper(paths: Iterable[str]) -> Callable[[], None]:
    """Returns a function that empties the cache, whose docstring says how."""
    paths = list(paths)

    def drop_all() -> None:
        """whole cache (drop_caches)"""
        os.sync()
        DROP_CACHES.write_text("3")

    def drop_content() -> None:
        """content of the files (posix_fadvise)"""
        os.sync()
        for path in paths:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return drop_all if os.access(DROP_CACHES, os.W_OK) else drop_content


def _timed(drop: Callable[[], None], action: Callable[[], object]) -> float:
    drop()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _fetch(paths: Iterable[str]) -> int:
    count = 0
    for path in paths:
        stored = find(path)
        count += sum(map(len, stored.blocks())) if stored else len(Path(path).read_bytes())
    return count


def _decode(paths: Iterable[str]) -> None:
    for path in paths:
        next(iter_frames(path))


def _silent(line: str) -> None:
    pass


def main() -> None:
    work, metrics = bench_shards(int((sys.argv[1:2] or [VIDEOS])[0]), (sys.argv[2:3] or [None])[0])
    print(", ".join(f"{name} {value}" for name, value in work.items()))
    for name, value in metrics.items():
        print(f"  {name:<40}{value:>12,.2f}")


if __name__ == "__main__":
    main()
