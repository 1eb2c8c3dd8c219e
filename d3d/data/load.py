"""Data sets as splits of clips: moving sprites, and video files in the layouts of the field.

data = load(config.data, seed=3, streams=("rgb", "flow"), device="cuda")
data.splits["iid"].inputs("rgb", index)
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from zlib import crc32

import pandas as pd
import torch

from d3d.data.clips import Data
from d3d.data.sprite_classes import CLASSES, siblings
from d3d.data.sprite_clips import STRESS, sprite_clips, stress_clips
from d3d.data.sprites import SPLITS
from d3d.progress import Progress
from d3d.study.parameters import STREAMS, DataConfig
from d3d.video import annotations


def load(
    config: DataConfig,
    *,
    seed: int,
    streams: tuple[str, ...] = ("rgb",),
    teacher: tuple[str, ...] = (),
    device: torch.device | str = "cpu",
    workers: int = 1,
) -> Data:
    """The data set's clips with the inputs of `streams`; `seed` chooses the training sprites.

    teacher: streams that are wanted of the training clips only. workers: processes that decode files, 0 for one a core.
    Raises FileNotFoundError for a missing root, annotation file or flow cache, ValueError where the data set cannot
    give what is asked, and VideoError for an unreadable file where `damaged` is "raise".
    """
    if unknown := {*streams, *teacher} - set(STREAMS):
        raise ValueError(f"no stream {unknown.pop()!r}: the streams are {', '.join(STREAMS)}")
    if render := RENDERED.get(config.files.dataset):
        return render(config, seed, streams, teacher, device)
    return _files(config, streams, teacher, device, workers)


def _sprites(
    config: DataConfig, seed: int, streams: tuple[str, ...], teacher: tuple[str, ...], device: torch.device | str
) -> Data:
    flow = "flow" in (*streams, *teacher)
    splits = {"train": sprite_clips(config, f"train/{seed}", config.train_clips, flow=flow, device=device)}
    for name in (*SPLITS, *STRESS):
        tested = stress_clips if name in STRESS else sprite_clips
        splits[name] = tested(config, name, config.test_clips, flow="flow" in streams, device=device)
    return Data(tuple(c.name for c in CLASSES), splits, siblings=tuple(siblings().tolist()))


# What renders the clips of a data set that is not of files; the schema lists their names too.
RENDERED = {"sprites": _sprites}


def checked(
    table: pd.DataFrame, *, damaged: str = "skip", report: Callable[[str], None] = print
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows whose file is whole, with its seconds, fps, height and width; and why the others were refused.

    Every file is opened and counted through, not decoded. A table that has `seconds` already is taken at its word.
    Raises VideoError for the first that is not whole where `damaged` is "raise".
    """
    # PyAV is needed for files only: a machine that renders sprites does without it.
    from d3d.video.decode import VideoError, check

    if "seconds" in table and table["seconds"].notna().all():
        return table, {}

    def one(path: str) -> dict[str, float] | str:
        try:
            return asdict(check(path))
        except VideoError as error:
            if damaged == "raise":
                raise
            return str(error)

    paths = list(dict.fromkeys(table["path"]))
    found = {}
    with Progress(len(paths), "videos checked", report) as progress, ThreadPoolExecutor() as pool:
        for path, info in zip(paths, pool.map(one, paths), strict=True):
            found[path] = info
            progress.update()
    refused = {path: info for path, info in found.items() if isinstance(info, str)}
    table = table[~table["path"].isin(refused)].reset_index(drop=True)
    facts = pd.DataFrame([found[path] for path in table["path"]], columns=["seconds", "fps", "height", "width"])
    return table.drop(columns=list(facts), errors="ignore").join(facts), refused


