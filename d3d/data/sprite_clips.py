"""Sets of moving sprites, with flow as the temporal stream sees it: exact, or TV-L1, kept on disk once computed.

clips = sprite_clips(config.data, "iid", 4000, flow=True, device="cuda")
"""

import fcntl
import hashlib
import io
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
from d3d.data.sprite_classes import CLASSES, REVERSED
from d3d.files import write_atomic
from d3d.flow import estimate as flows
from d3d.study.parameters import ClipConfig, DataConfig
from d3d.study.staleness import code_hash

# Test splits made of the clips of iid, and the order in which their moments are filmed.
STRESS = {"shuffled": "shuffled", "reversed": "backwards", "frozen": "frozen"}
# Rendered at once on a CPU, whose cache holds few, and on a GPU, which only many small clips keep busy.
RENDER_PIXELS = (2**19, 2**25)
# What decides a clip's TV-L1 flow.
SOURCES = ("d3d.data.sprite_clips", "d3d.data.sprites", "d3d.flow.estimate")


def _at_once(clip: ClipConfig, device: torch.device | str) -> int:
    return max(1, RENDER_PIXELS[torch.device(device).type == "cuda"] // (clip.frames * clip.size**2))


def rendered(
    clip: ClipConfig, split: str, count: int, *, played: str = "forwards", device: torch.device | str = "cpu"
) -> Iterator[sprites.Rendered]:
    """The first `count` clips of a split, as many at once as suit the device."""
    size = _at_once(clip, device)
    for i in range(0, count, size):
        yield sprites.render(clip, split, range(i, min(i + size, count)), played=played, device=device)


def sprite_clips(
    config: DataConfig,
    split: str,
    count: int,
    *,
    played: str = "forwards",
    flow: bool = False,
    truth: bool = False,
    device: torch.device | str = "cpu",
) -> Clips:
    """The first `count` sprites of a split with the flow that the temporal stream sees, and the true flow, where asked.

    Flow is held in half precision, exact to a thousandth of a pixel where it moves less than two a frame.
    """
    rgb, true, mask, tables = [], [], [], []
    exact = flow and config.flow.flow == "exact"
    for part in rendered(config.clip, split, count, played=played, device=device):
        rgb.append((part.rgb * 255).round_().to(torch.uint8))
        mask.append(part.mask)
        tables.append(part.table)
        if exact or truth:
            true.append(part.flow.half())
    frames, table = torch.cat(rgb), pd.concat(tables, ignore_index=True)
    true_flow = torch.cat(true) if true else None
    seen = true_flow if exact else None
    if flow and not exact:
        seen = _tvl1(config, f"{split} {played} {count}", frames)
    return Clips(
        rgb=frames,
        flow=seen,
        true_flow=true_flow if truth else None,
        mask=torch.cat(mask),
        labels=torch.from_numpy(table["label"].to_numpy(copy=True)).to(device),
        table=table,
        bound=config.flow.bound,
    )


def stress_clips(config: DataConfig, name: str, count: int, **asked) -> Clips:
    """The clips of iid as STRESS plays them; `reversed` has the labels of the reversed motion, without those of none.

    asked: flow, truth and device, as of `sprite_clips`.
    """
    clips = sprite_clips(config, "iid", count, played=STRESS[name], **asked)
    if name != "reversed":
        return clips
    label = np.array([-1 if back is None else back for back in REVERSED])[clips.table["label"]]
    known = label >= 0
    rows = torch.from_numpy(np.flatnonzero(known)).to(clips.labels.device)
    label, table = label[known], clips.table[known].reset_index(drop=True)
    table["label"], table["class"] = label, [CLASSES[i].name for i in label]
    kept = {name: getattr(clips, name) for name in ("rgb", "flow", "true_flow", "mask")}
    kept = {name: None if value is None else value[rows] for name, value in kept.items()}
    return replace(clips, **kept, labels=torch.from_numpy(label).to(clips.labels.device), table=table)


def _tvl1(config: DataConfig, clips: str, frames: Tensor) -> Tensor:
    """TV-L1 (N, 2, T, H, W), float16, of frames as both streams get them: uint8 (N, 3, T, H, W)."""

    def compute() -> Tensor:
        parts = frames.split(_at_once(config.clip, frames.device))
        return torch.cat([flows.tvl1_clip(part.float() / 255).half() for part in parts])

    if not config.flow.flow_cache:
        return compute()
    name, source = _names(config.clip, clips, frames.device.type)
    path = Path(config.flow.flow_cache) / f"{name}-{source}.npy"
    with _held(path.with_name(f"{name}.lock")):
        if not path.is_file():
            # What other code made, and what a killed run left half written: a gigabyte each.
            for left in (*path.parent.glob(f"{name}-*.npy"), *path.parent.glob(f".{name}-*")):
                left.unlink()
            found = compute()
            buffer = io.BytesIO()
            np.save(buffer, found.cpu().numpy())
            try:
                write_atomic({path: buffer.getvalue()})
            except OSError as error:
                print(f"flow is not kept: {error}")
            return found
    try:
        return torch.from_numpy(np.load(path)).to(frames.device)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no whole array of flow: delete it, the next run makes it anew ({error})") from None


def _names(clip: ClipConfig, clips: str, device: str) -> tuple[str, str]:
    """What names these clips' flow, with these knobs on this kind of device; and the code that computes it."""
    knobs = asdict(clip) | {"device": device}
    digest = hashlib.sha256(str(sorted(knobs.items())).encode()).hexdigest()[:12]
    return f"{clips.replace('/', '').replace(' ', '-')}-{digest}", code_hash(*SOURCES)[:12]


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """One process at a time: the others wait for what the first computes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
