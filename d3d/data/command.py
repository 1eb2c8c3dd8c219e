"""What of a set of videos is there, and whole; and a table of it.

d3d data --dataset ucf101 --root UCF-101 --annotations ucfTrainTestlist
"""

import argparse
import sys
from dataclasses import replace

from d3d.data.load import checked
from d3d.video import annotations
from d3d.video.tables import write_table


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="d3d data", description="What of a set of videos is there, and whole; and a table of it."
    )
    parser.add_argument("--dataset", required=True, choices=annotations.DATASETS, help="the layout of root")
    parser.add_argument("--root", required=True, help="folder of the videos, or the table's CSV file")
    parser.add_argument("--annotations", default="", help="folder of the set's annotation files (default: root)")
    parser.add_argument("--split", type=int, default=1, help="1, 2 or 3 of UCF101 and HMDB51")
    parser.add_argument("--out", help="write a table of what is whole, which dataset 'table' reads unchecked")
    parser.add_argument("--damaged", choices=("skip", "raise"), default="skip", help="with a file that is not whole")
    given = parser.parse_args(argv)
    try:
        listing = annotations.read(given.dataset, given.root, annotations=given.annotations, split=given.split)
        table, refused = checked(listing.table, damaged=given.damaged)
        if given.out:
            write_table(given.out, replace(listing, table=table))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(", ".join(f"{count} {name}" for name, count in listing.counts.items()) + f", {len(refused)} refused")
    for line in [
        *(f"missing: {name}" for name in listing.missing[:20]),
        *(f"refused: {why}" for why in refused.values()),
    ]:
        print(line)
    splits = table["split"].replace("", "not split").value_counts(sort=False)
    print(", ".join(f"{name} {count} clips" for name, count in splits.items()), end="; ")
    hours = table.drop_duplicates("path")["seconds"].sum() / 3600
    print(f"{len(listing.classes)} classes; {hours:.2f} h of video")
    if given.out:
        print(f"-> {given.out}")
