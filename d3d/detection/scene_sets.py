"""Sets of rendered scenes in memory, with what the training and the scoring of detectors need of them.

scenes = scene_set(config.data, "iid", 1000, device="cuda")
scenes.inputs("rgb", slice(0, 8)), scenes.boxes, scenes.scene_of_box, scenes.labels
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d3d.data.clips import divide
from d3d.data.scenes import SIDE, key_frame, render_scenes
from d3d.data.sprite_classes import CLASSES
from d3d.data.sprite_clips import tvl1_flow
from d3d.detection.key_frames import KeyFrameBatch, KeyFrames
from d3d.study.parameters import DataConfig
from d3d.study.schema import changed
from d3d.study.staleness import code_hash
from d3d.video.ava import CORNERS

# Scenes rendered before they are stored in fewer bytes.
BATCH = 32


@dataclass(frozen=True)
class SceneSet(KeyFrames):
    """Rendered scenes of one split in the memory of one device; a scene has one key frame.

    Attributes:
        rgb: uint8 (S, 3, T, H, W).
        flow: float16 (S, 2, T, H, W), x and y, pixels per frame, as the temporal stream sees it.
        boxes: float32 (N, 4): x1, y1, x2, y2 of every actor in the key frame, fractions of the frame.
        scene_of_box: int64 (N,), ascending, rows of `rgb` and `flow`.
        labels: float32 (N, K), 1 for each action of an actor, else 0.
        table: one row per actor, in the order of `boxes`; its columns are those of `render_scenes`.
        bound: flow is clipped to ± bound pixels per frame, then scaled to [-1, 1].
    """

    rgb: Tensor
    flow: Tensor
    boxes: Tensor
    scene_of_box: Tensor
    labels: Tensor
    table: pd.DataFrame
    bound: float
    actions = range(1, len(CLASSES) + 1)

    def __len__(self) -> int:
        return len(self.rgb)

    def clips(
        self, stream: str, batches: Sequence[np.ndarray], draws: Sequence[tuple[int, ...]] = ()
    ) -> Iterator[KeyFrameBatch]:
        """Yields whole scenes, which are never mirrored: motions to the left and to the right are two classes."""
        for rows in batches:
            clips = self.inputs(stream, torch.from_numpy(rows).to(self.device))
            yield KeyFrameBatch(rows, clips, torch.zeros(len(rows), dtype=torch.bool, device=self.device))

    def inputs(self, stream: str, rows: Tensor | slice) -> Tensor:
        """Returns the network input of a stream as `Clips.inputs` does: RGB in [0, 1] or flow in [-1, 1]."""
        if stream == "rgb":
            return divide(self.rgb[rows].float(), 255)
        return divide(self.flow[rows].float().clamp_(-self.bound, self.bound), self.bound)

    def key_frames(self, rows: Tensor | slice) -> Tensor:
        """Returns the key frames of scenes, float32 (B, 3, H, W) in [0, 1]."""
        return divide(self.rgb[rows][:, :, key_frame(self.rgb.shape[2])].float(), 255)

    def ground_truth(self) -> pd.DataFrame:
        """Returns the actors as a table that `frame_map` accepts; a scene is a video with one key frame."""
        return pd.DataFrame(key_frame_columns(self.table) | {"action": self.table["label"].to_numpy() + 1})


def key_frame_columns(boxes: pd.DataFrame) -> dict[str, object]:
    """Returns the columns that AVA's tables begin with: video, timestamp, x1, y1, x2, y2.

    Args:
        boxes: a table with the columns scene, x1, y1, x2 and y2, and of video files video and timestamp too.
    """
    corners = {name: boxes[name].to_numpy(dtype=float) for name in CORNERS}
    if "video" in boxes:
        return {name: boxes[name].to_numpy() for name in ("video", "timestamp")} | corners
    return {"video": [f"scene {scene}" for scene in boxes["scene"]], "timestamp": 0.0, **corners}


def scene_set(config: DataConfig, split: str, count: int, *, device: torch.device | str = "cpu") -> SceneSet:
    """Renders the first `count` scenes of a split.

    Flow is float16, as that of sprite clips: exact, or TV-L1, which is cached in the same folder.

    Args:
        config: how clips look, and which flow the temporal stream sees; a scene is twice as high and wide as a clip.
        split: as for `render_scenes`.
        count: number of scenes, at least 1.
        device: device of the scenes.

    Raises:
        ValueError: count is below 1, or as `render_scenes`.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1 scene, not {count}")
    rgb, exact, tables = [], [], []
    is_exact = config.flow.flow == "exact"
    for start in range(0, count, BATCH):
        rendered = render_scenes(config.clip, split, range(start, min(start + BATCH, count)), device=device)
        rgb.append((rendered.rgb * 255).round_().to(torch.uint8))
        tables.append(rendered.boxes)
        if is_exact:
            exact.append(rendered.flow.half())
    frames, table = torch.cat(rgb), pd.concat(tables, ignore_index=True)
    labels = torch.from_numpy(table["label"].to_numpy(copy=True))
    return SceneSet(
        rgb=frames,
        flow=torch.cat(exact) if is_exact else _tvl1_flow(config, f"{split} {count}", frames),
        boxes=torch.tensor(table[[*CORNERS]].to_numpy(), dtype=torch.float32, device=device),
        scene_of_box=torch.from_numpy(table["scene"].to_numpy(copy=True)).to(device),
        labels=torch.nn.functional.one_hot(labels, len(CLASSES)).float().to(device),
        table=table,
        bound=config.flow.bound,
    )


def _tvl1_flow(config: DataConfig, name: str, frames: Tensor) -> Tensor:
    """Computes or loads TV-L1 flow; its name in the cache holds the hash of what renders scenes, not only clips."""
    scene_config = changed(config, size=SIDE * config.clip.size)
    return tvl1_flow(scene_config, f"scenes {code_hash('d3d.data.scenes')} {name}", frames)
