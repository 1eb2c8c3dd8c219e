"""The field's data sets as tables of clips, from their official layouts and annotation files.

listing = read("ucf101", "UCF-101", annotations="ucfTrainTestlist", split=1)
listing.table, listing.classes, listing.counts
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from d3d.video.tables import COLUMNS, Listing, cells_of, lines_of, read_table, wrong

SPLIT = ("ucf101", "hmdb51")  # sets of three official splits
SUFFIXES = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm", ".wmv")
KINETICS = "label,youtube_id,time_start,time_end,split"
UNLABELLED = KINETICS.removeprefix("label,")
SEGMENT = re.compile(r"([\w-]{11}),(\d{1,6})(?:\.0*)?,(\d{1,6})(?:\.0*)?", re.ASCII)
KINETICS_FILES = {"train": ("train.csv",), "val": ("val.csv", "validate.csv"), "test": ("test.csv",)}
AVA = ("video", "timestamp", "x1", "y1", "x2", "y2", "action", "person")


def read(dataset: str, root: str | Path, *, annotations: str | Path = "", split: int = 1) -> Listing:
    """The table of a data set at `root`, with its annotation files in `annotations`, which is root if empty.

    split: 1, 2 or 3 of UCF101 and HMDB51. Clips without a file are left out and counted.
    Raises FileNotFoundError for a missing root or annotation file, ValueError naming the file, the line and what was
    expected for one that is malformed or mixed up, and where no clip at all is found.
    """
    if dataset not in READERS:
        raise ValueError(f"dataset must be one of {', '.join(READERS)}, not {dataset!r}")
    if dataset in SPLIT and split not in (1, 2, 3):
        raise ValueError(f"split must be 1, 2 or 3, not {split}")
    root = Path(root)
    if dataset == "table":
        return read_table(root)
    if not root.is_dir():
        holds = "one folder a class" if dataset == "folder" else f"the videos of {dataset}"
        raise FileNotFoundError(f"root {str(root)!r} does not exist or is no folder: it must hold {holds}")
    folder = Path(annotations or root)
    if not folder.is_dir():
        raise FileNotFoundError(f"annotations {str(folder)!r} does not exist or is no folder of annotation files")
    found = READERS[dataset](root, folder, split)
    if found.table.empty:
        first = found.missing[0]
        raise ValueError(f"root {str(root)!r} holds none of the {found.listed} clips listed, not even {first}")
    return found


def _videos(root: Path) -> dict[str, list[str]]:
    """Every video file below root by its name without suffix, also behind links; hidden ones do not count."""
    found: dict[str, list[str]] = {}
    visited = set()
    for folder, below, files in os.walk(root, followlinks=True):
        # A link may lead back up.
        new = (real := os.path.realpath(folder)) not in visited
        visited.add(real)
        below[:] = sorted(name for name in below if new and not name.startswith("."))
        for stem, suffix in map(os.path.splitext, files if new else ()):
            if suffix.lower() in SUFFIXES and not stem.startswith("."):
                found.setdefault(stem, []).append(str(Path(folder, stem + suffix)))
    return found


def _one(paths: list[str], name: str) -> str | None:
    if len(paths) > 1:
        raise ValueError(f"{name} has two files, {paths[0]} and {paths[1]}: leave one, or let root hold only one")
    return paths[0] if paths else None


def _listing(rows: Iterable[tuple], classes: Iterable[str], find: Callable[[str], str | None]) -> Listing:
    """Rows of (class, file below its class folder, split, group), those whose file `find` finds."""
    classes = tuple(classes)
    label = {name: i for i, name in enumerate(classes)}
    found, missing = [], []
    for name, file, split, group in rows:
        path = find(f"{name}/{file}")
        if path:
            found.append((path, name, label[name], split, 0.0, np.nan, group))
        else:
            missing.append(f"{name}/{file}")
    table = pd.DataFrame(found, columns=list(COLUMNS)).astype({"start": float, "end": float})
    return Listing(table, classes, tuple(missing), len(found) + len(missing))


def _in_class_folder_or_flat(root: Path) -> Callable[[str], str | None]:
    def find(name: str) -> str | None:
        return next((str(p) for p in (root / name, root / Path(name).name) if p.is_file()), None)

    return find


def _folder(root: Path, _: Path, __: int) -> Listing:
    files = {
        folder.name: sorted(f for f in folder.iterdir() if not f.name.startswith("."))
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    if not any(files.values()):
        raise ValueError(f"root {str(root)!r} holds no video: it must hold one folder of video files a class")
    if empty := [name for name, found in files.items() if not found]:
        raise ValueError(f"class {empty[0]!r} of root {str(root)!r} holds no file: give it videos or delete its folder")
    if folders := [f for found in files.values() for f in found if f.is_dir()]:
        raise ValueError(f"{str(folders[0])!r} is a folder: a class folder holds its video files directly")
    if len(files) < 2:
        raise ValueError(f"root {str(root)!r} holds one class only ({', '.join(files)}): a classifier needs two")
    rows = [(name, path.name, "", path.name) for name, found in files.items() for path in found]
    # A link that leads nowhere is found and refused when opened, by name.
    return _listing(rows, files, lambda name: str(root / name))


def _ucf101(root: Path, folder: Path, split: int) -> Listing:
    names = folder / "classInd.txt"
    classes: list[str] = []
    for number, line in lines_of(names, "UCF101's list of classes, in the archive UCF101TrainTestSplits"):
        if not re.fullmatch(rf"{len(classes) + 1} \w+", line) or len(classes) == 101:
            raise wrong(names, number, line, f"'{len(classes) + 1} Class', at most 101 of them")
        classes.append(line.split()[1])
    rows: dict[str, tuple] = {}
    side: dict[str, str] = {}
    for part in ("train", "test"):
        path = folder / f"{part}list0{split}.txt"
        for number, line in lines_of(path, f"UCF101's {part} list of split {split}"):
            file, *label = line.rsplit(" ", 1) if part == "train" else [line]
            found = re.fullmatch(r"(\w+)/(v_\w+?_(g\d+)_c\d+\.\w+)", file)
            if not found or (part == "train") != bool(label):
                like = (
                    "'Class/v_Class_g08_c01.avi 1'" if part == "train" else "'Class/v_Class_g01_c01.avi' and no label"
                )
                raise wrong(path, number, line, f"{like} as in a {part} list")
            name, clip, source = found.groups()
            if name not in classes:
                raise wrong(path, number, line, f"a class of {names.name}")
            if label and label[0] != str(classes.index(name) + 1):
                raise wrong(path, number, line, f"the label {classes.index(name) + 1} that {names.name} gives {name}")
            if file in rows:
                raise wrong(path, number, line, f"every clip once, this one is in the {rows[file][2]} list already")
            group = f"{name}_{source}"
            if side.setdefault(group, part) != part:
                raise wrong(
                    path, number, line, f"clips of group {source} of {name} in one list only: splits are mixed up"
                )
            rows[file] = (name, clip, part, group)
        if part not in side.values():
            raise ValueError(f"{path} lists no clip")
    return _listing(rows.values(), classes, _in_class_folder_or_flat(root))


def _hmdb51(root: Path, folder: Path, split: int) -> Listing:
    ending = f"_test_split{split}.txt"
    files = {path.name.removesuffix(ending): path for path in folder.glob(f"[!.]*{ending}")}
    files = dict(sorted(files.items()))
    if not files:
        raise FileNotFoundError(f"no *{ending} in {str(folder)!r}: HMDB51 has one a class, in test_train_splits")
    if len(files) > 51:
        raise ValueError(f"{str(folder)!r} has {len(files)} files *{ending}: HMDB51 has 51 classes")
    if extra := sorted(
        p.name for p in root.iterdir() if p.is_dir() and p.name not in files and any(p.glob("[!.]*.avi"))
    ):
        raise FileNotFoundError(f"no {extra[0]}{ending} in {str(folder)!r}, though root has a class {extra[0]!r}")
    rows = []
    for name, path in files.items():
        seen: dict[str, str] = {}
        for number, line in lines_of(path, "a split of HMDB51"):
            file, _, code = line.rpartition(" ")
            if code not in ("0", "1", "2") or not file:
                raise wrong(path, number, line, "'name.avi CODE', the code 1 for train, 2 for test, 0 for neither")
            if file.strip() in seen:
                raise wrong(path, number, line, "every clip once")
            seen[file.strip()] = code
        if not {"1", "2"} <= set(seen.values()):
            raise ValueError(f"{path} has no clip of code {'1 (train)' if '1' not in seen.values() else '2 (test)'}")
        for file, code in seen.items():
            if code != "0":
                # The last one, as titles hold class names too: A_solo_climb_(klettern)_climb_f_cm_np1_ba_med_0.avi
                group = file.rpartition(f"_{name}_")[0] or Path(file).stem
                rows.append((name, file, {"1": "train", "2": "test"}[code], group))
    return _listing(rows, files, _in_class_folder_or_flat(root))


def _kinetics(most: int) -> Callable[[Path, Path, int], Listing]:
    def reader(root: Path, folder: Path, _: int) -> Listing:
        rows: dict[tuple[str, int], tuple] = {}
        for split, names in KINETICS_FILES.items():
            for path in (folder / name for name in names if (folder / name).is_file()):
                _kinetics_rows(path, split, rows)
        if not rows:
            raise FileNotFoundError(
                f"no train.csv or val.csv in {str(folder)!r}: Kinetics' lists start with {KINETICS}"
            )
        classes = sorted({row[0] for row in rows.values()})
        if len(classes) > most:
            raise ValueError(
                f"{str(folder)!r} lists {len(classes)} classes, Kinetics-{most} has {most}: another Kinetics?"
            )
        videos = _videos(root)

        def find(name: str) -> str | None:
            label, stem = name.rsplit("/", 1)
            whole = [p for p in videos.get(stem.rsplit("_", 2)[0], ()) if _plain(Path(p).parent.name) == _plain(label)]
            return _one(videos.get(stem, whole), name)

        return _listing(rows.values(), classes, find)

    return reader


def _plain(name: str) -> str:
    """A class's name as folders may have it: with underscores, without brackets, in any case."""
    return "".join(filter(str.isalnum, name)).lower()


