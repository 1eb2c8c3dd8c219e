"""Reads data sets in their official layouts, with their annotation files, as tables of clips.

listing = read("ucf101", "UCF-101", annotations="ucfTrainTestlist", split=1)
listing.table, listing.classes, listing.counts
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from d3d.messages import printable, shown
from d3d.video.ava import read_ava
from d3d.video.hmdb import read_hmdb51, read_jhmdb
from d3d.video.listing import find_videos, in_class_folder_or_flat, make_listing, unique_path
from d3d.video.shard_sets import read_shards
from d3d.video.tables import (
    Listing,
    is_class_name,
    line_error,
    read_lines,
    read_rows,
    read_table,
)

# A set with fewer is a part of the benchmark, and its results stand in for those of the benchmark.
OFFICIAL_CLASSES = {"ucf101": 101, "hmdb51": 51, "jhmdb": 21, "kinetics400": 400, "kinetics600": 600}
SETS_WITH_SPLITS = ("ucf101", "hmdb51", "jhmdb")  # each has three official splits
KINETICS_HEADER = "label,youtube_id,time_start,time_end,split"
KINETICS_TEST_HEADER = KINETICS_HEADER.removeprefix("label,")
KINETICS_SEGMENT = re.compile(r"([\w-]{11}),(\d{1,6})(?:\.0*)?,(\d{1,6})(?:\.0*)?", re.ASCII)
KINETICS_FILES = {"train": ("train.csv",), "val": ("val.csv", "validate.csv"), "test": ("test.csv",)}


def read(dataset: str, root: str | Path, *, annotations: str | Path = "", split: int = 1) -> Listing:
    """Lists the clips of a data set whose files exist, and the names of the missing files.

    Args:
        dataset: One of `DATASETS`.
        root: Folder of the videos, or of the "shards"; the CSV file of a "table".
        annotations: Folder of the annotation files; empty: `root`.
        split: 1, 2 or 3, for UCF101, HMDB51 and JHMDB.

    Raises:
        FileNotFoundError: If root or an annotation file does not exist.
        ValueError: If an annotation file is malformed or contradicts another, naming the file, the line and what was
            expected, or if no clip exists.
    """
    if dataset not in READERS:
        raise ValueError(f"dataset must be one of {', '.join(READERS)}, not {dataset!r}")
    if dataset in SETS_WITH_SPLITS and split not in (1, 2, 3):
        raise ValueError(f"split must be 1, 2 or 3, not {split}")
    root, name = Path(root), printable(root)
    folder = Path(annotations or root)
    if dataset != "table" and not os.path.isdir(root):
        content = {"folder": "one folder per class", "shards": "what `d3d data … --shards` wrote"}.get(
            dataset, f"the videos of {dataset}"
        )
        raise FileNotFoundError(f"root '{name}' does not exist or is no folder: it must hold {content}")
    if dataset != "table" and not os.path.isdir(folder):
        wanted = "does not exist or is no folder of annotation files"
        raise FileNotFoundError(f"annotations '{printable(folder)}' {wanted}")
    listing = READERS[dataset](root, folder, split)
    for each in listing.classes:
        if not is_class_name(each):
            raise ValueError(
                f"root '{name}' has a class {shown(each)}: its name must be one line of at most 255 characters"
            )
    if listing.table.empty:
        first = printable(listing.missing[0])
        raise ValueError(f"root '{name}' holds none of the {listing.listed} clips listed, not even {first}")
    return listing


def _read_folder(root: Path, _: Path, __: int) -> Listing:
    visible = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    if broken := [path for path in visible if path.is_symlink() and not os.path.exists(path)]:
        raise ValueError(f"{printable(broken[0])} is a link that leads nowhere: it must lead to the folder of a class")
    files = {
        folder.name: sorted(f for f in folder.iterdir() if not f.name.startswith("."))
        for folder in visible
        if folder.is_dir()
    }
    if not any(files.values()):
        raise ValueError(f"root '{printable(root)}' holds no video: it must hold one folder of video files per class")
    if empty := [name for name, paths in files.items() if not paths]:
        raise ValueError(
            f"class {shown(empty[0])} of root '{printable(root)}' holds no file: add videos or delete its folder"
        )
    if folders := [path for paths in files.values() for path in paths if path.is_dir()]:
        raise ValueError(f"'{printable(folders[0])}' is a folder: a class folder holds its video files directly")
    if len(files) < 2:
        name = shown(next(iter(files)))
        raise ValueError(f"root '{printable(root)}' holds one class only ({name}): a classifier needs two")
    rows = [(name, path.name, "", path.name) for name, paths in files.items() for path in paths]
    # A broken link is listed too: opening it raises an error that names it.
    return make_listing(rows, files, lambda name: str(root / name))


def _read_ucf101(root: Path, folder: Path, split: int) -> Listing:
    class_list = folder / "classInd.txt"
    classes: list[str] = []
    for number, line in read_lines(class_list, "UCF101's list of classes, in the archive UCF101TrainTestSplits"):
        if not re.fullmatch(rf"{len(classes) + 1} \w+", line) or len(classes) == 101:
            raise line_error(class_list, number, line, f"'{len(classes) + 1} Class', at most 101 of them")
        classes.append(line.split()[1])
    rows: dict[str, tuple] = {}
    subset_of_group: dict[str, str] = {}
    for subset in ("train", "test"):
        path = folder / f"{subset}list0{split}.txt"
        for number, line in read_lines(path, f"UCF101's {subset} list of split {split}"):
            file, *label = line.rsplit(" ", 1) if subset == "train" else [line]
            match = re.fullmatch(r"(\w+)/(v_\w+?_(g\d+)_c\d+\.\w+)", file)
            if not match or (subset == "train") != bool(label):
                example = (
                    "'Class/v_Class_g08_c01.avi 1'" if subset == "train" else "'Class/v_Class_g01_c01.avi' and no label"
                )
                raise line_error(path, number, line, f"{example} as in a {subset} list")
            name, clip, source = match.groups()
            if name not in classes:
                raise line_error(path, number, line, f"a class of {class_list.name}")
            if label and label[0] != str(classes.index(name) + 1):
                expected = f"the label {classes.index(name) + 1} that {class_list.name} gives {name}"
                raise line_error(path, number, line, expected)
            if file in rows:
                expected = f"each clip once, but this one is already in the {rows[file][2]} list"
                raise line_error(path, number, line, expected)
            group = f"{name}_{source}"
            if subset_of_group.setdefault(group, subset) != subset:
                expected = f"clips of group {source} of {name} in one list only: splits are mixed up"
                raise line_error(path, number, line, expected)
            rows[file] = (name, clip, subset, group)
        if subset not in subset_of_group.values():
            raise ValueError(f"{printable(path)} lists no clip")
    return make_listing(rows.values(), classes, in_class_folder_or_flat(root))


def _kinetics_reader(max_classes: int) -> Callable[[Path, Path, int], Listing]:
    def reader(root: Path, folder: Path, _: int) -> Listing:
        rows: dict[tuple[str, int], tuple] = {}
        for split, names in KINETICS_FILES.items():
            for path in (folder / name for name in names if os.path.lexists(folder / name)):
                _add_kinetics_rows(path, split, rows)
        if not rows:
            raise FileNotFoundError(
                f"no train.csv or val.csv in '{printable(folder)}': Kinetics' lists start with {KINETICS_HEADER}"
            )
        classes = sorted({row[0] for row in rows.values()})
        if len(classes) > max_classes:
            raise ValueError(
                f"'{printable(folder)}' lists {len(classes)} classes, Kinetics-{max_classes} has {max_classes}: is it "
                "another Kinetics?"
            )
        videos = find_videos(root)

        def find(name: str) -> str | None:
            label, stem = name.rsplit("/", 1)
            by_id = videos.get(stem.rsplit("_", 2)[0], ())
            in_class_folder = [p for p in by_id if _normalise(Path(p).parent.name) == _normalise(label)]
            return unique_path(videos.get(stem, in_class_folder), name)

        return make_listing(rows.values(), classes, find)

    return reader


def _normalise(name: str) -> str:
    """A class name without case, spaces and punctuation, which folder names write in different ways."""
    return "".join(filter(str.isalnum, name)).lower()


def _add_kinetics_rows(path: Path, split: str, rows: dict[tuple[str, int], tuple]) -> None:
    """Adds the rows of one list for `make_listing`, keyed by YouTube id and start; a sixth column is_cc is ignored."""
    (number, header_cells), *lines = read_rows(path, "a list of Kinetics") or [(1, [])]
    header = ",".join(header_cells).removesuffix(",is_cc")
    if header == KINETICS_TEST_HEADER and split == "test":
        return
    if header != KINETICS_HEADER:
        raise line_error(path, number, ",".join(header_cells), f"{KINETICS_HEADER!r}")
    for number, cells in lines:
        line = ",".join(cells)
        label, segment = cells[0].strip('" '), KINETICS_SEGMENT.fullmatch(",".join(cells[1:4]))
        if len(cells) != len(header_cells) or not label or not segment or int(segment[2]) >= int(segment[3]):
            expected = "a label, an id of 11 characters, a start and a later end in whole seconds, and the split"
            raise line_error(path, number, line, expected)
        if {"validate": "val"}.get(cells[4], cells[4]) != split:
            raise line_error(path, number, line, f"clips of the {split} split only: files are mixed up")
        youtube_id, start, end = segment[1], int(segment[2]), int(segment[3])
        if (youtube_id, start) in rows:
            other = rows[youtube_id, start][2]
            raise line_error(path, number, line, f"each clip once, but this one is already in the {other} list")
        rows[youtube_id, start] = (label, f"{youtube_id}_{start:06d}_{end:06d}", split, youtube_id)


READERS: dict[str, Callable[[Path, Path, int], Listing]] = {
    "folder": _read_folder,
    "ucf101": _read_ucf101,
    "hmdb51": read_hmdb51,
    "jhmdb": read_jhmdb,
    "kinetics400": _kinetics_reader(OFFICIAL_CLASSES["kinetics400"]),
    "kinetics600": _kinetics_reader(OFFICIAL_CLASSES["kinetics600"]),
    "ava": read_ava,
    "table": lambda root, *_: read_table(root),
    "shards": lambda root, *_: read_shards(root),
}
DATASETS = tuple(READERS)
