"""Data sets as tables of clips: moving sprites, and folders of class folders of video files.

data = load(DataConfig(dataset="sprites", rho=0.5), seed=3, streams=("rgb", "flow"), device="cuda")
data.splits["iid"].inputs("rgb", index)
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import pandas as pd
import torch
from torch import Tensor

from d3d import sprites
from d3d.flow import tvl1_clip
from d3d.sprites import SpriteConfig

DATASETS = ("sprites", "folder")
STREAMS = {"rgb": 3, "flow": 2}  # and their input channels
FLOWS = ("tvl1", "exact")
# Rendered at once on a CPU, whose cache holds few, and on a GPU, which only many small clips keep busy.
RENDER_PIXELS = (2**19, 2**25)


@dataclass(frozen=True, kw_only=True)
class DataConfig(SpriteConfig):
    """What to load.

    dataset: sprites or folder. root: the folder of class folders. train_clips, test_clips: sprites a split.
    flow: what the temporal stream sees, tvl1 as in the paper or exact. bound: it is clipped to ± bound pixels and
    divided by it.
    """

    dataset: str = "sprites"
    root: str = ""
    train_clips: int = 512
    test_clips: int = 256
    flow: str = "tvl1"
    bound: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, not {self.dataset!r}")
        if self.dataset == "folder" and not self.root:
            raise ValueError("dataset 'folder' needs root: a folder with one folder of videos a class")
        if self.dataset != "folder" and self.root:
            raise ValueError(f"root is only for dataset 'folder', not for {self.dataset!r}")
        if self.flow not in FLOWS:
            raise ValueError(f"flow must be one of {', '.join(FLOWS)}, not {self.flow!r}")
        if not self.bound > 0:
            raise ValueError(f"bound must be positive, not {self.bound}")
        for name in ("train_clips", "test_clips"):
            if getattr(self, name) < len(sprites.CLASSES):
                raise ValueError(
                    f"{name} must be at least {len(sprites.CLASSES)}, one a class, not {getattr(self, name)}"
                )


@dataclass(frozen=True)
class Clips:
    """Clips of one split on one device: rgb uint8 (N, 3, T, H, W), flow float32 (N, 2, T, H, W) or None, labels (N,).

    flow is what the temporal stream sees, true_flow what is so; mask (N, T, H, W) is where the target is seen. The
    table has a row a clip and at least its `label` and `group`.
    """

    rgb: Tensor
    flow: Tensor | None
    true_flow: Tensor | None
    mask: Tensor | None
    labels: Tensor
    table: pd.DataFrame
    bound: float

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, stream: str, index: Tensor | slice) -> Tensor:
        """What the stream's network sees: RGB in [0, 1], or flow in [-1, 1]; float32 (B, C, T, H, W)."""
        if stream == "rgb":
            return self.rgb[index].float() / 255
        return self.flow[index].clamp(-self.bound, self.bound) / self.bound


@dataclass(frozen=True)
class Data:
    """`splits["train"]` and the splits to test on; `found` files, of which `refused` names those that gave no clip."""

    classes: tuple[str, ...]
    splits: dict[str, Clips]
    found: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, object]:
        """What became of the files, for the record; empty for rendered clips."""
        if not self.found:
            return {}
        return {"found": self.found, "decoded": self.found - len(self.refused), "refused": self.refused}

    @property
    def tests(self) -> dict[str, Clips]:
        return {name: clips for name, clips in self.splits.items() if name != "train"}


def load(
    config: DataConfig,
    *,
    seed: int,
    streams: tuple[str, ...] = ("rgb",),
    teacher: tuple[str, ...] = (),
    device: torch.device | str = "cpu",
) -> Data:
    """The data set's clips with the inputs of `streams`; `seed` chooses the training sprites.

    teacher: streams that are wanted of the training clips only.
    Raises FileNotFoundError for a missing root, ValueError where the data set cannot give what is asked.
    """
    if unknown := {*streams, *teacher} - set(STREAMS):
        raise ValueError(f"no stream {unknown.pop()!r}: the streams are {', '.join(STREAMS)}")
    if config.dataset == "sprites":
        counts = {f"train/{seed}": config.train_clips, **dict.fromkeys(sprites.SPLITS, config.test_clips)}
        splits = {}
        for split, count in counts.items():
            name = split.split("/")[0]
            wanted = (*streams, *teacher) if name == "train" else streams
            splits[name] = sprite_clips(config, split, count, flow="flow" in wanted, device=device)
        return Data(tuple(c.name for c in sprites.CLASSES), splits)
    if "flow" in (*streams, *teacher):
        raise ValueError("dataset 'folder' has no optical flow: train stream 'rgb' on it, or use dataset 'sprites'")
    return _folder(config, device)