def _kinetics_rows(path: Path, split: str, rows: dict[tuple[str, int], tuple]) -> None:
    """Adds by id and start what `_listing` wants of each line. Some official lists have a sixth column, is_cc."""
    (number, head), *lines = cells_of(path, "a list of Kinetics") or [(1, [])]
    header = ",".join(head).removesuffix(",is_cc")
    if header == UNLABELLED and split == "test":
        return
    if header != KINETICS:
        raise wrong(path, number, ",".join(head), f"{KINETICS!r}")
    for number, cells in lines:
        label, segment = cells[0].strip('" '), SEGMENT.fullmatch(",".join(cells[1:4]))
        if len(cells) != len(head) or not label or not segment or int(segment[2]) >= int(segment[3]):
            like = "a label, an id of 11 characters, a start and a later end in whole seconds, and the split"
            raise wrong(path, number, ",".join(cells), like)
        if {"validate": "val"}.get(cells[4], cells[4]) != split:
            raise wrong(path, number, ",".join(cells), f"clips of the {split} split only: files are mixed up")
        name, start, end = segment[1], int(segment[2]), int(segment[3])
        if (name, start) in rows:
            other = rows[name, start][2]
            raise wrong(path, number, ",".join(cells), f"every clip once, this one is in the {other} list already")
        rows[name, start] = (label, f"{name}_{start:06d}_{end:06d}", split, name)


