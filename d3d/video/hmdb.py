"""Reads HMDB51 and JHMDB, which share the names of their clips and the form of their splits.

A name is `<title>_<class>_<body>_<camera>_np<people>_<view>_<quality>_<number>.avi`, for example
`A_solo_climb_(klettern)_climb_f_cm_np1_ba_med_0.avi`. A title may hold any character and the class's name too.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from os.path import splitext
from pathlib import Path
from zlib import crc32

from d3d.messages import printable
from d3d.video.listing import VIDEO_SUFFIXES, in_any_container, in_class_folder_or_flat, make_listing
from d3d.video.tables import Listing, line_error, read_lines

SUBSETS = {"1": "train", "2": "test"}
FLAGS = re.compile(r"[hufl]_(nm|cm)_np\d+_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+")
CAMERAS = {"nm": "still", "cm": "moving"}
VAL_PERCENT = 15


def read_hmdb51(root: Path, folder: Path, split: int) -> Listing:
    """Lists HMDB51's clips of one split; a group is a title."""
    files = _find_lists(root, folder, split, "HMDB51", 51, suffixes=(".avi",))
    rows = []
    for name, path in files.items():
        expected = "'name.avi CODE', the code 1 for train, 2 for test, 0 for neither"
        for _, _, file, code in _read_codes(path, "HMDB51", ("0", "1", "2"), expected):
            if code != "0":
                title, _ = _parse(file, name)
                rows.append((name, file, SUBSETS[code], title or Path(file).stem))
    return make_listing(rows, files, in_class_folder_or_flat(root))


def read_jhmdb(root: Path, folder: Path, split: int) -> Listing:
    """Lists JHMDB's clips of one split, in any container, with a column `camera`, still or moving.

    A group is a class and a title, and all its clips are in one split: train, test, or val (see `hold_out`).
    """
    files = _find_lists(root, folder, split, "JHMDB", 21, suffixes=VIDEO_SUFFIXES)
    rows = []
    for name, path in files.items():
        clips: list[tuple[str, str, str, str]] = []
        subset_of_group: dict[str, str] = {}
        expected = "'name.avi CODE', the code 1 for train, 2 for test"
        for number, line, file, code in _read_codes(path, "JHMDB", ("1", "2"), expected):
            title, flags = _parse(splitext(file)[0], name)
            match = FLAGS.fullmatch(flags)
            if not title or not match:
                raise line_error(path, number, line, f"a name such as 'Title_{name}_f_cm_np1_ba_med_0.avi'")
            group = f"{name}|{title}"
            if subset_of_group.setdefault(group, SUBSETS[code]) != SUBSETS[code]:
                raise line_error(
                    path, number, line, f"all clips of {title!r} for {subset_of_group[group]}, as in earlier lines"
                )
            clips.append((file, SUBSETS[code], group, CAMERAS[match[1]]))
        val = hold_out(Counter(group for _, subset, group, _ in clips if subset == "train"))
        rows += [
            (name, file, "val" if group in val else subset, group, camera) for file, subset, group, camera in clips
        ]
    return make_listing(rows, files, in_any_container(root), columns=("camera",))


def hold_out(clips: Mapping[str, int]) -> set[str]:
    """Chooses the groups of a class's training clips that are held out for validation.

    In the order of the CRC-32 of their names, each group is held out that keeps their clips at or below 15 % of the
    class's, rounded up; if there is none, the smallest. A single group stays in training. The choice depends on the
    names of the clips alone, so that it is the same for every seed and on every machine.

    Args:
        clips: Number of training clips by group.
    """
    order = sorted(clips, key=lambda group: (crc32(group.encode()), group))
    if len(order) < 2:
        return set()
    limit = -(-VAL_PERCENT * sum(clips.values()) // 100)
    chosen: set[str] = set()
    for group in order:
        if sum(clips[other] for other in chosen) + clips[group] <= limit:
            chosen.add(group)
    return chosen or {min(order, key=clips.__getitem__)}


def _find_lists(
    root: Path, folder: Path, split: int, dataset: str, max_classes: int, suffixes: Collection[str]
) -> dict[str, Path]:
    """Finds the list of every class of a split, in the order of the classes.

    Raises:
        FileNotFoundError: If there is no list, or none of a class whose folder in root has files of these suffixes.
        ValueError: If there are more lists than classes.
    """
    ending = f"_test_split{split}.txt"
    files = {path.name.removesuffix(ending): path for path in folder.glob(f"[!.]*{ending}")}
    files = dict(sorted(files.items()))
    if not files:
        archive = {"HMDB51": "test_train_splits", "JHMDB": "splits"}[dataset]
        raise FileNotFoundError(f"no *{ending} in '{printable(folder)}': {dataset} has one per class, in {archive}")
    if len(files) > max_classes:
        raise ValueError(f"'{printable(folder)}' has {len(files)} files *{ending}: {dataset} has {max_classes} classes")
    if extra := sorted(p.name for p in root.iterdir() if p.name not in files and _has_videos(p, suffixes)):
        name = printable(extra[0])
        raise FileNotFoundError(f"no {name}{ending} in '{printable(folder)}', though root has a class '{name}'")
    return files


def _has_videos(folder: Path, suffixes: Collection[str]) -> bool:
    return folder.is_dir() and any(
        p.suffix.lower() in suffixes and not p.name.startswith(".") for p in folder.iterdir()
    )


def _read_codes(path: Path, dataset: str, codes: Collection[str], expected: str) -> Iterator[tuple[int, str, str, str]]:
    """Yields number, text, file name and code of every line of a class's list.

    Raises:
        ValueError: For a line with another code or without a name, or a second line of a clip, saying what was
            expected; or if the list has no clip for training or none for testing.
    """
    code_of_file: dict[str, str] = {}
    for number, line in read_lines(path, f"a split of {dataset}"):
        file, _, code = line.rpartition(" ")
        file = file.strip()
        if code not in codes or not file:
            raise line_error(path, number, line, expected)
        # A path could name files outside of root.
        if "/" in file:
            raise line_error(path, number, line, "the name of a file, not a path")
        if file in code_of_file:
            raise line_error(path, number, line, "each clip once")
        code_of_file[file] = code
        yield number, line, file, code
    for code, subset in SUBSETS.items():
        if code not in code_of_file.values():
            raise ValueError(f"{printable(path)} has no clip of code {code} ({subset})")


def _parse(stem: str, name: str) -> tuple[str, str]:
    """Splits a name at the last occurrence of its class, into title and flags."""
    title, _, flags = stem.rpartition(f"_{name}_")
    return title, flags
