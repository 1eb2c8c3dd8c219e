"""Loads sets of video files: checks them, finds their flow, keeps them in memory if they fit, and holds out a test."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from joblib import cpu_count

from d3d.data import memory
from d3d.data.clips import ClipSet, Data, Share, alone
from d3d.data.file_clips import FileClips
from d3d.data.views import ViewSpec, clip_sizes
from d3d.flow.cache import CacheError, check_parameters, fields_path, mismatches, open_cache, refusals, summary
from d3d.flow.opencv import cores
from d3d.messages import printable
from d3d.progress import Progress
from d3d.study.parameters import DataConfig
from d3d.video import annotations
from d3d.video.decode import VideoError, check
from d3d.video.shards import flow_path
from d3d.video.tables import FACTS, Listing, StoredFlow


def check_videos(
    table: pd.DataFrame, *, damaged: str = "skip", report: Callable[[str], None] = print, share: Share = alone
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Opens the videos of a table and checks them as `d3d.video.check` does.

    Rows that have `seconds`, `fps`, `height` and `width` were checked before and are left as they are.

    Args:
        table: one row per clip, with `path`.
        damaged: "skip" leaves out unreadable files; "raise" raises VideoError for the first.
        report: receives lines about the progress.
        share: divides the videos among processes.

    Returns:
        The rows of complete files, with columns seconds, fps, height and width; and a mapping from the path of every
        other file to the reason.
    """
    facts = list(FACTS)
    unchecked = table.reindex(columns=facts).isna().any(axis=1)
    if not unchecked.any():
        return table, {}

    def info_or_reason(path: str) -> dict[str, float] | str:
        try:
            return asdict(check(path))
        except VideoError as error:
            if damaged == "raise":
                raise
            return str(error)

    def check_all(paths: list[str]) -> dict[str, dict[str, float] | str]:
        info_by_path = {}
        with Progress(len(paths), "videos checked", report) as progress, ThreadPoolExecutor() as pool:
            for path, result in zip(paths, pool.map(info_or_reason, paths), strict=True):
                info_by_path[path] = result
                progress.update()
        return info_by_path

    results = share(check_all, list(dict.fromkeys(table.loc[unchecked, "path"])))
    refused = {path: result for path, result in results.items() if isinstance(result, str)}
    readable = ~table["path"].isin(refused)
    table, unchecked = table[readable].reset_index(drop=True), unchecked[readable].to_list()
    stated = table.reindex(columns=facts).to_dict("records")
    rows = zip(table["path"], stated, unchecked, strict=True)
    info = pd.DataFrame([results[path] if measured else known for path, known, measured in rows], columns=facts)
    info = info.astype({"height": int, "width": int})
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


def load_videos(
    config: DataConfig,
    *,
    streams: tuple[str, ...],
    teacher: tuple[str, ...],
    device: torch.device | str,
    workers: int,
    report: Callable[[str], None],
    training: bool = True,
    share: Share = alone,
) -> Data:
    """Loads the clips of a set of video files; arguments and errors are those of `d3d.data.load.load`."""
    files, root = config.files, Path(config.files.root)
    if workers > cpu_count():
        raise ValueError(
            f"workers is {workers}, this machine has {cpu_count()} cores: use at most as many, or 0 for one per core"
        )
    workers = workers or cores()
    view = ViewSpec(
        frames=config.clip.frames, size=config.clip.size, fps=files.fps,
        short_side=files.short_side or config.clip.size, bound=config.flow.bound, clips=files.view_clips,
        crops=files.view_crops, repeats=files.repeated_frames,
    )  # fmt: skip
    listing = annotations.read(files.dataset, root, annotations=files.annotations, split=files.split)
    if not training and (listing := listing.without_training()).table.empty:
        raise ValueError(f"root {files.root!r} has none of the {listing.listed} test videos that are listed")
    # A column of a table that is named flow is not a clip's flow in the cache.
    clips = listing.table.drop(columns="flow", errors="ignore")
    table, refused = check_videos(clips, damaged=files.damaged, report=report, share=share)
    if table.empty:
        raise ValueError(
            f"root {files.root!r} holds no video that can be read; the first: {next(iter(refused.values()))}"
        )
    needs_flow = "flow" in (*streams, *teacher)
    # Flow beside the videos is that of all their frames.
    stored = None if config.flow.flow_cache or view.repeats == "drop" else listing.flow
    if needs_flow and (stored or config.flow.flow_cache):
        rows_with_flow = table["split"].isin(["train", ""]) | ("flow" in streams)
        if stored:
            table = _take_stored_flow(files.root, stored, table, view, refused, rows_with_flow)
        else:
            table = _find_flow(config, table, view, refused, rows_with_flow, share)
        if training:
            _require_every_class(config, listing, table, refused)
    in_train = table["split"].isin(["train", ""])  # a clip without a split may become a training clip
    flow_rows = np.full(len(table), needs_flow) & ("flow" in streams or in_train.to_numpy())
    required = memory.required_bytes(clip_sizes(table, view), flow_rows)
    kept = None
    if memory.keep_in_memory(files.memory, len(table), required, device, report):
        kept = memory.decode_all(table, view, device=device, workers=workers, report=report)
        if needs_flow:
            kept = memory.add_flow(kept, np.flatnonzero(flow_rows), table, view, workers=workers, report=report)
        refused |= {table["path"].iat[row]: reason for row, reason in kept.refused.items()}
        table = table.assign(row=np.arange(len(table))).drop(index=list(kept.refused)).reset_index(drop=True)
    elif view.repeats == "drop":
        raise ValueError(
            "repeated_frames 'drop' needs the clips in memory, which is too small: use a smaller short_side or fps, or "
            "repeated_frames 'keep'"
        )
    elif needs_flow and "flow" not in table:
        raise ValueError(
            "the temporal stream needs flow_cache: the folder that "
            f"`d3d flow --dataset {files.dataset} --root {files.root} --out FOLDER` fills; or memory 'yes', which "
            "computes the flow at the start"
        )
    if refused and files.damaged == "raise":
        raise VideoError(next(iter(refused.values())))
    if training:
        _require_every_class(config, listing, table, refused)
    if (table["split"] == "").all():
        # Only readable files are split, so that a damaged one never empties a split.
        table["split"] = _hold_out(table)
        table = table if training else table[table["split"] != "train"].reset_index(drop=True)
    splits: dict[str, ClipSet] = {}
    for split in [*(["train"] if training else []), *sorted(set(table["split"]) - {"train", ""})]:
        name = split if split == "train" else f"{files.dataset}/{split}"
        rows = table[table["split"] == split].reset_index(drop=True)
        labels = torch.from_numpy(rows["label"].to_numpy(copy=True)).to(device)
        if kept:
            splits[name] = kept.clips(rows.pop("row").to_numpy(), rows, labels, view)
        else:
            splits[name] = FileClips(
                table=rows, labels=labels, view=view, damaged=files.damaged, workers=workers, refused=refused
            )
    if training and not len(splits["train"]):
        raise ValueError(f"root {files.root!r} has no training video that can be read")
    if not set(splits) - {"train"}:
        raise ValueError(
            f"root {files.root!r} has too few videos to hold any out for testing: a class needs at least two"
        )
    flow = (stored.summary if stored else summary(config.flow.flow_cache)) if "flow" in table else {}
    partial = len(listing.classes) < annotations.OFFICIAL_CLASSES.get(files.dataset, 0)
    if partial:
        report(
            f"{len(listing.classes)} classes of {files.dataset}'s {annotations.OFFICIAL_CLASSES[files.dataset]}: the "
            "record is marked as a stand-in, which decides no claim"
        )
    return Data(listing.classes, splits, listing.counts, listing.missing, refused, flow, partial=partial)


