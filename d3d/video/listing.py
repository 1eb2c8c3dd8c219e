"""Finds the files of the clips that annotation files name, and makes the listing of a data set from them."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from d3d.messages import printable
from d3d.video.tables import COLUMNS, Listing

VIDEO_SUFFIXES = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm", ".wmv")


def find_videos(root: Path) -> dict[str, list[str]]:
    """Returns the paths of all videos below root by file name without suffix; follows links, skips hidden files."""
    paths: dict[str, list[str]] = {}
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        # A link may lead back to a parent folder.
        new = (real := os.path.realpath(folder)) not in visited
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if new and not name.startswith("."))
        for stem, suffix in map(os.path.splitext, sorted(files) if new else ()):
            if suffix.lower() in VIDEO_SUFFIXES and not stem.startswith("."):
                paths.setdefault(stem, []).append(str(Path(folder, stem + suffix)))
    return paths


def unique_path(paths: list[str], name: str) -> str | None:
    """Returns the one path of a clip, or None if there is none.

    Raises:
        ValueError: If there are several, naming the clip and two of them.
    """
    if len(paths) > 1:
        first, second = map(printable, paths[:2])
        name = printable(name)
        raise ValueError(f"{name} has two files, {first} and {second}: delete one, or choose a root with only one")
    return paths[0] if paths else None


def make_listing(
    rows: Iterable[tuple], classes: Iterable[str], find: Callable[[str], str | None], columns: Sequence[str] = ()
) -> Listing:
    """Makes a listing in which every clip is a whole file.

    Args:
        rows: Tuples of class, file name, split, group and the values of `columns`.
        classes: In the order of their labels.
        find: Maps "class/file" to the file's path, or to None if it is missing.
        columns: Names of further columns of the table.
    """
    classes = tuple(classes)
    label = {name: i for i, name in enumerate(classes)}
    clips, missing = [], []
    for name, file, split, group, *further in rows:
        path = find(f"{name}/{file}")
        if path:
            clips.append((path, name, label[name], split, 0.0, np.nan, group, *further))
        else:
            missing.append((split, f"{name}/{file}"))
    table = pd.DataFrame(clips, columns=[*COLUMNS, *columns]).astype({"start": float, "end": float})
    return Listing(table, classes, tuple(name for _, name in missing), len(clips) + len(missing), absent=tuple(missing))


def in_class_folder_or_flat(root: Path) -> Callable[[str], str | None]:
    """Returns a function that maps "class/file" to the path of this file, in its class's folder or directly in root."""

    def find(name: str) -> str | None:
        return next((str(p) for p in (root / name, root / Path(name).name) if os.path.isfile(p)), None)

    return find


def in_any_container(root: Path) -> Callable[[str], str | None]:
    """Returns `in_class_folder_or_flat` for files whose suffix may differ from the one of their annotations."""
    videos = find_videos(root)

    def find(name: str) -> str | None:
        folder, file = name.split("/", 1)
        paths = videos.get(os.path.splitext(file)[0], ())
        return unique_path([p for p in paths if Path(p).parent in (root / folder, root)], name)

    return find
