"""Loads data sets as splits of clips: moving sprites, or video files in the layouts of public data sets.

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
from d3d.data.sprite_clips import STRESS_PLAYBACK, sprite_clips, stress_clips
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
    """Loads the clips of a data set.

    Args:
        config: which data set, and how its clips look.
        seed: chooses the training sprites.
        streams: streams needed in every split, rgb or flow.
        teacher: streams needed in the training split only.
        device: device of the batches.
        workers: number of processes that decode video files; 0: one per core.

    Raises:
        FileNotFoundError: the root, an annotation file or the flow cache is missing.
        ValueError: the data set cannot provide what was requested.
        VideoError: a file cannot be read and `damaged` is "raise".
    """
    if unknown := {*streams, *teacher} - set(STREAMS):
        raise ValueError(f"no stream {unknown.pop()!r}: the streams are {', '.join(STREAMS)}")
    if load_rendered := RENDERERS.get(config.files.dataset):
        return load_rendered(config, seed, streams, teacher, device)
    return _load_files(config, streams, teacher, device, workers)


def _load_sprites(
    config: DataConfig, seed: int, streams: tuple[str, ...], teacher: tuple[str, ...], device: torch.device | str
) -> Data:
    flow = "flow" in (*streams, *teacher)
    splits = {"train": sprite_clips(config, f"train/{seed}", config.train_clips, flow=flow, device=device)}
    for name in (*SPLITS, *STRESS_PLAYBACK):
        render_split = stress_clips if name in STRESS_PLAYBACK else sprite_clips
        splits[name] = render_split(config, name, config.test_clips, flow="flow" in streams, device=device)
    return Data(tuple(c.name for c in CLASSES), splits, siblings=tuple(siblings().tolist()))


# Maps each rendered data set to its loader; d3d.study.parameters lists the same names.
RENDERERS = {"sprites": _load_sprites}


def check_videos(
    table: pd.DataFrame, *, damaged: str = "skip", report: Callable[[str], None] = print
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Opens every video of a table and checks it as `d3d.video.check` does.

    A table that has `seconds` for every row was checked before and is returned as it is.

    Args:
        table: one row per clip, with `path`.
        damaged: "skip" leaves out unreadable files; "raise" raises VideoError for the first.
        report: receives lines about the progress.

    Returns:
        The rows of complete files, with columns seconds, fps, height and width; and a mapping from the path of every
        other file to the reason.
    """
    # Imported here, so that rendering sprites does not need PyAV.
    from d3d.video.decode import VideoError, check

    if "seconds" in table and table["seconds"].notna().all():
        return table, {}

    def info_or_reason(path: str) -> dict[str, float] | str:
        try:
            return asdict(check(path))
        except VideoError as error:
            if damaged == "raise":
                raise
            return str(error)

    paths = list(dict.fromkeys(table["path"]))
    results = {}
    with Progress(len(paths), "videos checked", report) as progress, ThreadPoolExecutor() as pool:
        for path, result in zip(paths, pool.map(info_or_reason, paths), strict=True):
            results[path] = result
            progress.update()
    refused = {path: result for path, result in results.items() if isinstance(result, str)}
    table = table[~table["path"].isin(refused)].reset_index(drop=True)
    info = pd.DataFrame([results[path] for path in table["path"]], columns=["seconds", "fps", "height", "width"])
    return table.drop(columns=list(info), errors="ignore").join(info), refused


def _hold_out(table: pd.DataFrame) -> pd.Series:
    """Returns `train` or `test` for every row: a fifth of each class's files is held out, at least one if it has two.

    The split depends on the file names alone, so that it is the same for every seed and on every machine.
    """
    order = table["path"].map(lambda path: crc32(os.fsencode(Path(path).name)))
    rank = order.groupby(table["label"]).rank(method="first")
    size = order.groupby(table["label"]).transform("size")
    test_count = (size / 5).round().clip(lower=1).where(size > 1, 0)
    return (rank <= test_count).map({True: "test", False: "train"})


def _load_files(
    config: DataConfig, streams: tuple[str, ...], teacher: tuple[str, ...], device: torch.device | str, workers: int
) -> Data:
    from joblib import cpu_count

    from d3d.data.file_clips import FileClips, ViewSpec
    from d3d.flow.cache import fields_path, open_cache, refusals, summary
    from d3d.flow.opencv import cores
    from d3d.video.decode import VideoError

    files, root = config.files, Path(config.files.root)
    if workers > cpu_count():
        raise ValueError(
            f"workers is {workers}, this machine has {cpu_count()} cores: use at most as many, or 0 for one per core"
        )
    view = ViewSpec(
        frames=config.clip.frames, size=config.clip.size, fps=files.fps,
        short_side=files.short_side or config.clip.size, bound=config.flow.bound, clips=files.view_clips,
        crops=files.view_crops,
    )  # fmt: skip
    listing = annotations.read(files.dataset, root, annotations=files.annotations, split=files.split)
    table, refused = check_videos(listing.table, damaged=files.damaged)
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
        video_root = root.parent if root.is_file() else root
        table["flow"] = [str(fields_path(config.flow.flow_cache, video_root, path)) for path in table["path"]]
        lacks_flow = ~table["flow"].map(lambda path: Path(path).is_file())
        if "flow" not in streams:
            lacks_flow &= table["split"].isin(["train", ""])
        reasons = refusals(config.flow.flow_cache)
        for path in table.loc[lacks_flow, "path"]:
            name = os.path.relpath(path, video_root)  # the video's name in the logs of the cache
            refused[path] = reasons.get(name, f"{path} has no flow in {config.flow.flow_cache}: run `d3d flow` again")
        table = table[~lacks_flow].reset_index(drop=True)
    if refused and files.damaged == "raise":
        raise VideoError(next(iter(refused.values())))
    for name in listing.classes:
        if name not in set(table["class"]):
            paths = set(listing.table.loc[listing.table["class"] == name, "path"])
            explanation = "; ".join(reason for path, reason in refused.items() if path in paths) or "none was found"
            raise ValueError(f"class {name!r} of root {files.root!r} has no video that can be read: {explanation}")
    if (table["split"] == "").all():
        # Only readable files are split, so that a damaged one never empties a split.
        table["split"] = _hold_out(table)
    splits = {}
    for split in ["train", *sorted(set(table["split"]) - {"train", ""})]:
        name = split if split == "train" else f"{files.dataset}/{split}"
        rows = table[table["split"] == split].reset_index(drop=True)
        labels = torch.from_numpy(rows["label"].to_numpy(copy=True)).to(device)
        splits[name] = FileClips(
            table=rows, labels=labels, view=view, damaged=files.damaged, workers=workers or cores(), refused=refused
        )
    if not len(splits["train"]):
        raise ValueError(f"root {files.root!r} has no training video that can be read")
    if len(splits) == 1:
        raise ValueError(
            f"root {files.root!r} has too few videos to hold any out for testing: a class needs at least two"
        )
    flow = summary(config.flow.flow_cache) if "flow" in table else {}
    return Data(listing.classes, splits, listing.counts, listing.missing, refused, flow)
