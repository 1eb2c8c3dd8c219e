"""Key frames of AVA's films on disk: decoded anew by worker processes whenever a batch needs them.

split = ava_split(config.data, "train")
split.key_frames, split.people                 # the boxes of its actors; of val also those of a detector of persons
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from d3d.data.clip_reader import Window, read_clips
from d3d.data.clips import divide
from d3d.data.video_sets import check_videos
from d3d.data.views import ViewSpec, clip_sizes
from d3d.detection.boxes import read_excluded, read_ground_truth, read_label_map, read_people
from d3d.detection.key_frames import KeyFrameBatch, KeyFrames
from d3d.messages import printable
from d3d.study.parameters import DataConfig
from d3d.video.ava import CORNERS, NO_ACTION
from d3d.video.decode import VideoError, looped
from d3d.video.listing import find_videos, unique_path

# Films have many shapes, and all clips of a batch need one: frames are resized to this ratio of width to height.
ASPECT = 4 / 3
KEY = ["video", "timestamp"]


@dataclass(frozen=True, eq=False)
class FileKeyFrames(KeyFrames):
    """Key frames of video files, each with the clip around it.

    Attributes:
        table: one row per key frame with path, start and end in seconds, and seconds, height and width of its file.
        view: frames, rate and height of a clip.
        boxes, scene_of_box, labels, actions: as in `KeyFrames`.
        workers: number of processes that decode; 0: this process decodes.
        damaged: "skip" leaves out unreadable files and adds them to `refused`; "raise" raises VideoError.
        refused: maps the path of each unreadable file to the reason; grows while clips are read.
    """

    table: pd.DataFrame
    view: ViewSpec
    boxes: Tensor
    scene_of_box: Tensor
    labels: Tensor
    actions: Sequence[int]
    workers: int = 1
    damaged: str = "skip"
    refused: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    def clips(
        self, stream: str, batches: Sequence[np.ndarray], draws: Sequence[tuple[int, ...]] = ()
    ) -> Iterator[KeyFrameBatch]:
        """Yields whole frames, with draws half of them mirrored.

        Raises:
            VideoError: a file cannot be read and `damaged` is "raise".
            ChildProcessError: a worker died; names the file that it was reading.
        """
        sizes = clip_sizes(self.table, self.view)
        keys = ((int(row), (Window(int(row), 0, False, None, {stream: stream}),)) for rows in batches for row in rows)
        decoded = read_clips(self.table, self.view, sizes, keys, self.workers)
        for k, rows in enumerate(batches):
            readable, clips = [], []
            for row in rows:
                _, content = next(decoded)
                if isinstance(content, str):
                    if self.damaged == "raise":
                        raise VideoError(content)
                    self.refused[self.table["path"].iat[row]] = content
                else:
                    readable.append(row)
                    clips.append(self._input(content[stream]))
            mirrored = np.zeros(len(rows), bool)
            if draws:
                mirrored = np.random.default_rng((*draws[k], 0)).random(len(rows)) < 0.5
            flags = torch.from_numpy(mirrored[np.isin(rows, readable)]).to(self.device)
            x = torch.stack(clips) if clips else torch.zeros(0, device=self.device)
            if len(x):
                x = torch.where(flags[:, None, None, None, None], x.flip(4), x)
            yield KeyFrameBatch(np.array(readable, np.int64), x, flags)

    def _input(self, frames: Tensor) -> Tensor:
        """Resizes the frames of a clip, uint8 (T, H, W, 3), and loops a shorter clip: float32 (3, T, H', W')."""
        images = looped(frames, self.view.frames).to(self.device).permute(0, 3, 1, 2).float()
        size = (self.view.size, 2 * round(self.view.size * ASPECT / 2))
        resized = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return divide(resized.clamp_(0, 255), 255).transpose(0, 1)


@dataclass(frozen=True)
class AvaSplit:
    """One split of AVA with the films that are on disk.

    Attributes:
        key_frames: all key frames with boxes whose film is on disk and complete.
        people: one row per box in these, with the columns of KEY and CORNERS, scene (the row of the key frame), and for
            detected boxes score.
        names: of the actions by number.
        ground_truth: AVA's file of this split.
        label_map: AVA's list of actions.
        excluded: AVA's list of key frames that are not scored.
        videos: number of films that the ground truth names.
        listed: number of key frames with boxes.
        on_disk: number of these whose film is on disk.
        missing: films that are named and not on disk.
    """

    key_frames: FileKeyFrames
    people: pd.DataFrame
    names: dict[int, str]
    ground_truth: Path
    label_map: Path
    excluded: Path
    videos: int
    listed: int
    on_disk: int
    missing: tuple[str, ...]


def ava_split(
    config: DataConfig,
    split: str,
    *,
    boxes: str = "",
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = print,
) -> AvaSplit:
    """Reads AVA's files of a split and finds its films.

    A clip has `frames` frames at `fps`, of which frame `frames // 2` is the key frame, and is decoded with `size`
    pixels of its short side.

    Args:
        config: root, annotations, and how clips are cut from a film.
        split: train or val.
        boxes: file of detected persons as `read_people` takes it; those of unnamed and excluded key frames are left
            out. Empty: the boxes of the ground truth.
        device: device of boxes and clips.
        report: receives lines about the progress.

    Raises:
        FileNotFoundError: root, annotations or one of AVA's files does not exist.
        ValueError: one of the files is malformed, naming the line, or no film of the split is on disk.
    """
    files = config.files
    root, folder = Path(files.root), Path(files.annotations or files.root)
    for name, path, content in (("root", root, "AVA's films"), ("annotations", folder, "AVA's CSV files")):
        if not os.path.isdir(path):
            raise FileNotFoundError(
                f"{name} '{printable(path)}' does not exist or is no folder: it must hold {content}"
            )
    truth_path, excluded_path = (folder / f"ava_{split}_{x}v2.1.csv" for x in ("", "excluded_timestamps_"))
    label_map = _label_map(folder)
    truth, excluded, names = read_ground_truth(truth_path), read_excluded(excluded_path), read_label_map(label_map)
    truth = truth[~_keys(truth).isin(_keys(excluded))]
    people = truth[truth["action"] != NO_ACTION].drop_duplicates([*KEY, *CORNERS])
    if boxes:
        people = read_people(boxes)
        people = people[_keys(people).isin(_keys(truth))]
    # Boxes may reach beyond the frame a little.
    people = people.assign(**people[[*CORNERS]].clip(0, 1))
    people = people[(people["x1"] < people["x2"]) & (people["y1"] < people["y2"])]
    people = people.drop(columns=["action", "person"], errors="ignore").sort_values(KEY, kind="stable")

    videos = find_videos(root)
    paths = {video: unique_path(videos.get(video, []), video) for video in dict.fromkeys(truth["video"])}
    table = people[KEY].drop_duplicates(ignore_index=True)
    table["path"], listed = table["video"].map(paths), len(table)
    table = table[table["path"].notna()].reset_index(drop=True)
    on_disk = len(table)
    table["start"] = (table["timestamp"] - config.clip.frames // 2 / files.fps).clip(lower=0)
    table["end"] = table["start"] + config.clip.frames / files.fps
    table, refused = check_videos(table, damaged=files.damaged, report=report)
    if table.empty:
        reason = next(iter(refused.values()), f"none of its {len(paths)} films is below root '{printable(root)}'")
        raise ValueError(f"no key frame of {printable(truth_path)} can be read: {reason}")

    people = people.merge(table[KEY].assign(scene=np.arange(len(table))), on=KEY).sort_values("scene", kind="stable")
    people = people.reset_index(drop=True)
    key_frames = FileKeyFrames(
        table=table,
        view=ViewSpec(
            frames=config.clip.frames, size=config.clip.size, fps=files.fps, short_side=config.clip.size,
            bound=config.flow.bound,
        ),
        boxes=torch.tensor(people[[*CORNERS]].to_numpy(), dtype=torch.float32, device=device),
        scene_of_box=torch.from_numpy(people["scene"].to_numpy(np.int64, copy=True)).to(device),
        labels=torch.from_numpy(_labels(people, truth, list(names))).to(device),
        actions=tuple(names),
        workers=files.workers,
        damaged=files.damaged,
        refused=refused,
    )  # fmt: skip
    missing = tuple(video for video, path in paths.items() if path is None)
    return AvaSplit(
        key_frames, people, names, truth_path, label_map, excluded_path, len(paths), listed, on_disk, missing
    )


def _label_map(folder: Path) -> Path:
    label_maps = sorted(folder.glob("ava_action_list_v2.1*.pbtxt*"))
    if len(label_maps) != 1:
        raise FileNotFoundError(
            f"'{printable(folder)}' must hold one ava_action_list_v2.1*.pbtxt, there are {len(label_maps)}"
        )
    return label_maps[0]


def _keys(table: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(table[KEY])


def _labels(people: pd.DataFrame, truth: pd.DataFrame, actions: Sequence[int]) -> np.ndarray:
    """The scored actions of each box, bool (N, K); none for a box that is not in the ground truth."""
    labels = np.zeros((len(people), len(actions)), bool)
    box = [*KEY, *CORNERS]
    rows = truth[truth["action"].isin(actions)]
    rows = rows.assign(**rows[[*CORNERS]].clip(0, 1))
    pairs = rows[[*box, "action"]].merge(people[box].assign(row=np.arange(len(people))), on=box)
    labels[pairs["row"], np.searchsorted(actions, pairs["action"])] = True
    return labels