def _ava(root: Path, folder: Path, _: int) -> Listing:
    maps = sorted(folder.glob("ava_action_list_v2.1*.pbtxt*"))
    if len(maps) != 1:
        raise FileNotFoundError(f"{str(folder)!r} must hold one ava_action_list_v2.1*.pbtxt, there are {len(maps)}")
    entries = re.findall(r'name:\s*"([^"]+)"\s*(?:label_)?id:\s*(\d+)', maps[0].read_text(encoding="utf-8-sig"))
    if not entries:
        raise ValueError(f'{maps[0]} names no action, expected entries such as label {{ name: "…" label_id: 1 }}')
    entries.sort(key=lambda entry: int(entry[1]))
    label = {int(number): i for i, (_, number) in enumerate(entries)}
    parts = [s for s in ("train", "val") if (folder / f"ava_{s}_v2.1.csv").is_file()]
    if not parts:
        raise FileNotFoundError(f"no ava_train_v2.1.csv or ava_val_v2.1.csv in {str(folder)!r}")
    table = pd.concat([_ava_part(folder, split) for split in parts], ignore_index=True)
    table = table[table["action"].isin(label)]
    if table.empty:
        raise ValueError(f"no action of {', '.join(parts)} is in {maps[0]}: give the label map of the same version")
    both = table.groupby("video")["split"].nunique()
    if (both > 1).any():
        raise ValueError(f"video {both.idxmax()} is both in ava_train_v2.1.csv and in ava_val_v2.1.csv")
    videos = _videos(root)
    at = {video: _one(videos.get(video, []), video) for video in both.index}
    names = tuple(name for name, _ in entries)
    table = table.assign(
        path=table["video"].map(at), label=table["action"].map(label), start=table["timestamp"] - 0.5,
        end=table["timestamp"] + 0.5, group=table["video"],
    )  # fmt: skip
    table["class"] = [names[i] for i in table["label"]]
    missing = tuple(sorted(set(table.loc[table["path"].isna(), "video"])))
    found = table[table["path"].notna()].reset_index(drop=True)
    return Listing(found[[*COLUMNS, *AVA[2:6], "person"]], names, missing, len(table))