def _find_flow(
    config: DataConfig,
    table: pd.DataFrame,
    view: ViewSpec,
    refused: dict[str, str],
    needs_flow: pd.Series,
    share: Share,
) -> pd.DataFrame:
    """Adds the column `flow`, the path of each clip's flow in the cache; refuses clips that need flow and have none.

    Args:
        config: names the cache and the root of the videos.
        table: one row per clip.
        view: the parameters of the flow.
        refused: receives the reason for each path that is refused.
        needs_flow: bool (N,), the clips that need flow.
        share: as in `load`.

    Raises:
        CacheError: the cache was made with other parameters, or a clip's flow is not its own.
    """
    root, cache = Path(config.files.root), config.flow.flow_cache
    open_cache(cache, view.flow)
    video_root = root.parent if root.is_file() else root
    table = table.assign(flow=[str(fields_path(cache, video_root, path)) for path in table["path"]])
    lacks_flow = ~table["flow"].map(lambda path: Path(path).is_file()) & needs_flow
    paths = list(dict.fromkeys(table.loc[needs_flow, "path"]))
    if wrong := share(partial(mismatches, cache, video_root), paths):
        others = f" ({len(wrong) - 1} more files are wrong)" if len(wrong) > 1 else ""
        raise CacheError(next(iter(wrong.values())) + others)
    reasons = refusals(cache)
    for path in table.loc[lacks_flow, "path"]:
        name = os.path.relpath(path, video_root)  # the video's name in the logs of the cache
        refused[path] = reasons.get(name, f"{printable(path)} has no flow in {cache}: run `d3d flow` again")
    return table[~lacks_flow].reset_index(drop=True)


def _take_stored_flow(
    root: str, stored: StoredFlow, table: pd.DataFrame, view: ViewSpec, refused: dict[str, str], needs_flow: pd.Series
) -> pd.DataFrame:
    """Adds the column `flow` of videos in shards that were written with their flow; arguments as of `_find_flow`."""
    check_parameters(stored.manifest, view.flow, f"the flow in the shards {printable(root)}")
    lacks_flow = table["path"].isin(stored.absent) & needs_flow
    refused |= {path: stored.absent[path] for path in table.loc[lacks_flow, "path"]}
    return table.assign(flow=table["path"].map(flow_path))[~lacks_flow].reset_index(drop=True)


def _require_every_class(config: DataConfig, listing: Listing, table: pd.DataFrame, refused: dict[str, str]) -> None:
    """Raises ValueError for a class of which no video can be read."""
    for name in listing.classes:
        if name not in set(table["class"]):
            paths = set(listing.table.loc[listing.table["class"] == name, "path"])
            reasons = [reason for path, reason in refused.items() if path in paths]
            others = [f"and {len(reasons) - 2} more"] if len(reasons) > 2 else []
            explanation = "; ".join(reasons[:2] + others) or "none was found"
            raise ValueError(
                f"class {name!r} of root {config.files.root!r} has no video that can be read: {explanation}"
            )