def rendered(
    config: SpriteConfig, split: str, count: int, device: torch.device | str = "cpu"
) -> Iterator[sprites.Rendered]:
    """The first `count` clips of a split, as many at once as suit the device."""
    size = max(1, RENDER_PIXELS[torch.device(device).type == "cuda"] // (config.frames * config.size**2))
    for i in range(0, count, size):
        yield sprites.render(config, split, range(i, min(i + size, count)), device=device)


def sprite_clips(
    config: DataConfig, split: str, count: int, *, flow: bool = False, device: torch.device | str = "cpu"
) -> Clips:
    """The first `count` sprites of a split, as `load` gives them, with flow where asked."""
    rgb, true, seen, mask, tables = [], [], [], [], []
    for part in rendered(config, split, count, device):
        rgb.append((part.rgb * 255).round_().to(torch.uint8))
        mask.append(part.mask)
        tables.append(part.table)
        if flow:
            true.append(part.flow)
        if flow and config.flow == "tvl1":
            # From the frames as both streams get them, in 8 bits.
            seen.append(tvl1_clip(rgb[-1].float() / 255))
    table = pd.concat(tables, ignore_index=True)
    true_flow = torch.cat(true) if flow else None
    return Clips(
        rgb=torch.cat(rgb),
        flow=torch.cat(seen) if seen else true_flow,
        true_flow=true_flow,
        mask=torch.cat(mask),
        labels=torch.from_numpy(table["label"].to_numpy(copy=True)).to(device),
        table=table,
        bound=config.bound,
    )


def folder_table(root: str | Path) -> pd.DataFrame:
    """One row a file under root/<class>/: path, class, label and group. Hidden files do not count.

    Raises FileNotFoundError for a missing root, ValueError where it has no two class folders or one that holds no
    file or a further folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root {str(root)!r} does not exist or is no folder: it must hold one folder a class")
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
    rows = []
    for label, (name, found) in enumerate(files.items()):
        for path in found:
            rows.append({"path": str(path), "class": name, "label": label, "group": "all"})
    return pd.DataFrame(rows)


def _hold_out(table: pd.DataFrame) -> pd.Series:
    """`train` or `test` for every row: of each class a fifth of the files, at least one of two, is held out.

    The files' names choose which, so that another seed or another machine tests on the same.
    """
    order = table["path"].map(lambda path: crc32(Path(path).name.encode()))
    rank = order.groupby(table["label"]).rank(method="first")
    size = order.groupby(table["label"]).transform("size")
    held_out = (size / 5).round().clip(lower=1).where(size > 1, 0)
    return (rank <= held_out).map({True: "test", False: "train"})


def _folder(config: DataConfig, device: torch.device | str) -> Data:
    # PyAV is needed for files only: a machine that renders sprites does without it.
    from d3d.videos import VideoError, read_clip

    table = folder_table(config.root)
    classes = tuple(table["class"].unique())

    def read(path: str) -> Tensor | str:
        try:
            clip = read_clip(path, frames=config.frames, short_side=config.size, crop=config.size)
        except VideoError as error:
            return str(error)
        return (clip * 255).round().to(torch.uint8)

    with ThreadPoolExecutor() as pool:
        clips = list(pool.map(read, table["path"]))
    good = [isinstance(clip, Tensor) for clip in clips]
    refused = {path: clip for path, clip, ok in zip(table["path"], clips, good, strict=True) if not ok}
    found = len(table)
    table = table[good].reset_index(drop=True)
    if table.empty:
        raise ValueError(
            f"root {config.root!r} holds no video that can be read; the first: {next(iter(refused.values()))}"
        )
    if empty := [name for name in classes if name not in set(table["class"])]:
        reasons = "; ".join(why for path, why in refused.items() if Path(path).parent.name == empty[0])
        raise ValueError(f"class {empty[0]!r} of root {config.root!r} has no video that can be read: {reasons}")
    # Held out among the readable files only, so that a damaged one never empties a split.
    table["split"] = _hold_out(table)
    rgb = torch.stack([clip for clip, ok in zip(clips, good, strict=True) if ok])
    splits = {}
    for split in ("train", "test"):
        index = table.index[table["split"] == split].to_list()
        if len(index) == 0:
            raise ValueError(f"root {config.root!r} has too few videos to hold any out for testing: give a class two")
        rows = table.loc[index].reset_index(drop=True)
        labels = torch.from_numpy(rows["label"].to_numpy(copy=True)).to(device)
        splits[split] = Clips(rgb[index].to(device), None, None, None, labels, rows, config.bound)
    return Data(classes, splits, found=found, refused=refused)