def _ava_part(folder: Path, split: str) -> pd.DataFrame:
    path = folder / f"ava_{split}_v2.1.csv"
    rows = []
    for number, cells in cells_of(path, f"AVA's boxes of {split}"):
        try:
            second, x1, y1, x2, y2 = map(float, cells[1:6])
            action, person = map(int, cells[6:])
        except ValueError:
            raise wrong(path, number, ",".join(cells), f"{', '.join(AVA)}") from None
        if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            raise wrong(path, number, ",".join(cells), "x1 < x2 and y1 < y2 within [0, 1], as shares of the frame")
        rows.append((cells[0], second, x1, y1, x2, y2, action, person))
    table = pd.DataFrame(rows, columns=AVA)
    excluded = folder / f"ava_{split}_excluded_timestamps_v2.1.csv"
    out = set()
    for number, line in lines_of(excluded, f"AVA's list of excluded timestamps of {split}"):
        if not re.fullmatch(r"[^,]+,\s*\d+", line):
            raise wrong(excluded, number, line, "'video,timestamp'")
        video, second = line.split(",")
        out.add((video, float(second)))
    kept = [key not in out for key in zip(table["video"], table["timestamp"], strict=True)]
    return table[kept].assign(split=split)


READERS: dict[str, Callable[[Path, Path, int], Listing]] = {
    "folder": _folder,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "kinetics400": _kinetics(400),
    "kinetics600": _kinetics(600),
    "ava": _ava,
    "table": lambda root, *_: read_table(root),
}
DATASETS = tuple(READERS)