def _hold_out(table: pd.DataFrame) -> pd.Series:
    """`train` or `test` for every row: of each class a fifth of the files, at least one of two, is held out.

    The files' names choose which, so that another seed or another machine tests on the same.
    """
    order = table["path"].map(lambda path: crc32(Path(path).name.encode()))
    rank = order.groupby(table["label"]).rank(method="first")
    size = order.groupby(table["label"]).transform("size")
    held_out = (size / 5).round().clip(lower=1).where(size > 1, 0)
    return (rank <= held_out).map({True: "test", False: "train"})


def _files(
    config: DataConfig, streams: tuple[str, ...], teacher: tuple[str, ...], device: torch.device | str, workers: int
) -> Data:
    from joblib import cpu_count

    from d3d.data.file_clips import FileClips, View
    from d3d.flow.cache import fields_path, open_cache, refusals, summary
    from d3d.flow.opencv import cores
    from d3d.video.decode import VideoError

    files, root = config.files, Path(config.files.root)
    if workers > cpu_count():
        raise ValueError(
            f"workers is {workers}, this machine has {cpu_count()} cores: ask for no more, or 0 for one a core"
        )
    view = View(
        frames=config.clip.frames, size=config.clip.size, fps=files.fps,
        short_side=files.short_side or config.clip.size, bound=config.flow.bound, clips=files.view_clips,
        crops=files.view_crops,
    )  # fmt: skip
    listing = annotations.read(files.dataset, root, annotations=files.annotations, split=files.split)
    table, refused = checked(listing.table, damaged=files.damaged)
    if table.empty:
        raise ValueError(
            f"root {files.root!r} holds no video that can be read; the first: {next(iter(refused.values()))}"
        )
    if "flow" in (*streams, *teacher):
        if not config.flow.flow_cache:
            raise ValueError(
                "the temporal stream needs flow_cache: the folder that "
                f"`d3d flow --dataset {files.dataset} --root {files.root} --out FOLDER` fills"
            )
        open_cache(config.flow.flow_cache, view.flow)
        below = root.parent if root.is_file() else root
        table["flow"] = [str(fields_path(config.flow.flow_cache, below, path)) for path in table["path"]]
        wanting = ~table["flow"].map(lambda path: Path(path).is_file())
        if "flow" not in streams:
            wanting &= table["split"].isin(["train", ""])
        known = refusals(config.flow.flow_cache)
        for path in table.loc[wanting, "path"]:
            name = os.path.relpath(path, below)  # as the cache names it
            refused[path] = known.get(name, f"{path} has no flow in {config.flow.flow_cache}: run `d3d flow` again")
        table = table[~wanting].reset_index(drop=True)
    if refused and files.damaged == "raise":
        raise VideoError(next(iter(refused.values())))
    for name in listing.classes:
        if name not in set(table["class"]):
            own = set(listing.table.loc[listing.table["class"] == name, "path"])
            reasons = "; ".join(why for path, why in refused.items() if path in own) or "none was found"
            raise ValueError(f"class {name!r} of root {files.root!r} has no video that can be read: {reasons}")
    if (table["split"] == "").all():
        # Held out among the readable files only, so that a damaged one never empties a split.
        table["split"] = _hold_out(table)
    splits = {}
    for split in ["train", *sorted(set(table["split"]) - {"train", ""})]:
        name = split if split == "train" else f"{files.dataset}/{split}"
        rows = table[table["split"] == split].reset_index(drop=True)
        labels = torch.from_numpy(rows["label"].to_numpy(copy=True)).to(device)
        splits[name] = FileClips(
            table=rows, labels=labels, view=view, damaged=files.damaged, workers=workers or cores(), unread=refused
        )
    if not len(splits["train"]):
        raise ValueError(f"root {files.root!r} has no training video that can be read")
    if len(splits) == 1:
        raise ValueError(f"root {files.root!r} has too few videos to hold any out for testing: give a class two")
    flow = summary(config.flow.flow_cache) if "flow" in table else {}
    return Data(listing.classes, splits, listing.counts, listing.missing, refused, flow)
