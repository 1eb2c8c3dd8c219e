"""Checks which videos of a data set exist and are complete, and writes a table of them.

d3d data --dataset ucf101 --root UCF-101 --annotations ucfTrainTestlist
"""

import argparse
import sys
from dataclasses import replace

from d3d.data.video_sets import check_videos
from d3d.messages import one_line, printable
from d3d.video import annotations
from d3d.video.tables import write_table


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="d3d data",
        description="Check which videos of a data set exist and are complete, and write a table of them.",
    )
    parser.add_argument(
        "--dataset", required=True, choices=annotations.DATASETS, help="data set, which defines the layout of root"
    )
    parser.add_argument("--root", required=True, help="folder of the videos; --dataset table: the CSV file")
    parser.add_argument("--annotations", default="", help="folder of the data set's annotation files (default: root)")
    parser.add_argument(
        "--split", type=int, default=1, help="official split of ucf101, hmdb51 or jhmdb, 1 to 3 (default 1)"
    )
    parser.add_argument("--out", help="CSV file to list the complete videos in; --dataset table reads it unchecked")
    parser.add_argument(
        "--damaged", choices=("skip", "raise"), default="skip",
        help="videos that cannot be decoded: skip and list them, or stop at the first (default skip)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        listing = annotations.read(args.dataset, args.root, annotations=args.annotations, split=args.split)
        table, refused = check_videos(listing.table, damaged=args.damaged)
        if args.out:
            write_table(args.out, replace(listing, table=table))
    except (ValueError, OSError) as error:
        sys.exit(one_line(error))
    print(", ".join(f"{count} {name}" for name, count in listing.counts.items()) + f", {len(refused)} unreadable")
    for line in [
        *(f"missing: {printable(name)}" for name in listing.missing[:20]),
        *(f"unreadable: {reason}" for reason in refused.values()),
    ]:
        print(line)
    clips_per_split = table["split"].replace("", "not split").value_counts(sort=False)
    print(", ".join(f"{name} {count} clips" for name, count in clips_per_split.items()), end="; ")
    hours = table.drop_duplicates("path")["seconds"].sum() / 3600
    print(f"{len(listing.classes)} classes; {hours:.2f} h of video")
    if args.out:
        print(f"-> {args.out}")
