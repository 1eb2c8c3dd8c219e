"""Checks which videos of a data set exist and are complete, and writes a table of them, or the videos as shards.

d3d data --dataset ucf101 --root UCF-101 --annotations ucfTrainTestlist
d3d data --dataset table --root set.csv --flow-cache FLOW --shards FOLDER
"""

import argparse
import sys
from dataclasses import replace
from functools import partial

import pandas as pd

from d3d.data.shard_writer import write_shards
from d3d.data.video_sets import check_videos
from d3d.flow.extract import parse_shard
from d3d.messages import one_line, printable, shown
from d3d.progress import Progress
from d3d.video import annotations
from d3d.video.decode import VideoError
from d3d.video.shard_sets import damaged_videos
from d3d.video.tables import Listing, write_table

MAX_SHARD_GB = 1000


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="d3d data",
        description="Check which videos of a data set exist and are complete, and write a table of them, or the videos "
        "as shards; of shards, check every byte.",
    )
    parser.add_argument(
        "--dataset", required=True, choices=annotations.DATASETS, help="data set, which defines the layout of root"
    )
    parser.add_argument("--root", required=True, help="folder of the videos or shards; --dataset table: the CSV file")
    parser.add_argument("--annotations", default="", help="folder of the data set's annotation files (default: root)")
    parser.add_argument(
        "--split", type=int, default=1, help="official split of ucf101, hmdb51 or jhmdb, 1 to 3 (default 1)"
    )
    out = parser.add_mutually_exclusive_group()
    out.add_argument("--out", help="CSV file to list the complete videos in; --dataset table reads it unchecked")
    out.add_argument(
        "--shards",
        help="folder to copy the complete videos to, many per tar file, for --dataset shards; a killed run resumes",
    )
    parser.add_argument("--flow-cache", default="", help="with --shards: flow to store beside the videos")
    parser.add_argument(
        "--shard-gb", type=float, default=1.0, help="with --shards: GB of videos and flow per tar file (default 1)"
    )
    parser.add_argument(
        "--shard",
        default="1/1",
        help="with --shards, i/n: every n-th tar file from the i-th on, for the i-th of n processes (default 1/1)",
    )
    parser.add_argument(
        "--damaged", choices=("skip", "raise"), default="skip",
        help="videos that cannot be decoded: skip and list them, or stop at the first (default skip)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        part = parse_shard(args.shard)
        if not 1e-6 <= args.shard_gb <= MAX_SHARD_GB:
            raise ValueError(f"shard_gb must lie in [0.000001, {MAX_SHARD_GB}], not {shown(args.shard_gb)}")
        if args.out and args.dataset == "shards":
            raise ValueError("--out lists loose files, and those of dataset 'shards' lie in tar files: use it as it is")
        listing = annotations.read(args.dataset, args.root, annotations=args.annotations, split=args.split)
        if args.shards:
            _write_shards(args, listing, part)
            return
        table, refused = _check(args, listing)
        if args.out:
            write_table(args.out, replace(listing, table=table))
    except (ValueError, OSError) as error:
        sys.exit(one_line(error))
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again" + (" to resume" if args.shards else ""))
    _print_listing(listing, table, refused)
    if args.out:
        print(f"-> {args.out}")


def _write_shards(args: argparse.Namespace, listing: Listing, part: tuple[int, int]) -> None:
    print(_counts(listing), flush=True)
    total = write_shards(
        listing, args.root, args.shards, flow_cache=args.flow_cache, shard_bytes=round(args.shard_gb * 1e9), part=part,
        damaged=args.damaged, report=partial(print, flush=True),
    )  # fmt: skip
    done = "all" if total["shards"] == total["planned"] else f"{total['shards']} of"
    print(
        f"{done} {total['planned']} shards: {total['videos']} videos, {total['clips']} clips, {total['refused']} "
        f"unreadable videos, {total['bytes'] / 1e6:.1f} MB -> {printable(args.shards)}"
    )


def _check(args: argparse.Namespace, listing: Listing) -> tuple[pd.DataFrame, dict[str, str]]:
    """Returns the rows of readable videos, and the reason for each other one."""
    if args.dataset != "shards":
        return check_videos(listing.table, damaged=args.damaged)
    paths, refused = listing.table["path"], {}
    with Progress(paths.nunique(), "videos checked") as progress:
        for path, reason in damaged_videos(args.root):
            if reason and args.damaged == "raise":
                raise VideoError(reason)
            if reason:
                refused[path] = reason
            progress.update()
    return listing.table[~paths.isin(refused)], refused


def _counts(listing: Listing) -> str:
    return ", ".join(f"{count} {name}" for name, count in listing.counts.items())


def _print_listing(listing: Listing, table: pd.DataFrame, refused: dict[str, str]) -> None:
    print(f"{_counts(listing)}, {len(refused)} unreadable")
    for line in [
        *(f"missing: {printable(name)}" for name in listing.missing[:20]),
        *(f"unreadable: {reason}" for reason in refused.values()),
    ]:
        print(line)
    clips_per_split = table["split"].replace("", "not split").value_counts(sort=False)
    print(", ".join(f"{name} {count} clips" for name, count in clips_per_split.items()), end="; ")
    hours = table.drop_duplicates("path")["seconds"].sum() / 3600
    print(f"{len(listing.classes)} classes; {hours:.2f} h of video")
