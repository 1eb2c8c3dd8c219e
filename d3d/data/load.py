"""Loads data sets as splits of clips: moving sprites, or video files in the layouts of public data sets.

data = load(config.data, seed=3, streams=("rgb", "flow"), device="cuda")
data.splits["iid"].inputs("rgb", index)
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from d3d.data.clips import Data, Share, alone
from d3d.data.sprite_classes import CLASSES, siblings
from d3d.data.sprite_clips import STRESS_PLAYBACK, sprite_clips, stress_clips
from d3d.data.sprites import SPLITS
from d3d.study.parameters import STREAMS, DataConfig


def load(
    config: DataConfig,
    *,
    seed: int,
    streams: tuple[str, ...] = ("rgb",),
    teacher: tuple[str, ...] = (),
    device: torch.device | str = "cpu",
    workers: int = 1,
    report: Callable[[str], None] = print,
    training: bool = True,
    share: Share = alone,
) -> Data:
    """Loads the clips of a data set.

    Args:
        config: which data set, and how its clips look.
        seed: chooses the training sprites.
        streams: streams needed in every split, rgb or flow.
        teacher: streams needed in the training split only.
        device: device of the batches.
        workers: number of processes that decode video files; 0: one per core.
        report: receives lines about video files: the memory that they take, and progress.
        training: whether the training split is needed; without it, videos of training clips need not exist.
        share: divides the checks of files among the processes that load the same data set.

    Raises:
        FileNotFoundError: the root, an annotation file or the flow cache is missing.
        ValueError: the data set cannot provide what was requested.
        VideoError: a file cannot be read and `damaged` is "raise".
    """
    if unknown := {*streams, *teacher} - set(STREAMS):
        raise ValueError(f"no stream {unknown.pop()!r}: the streams are {', '.join(STREAMS)}")
    if load_rendered := RENDERERS.get(config.files.dataset):
        return load_rendered(config, seed, streams, teacher, device)
    # Imported here, so that rendering sprites does not need PyAV.
    from d3d.data.video_sets import load_videos

    return load_videos(
        config,
        streams=streams,
        teacher=teacher,
        device=device,
        workers=workers,
        report=report,
        training=training,
        share=share,
    )


def _load_sprites(
    config: DataConfig, seed: int, streams: tuple[str, ...], teacher: tuple[str, ...], device: torch.device | str
) -> Data:
    flow = "flow" in (*streams, *teacher)
    num_clips = config.train_clips + config.unlabelled_clips
    train = sprite_clips(config, f"train/{seed}", num_clips, flow=flow, device=device)
    splits = {"train": replace(train, rolled=config.augment == "roll", num_unlabelled=config.unlabelled_clips)}
    for name in (*SPLITS, *STRESS_PLAYBACK):
        render_split = stress_clips if name in STRESS_PLAYBACK else sprite_clips
        splits[name] = render_split(config, name, config.test_clips, flow="flow" in streams, device=device)
    return Data(tuple(c.name for c in CLASSES), splits, siblings=tuple(siblings().tolist()))


# Maps each rendered data set to its loader; d3d.study.parameters lists the same names.
RENDERERS = {"sprites": _load_sprites}
