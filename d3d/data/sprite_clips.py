"""Splits of moving sprites with exact or TV-L1 flow; TV-L1 is cached on disk.

clips = sprite_clips(config.data, "iid", 4000, flow=True, device="cuda")
"""

import fcntl
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d3d.data import sprites
from d3d.data.clips import Clips
from d3d.data.sprite_classes import CLASSES, REVERSED_LABELS
from d3d.files import append_to, check_folder, write_atomic
from d3d.flow import estimate as flows
from d3d.messages import one_line, printable
from d3d.study.parameters import ClipConfig, DataConfig
from d3d.study.staleness import code_hash

# Test splits made from the clips of iid, and in which order their frames are played.
STRESS_PLAYBACK = {"shuffled": "shuffled", "reversed": "backwards", "frozen": "frozen"}
# Pixels rendered per batch: few enough for the cache of a CPU, enough to keep a GPU busy.
CPU_PIXELS, GPU_PIXELS = 2**19, 2**25
DIGEST_BYTES = hashlib.sha256().digest_size
# Modules whose code decides the TV-L1 flow of a clip.
TVL1_MODULES = ("d3d.data.sprite_clips", "d3d.data.sprites", "d3d.flow.estimate")


def _batch_size(clip: ClipConfig, device: torch.device | str) -> int:
    pixels = GPU_PIXELS if torch.device(device).type == "cuda" else CPU_PIXELS
    return max(1, pixels // (clip.frames * clip.size**2))


def render_batches(
    clip: ClipConfig, split: str, count: int, *, playback: str = "forwards", device: torch.device | str = "cpu"
) -> Iterator[sprites.RenderedClips]:
    """Renders the first `count` clips of a split, in batches that suit the device."""
    size = _batch_size(clip, device)
    for i in range(0, count, size):
        yield sprites.render(clip, split, range(i, min(i + size, count)), playback=playback, device=device)


def sprite_clips(
    config: DataConfig,
    split: str,
    count: int,
    *,
    playback: str = "forwards",
    flow: bool = False,
    true_flow: bool = False,
    device: torch.device | str = "cpu",
) -> Clips:
    """Renders the first `count` clips of a split.

    Flow is float16, exact to a thousandth of a pixel where it moves less than two pixels per frame.

    Args:
        config: how clips look, and which flow the temporal stream sees.
        split: as for `d3d.data.render`.
        count: number of clips.
        playback: as for `d3d.data.render`.
        flow: whether to include the flow that the temporal stream sees.
        true_flow: whether to include the exact flow.
        device: device of the clips.
    """
    rgb, exact_flow, mask, tables = [], [], [], []
    sees_exact = flow and config.flow.flow == "exact"
    for rendered in render_batches(config.clip, split, count, playback=playback, device=device):
        rgb.append((rendered.rgb * 255).round_().to(torch.uint8))
        mask.append(rendered.mask)
        tables.append(rendered.table)
        if sees_exact or true_flow:
            exact_flow.append(rendered.flow.half())
    frames, table = torch.cat(rgb), pd.concat(tables, ignore_index=True)
    exact = torch.cat(exact_flow) if exact_flow else None
    seen = exact if sees_exact else None
    if flow and not sees_exact:
        seen = tvl1_flow(config, f"{split} {playback} {count}", frames)
    return Clips(
        rgb=frames,
        flow=seen,
        true_flow=exact if true_flow else None,
        mask=torch.cat(mask),
        labels=torch.from_numpy(table["label"].to_numpy(copy=True)).to(device),
        table=table,
        bound=config.flow.bound,
    )


def stress_clips(config: DataConfig, name: str, count: int, **options) -> Clips:
    """Renders the first `count` clips of iid, played as the stress split `name` requires.

    `reversed` is labelled by the reversed motion and leaves out the clips whose reversed motion has no class.

    Args:
        config: as for `sprite_clips`.
        name: a key of STRESS_PLAYBACK.
        count: number of clips of iid.
        options: `flow`, `true_flow` and `device` of `sprite_clips`.
    """
    clips = sprite_clips(config, "iid", count, playback=STRESS_PLAYBACK[name], **options)
    if name != "reversed":
        return clips
    label = np.array([-1 if new is None else new for new in REVERSED_LABELS])[clips.table["label"]]
    rows = np.flatnonzero(label >= 0)
    label, clips = label[rows], clips.subset(rows)
    table = clips.table.assign(**{"label": label, "class": [CLASSES[i].name for i in label]})
    return replace(clips, labels=torch.from_numpy(label).to(clips.labels.device), table=table)


def tvl1_flow(config: DataConfig, clips: str, frames: Tensor) -> Tensor:
    """Computes or loads the TV-L1 flow of clips.

    Args:
        config: its `flow_cache` is the folder of the cached flow; empty: no cache.
        clips: name of the clips in the cache.
        frames: uint8 (N, 3, T, H, W), as both streams see them.

    Returns:
        float16 (N, 2, T, H, W), x and y, pixels per frame.
    """

    def compute() -> Tensor:
        batches = frames.split(_batch_size(config.clip, frames.device))
        return torch.cat([flows.tvl1_clip(batch.float() / 255).half() for batch in batches])

    if not config.flow.flow_cache:
        return compute()
    check_folder(config.flow.flow_cache)
    name, source = _cache_key(config.clip, clips, frames.device.type)
    path = Path(config.flow.flow_cache) / f"{name}-{source}.npy"
    with _locked(path.with_name(f"{name}.lock")):
        if not path.is_file():
            # Flow from another version of the code, and incomplete files of killed runs, take a gigabyte each.
            for stale in (*path.parent.glob(f"{name}-*.npy"), *path.parent.glob(f".{name}-*")):
                stale.unlink()
            flow = compute()
            buffer = io.BytesIO()
            np.save(buffer, flow.cpu().numpy())
            content = buffer.getvalue()
            try:
                write_atomic({path: content + _digest(path, content)})
            except OSError as error:
                print(f"flow is not cached: {one_line(error)}")
            return flow
    if not _is_intact(path):
        reason = "is incomplete, changed or the flow of other clips: delete it, the next run recomputes it"
        raise ValueError(f"{printable(path)} {reason}")
    return torch.from_numpy(np.load(path)).to(frames.device)


def _is_intact(path: Path) -> bool:
    content = memoryview(path.read_bytes())
    return content[-DIGEST_BYTES:] == _digest(path, content[:-DIGEST_BYTES])


def _digest(path: Path, content: bytes | memoryview) -> bytes:
    """The SHA-256 at the end of a file of flow: of its name, which says whose flow it is, and of its content."""
    digest = hashlib.sha256(os.fsencode(path.name))
    digest.update(content)
    return digest.digest()


def _cache_key(clip: ClipConfig, clips: str, device_type: str) -> tuple[str, str]:
    """Returns a name for the flow of these clips on this kind of device, and a hash of the code that computes it."""
    parameters = asdict(clip) | {"device": device_type}
    digest = hashlib.sha256(str(sorted(parameters.items())).encode()).hexdigest()[:12]
    return f"{clips.replace('/', '').replace(' ', '-')}-{digest}", code_hash(*TVL1_MODULES)[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Locks a file while the context is open; other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with append_to(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
