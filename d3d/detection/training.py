"""Trains an action detector on scenes, and applies it to boxes.

    detector = ActionDetector(model, len(CLASSES))
    losses = train_detector(detector, train_scenes, "rgb", epochs=20, batch_size=16, learning_rate=0.02)
    detections = detect(detector, test_scenes, "rgb", test_scenes.table)         # or boxes of `person_boxes`
    frame_map(test_scenes.ground_truth(), detections).mean

Everything is fine-tuned, batch norm as well: its statistics come from the batch, as in the training on clips. (With
frozen statistics a trained RGB network diverged at a learning rate of 0.03; with clipped gradients none did, but frame
mAP was two thirds to three quarters.)
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from d3d.data.scenes import MAX_ACTORS
from d3d.detection.network import ActionDetector
from d3d.detection.scene_sets import SceneSet, key_frame_columns
from d3d.s3dg.graphs import capture_gradients
from d3d.study.parameters import OptimiserConfig
from d3d.train.loop import warmup_cosine
from d3d.train.sgd import Sgd
from d3d.video.ava import BOX_COLUMNS, CORNERS

# Scenes per forward pass without gradients.
SCENES_PER_PASS = 32


class _Padded:
    """The boxes of scenes, filled up to MAX_ACTORS per scene so that all batches have one shape.

    What fills up are the scene's own boxes again, so that the statistics of batch norm are those of actors. They have
    no part in the loss.

    Attributes:
        boxes: float32 (S, MAX_ACTORS, 4).
        labels: float32 (S, MAX_ACTORS, K).
        counts: float32 (S, MAX_ACTORS), 1 where a box counts, 0 where it repeats another.
    """

    def __init__(self, scenes: SceneSet) -> None:
        numbers = torch.arange(len(scenes), device=scenes.device)
        first, end = (torch.searchsorted(scenes.scene_of_box, numbers, side=side) for side in ("left", "right"))
        place, actors = torch.arange(MAX_ACTORS, device=scenes.device), (end - first)[:, None]
        source = first[:, None] + place % actors
        self.boxes, self.labels, self.counts = scenes.boxes[source], scenes.labels[source], (place < actors).float()


class _DetectorTrainer:
    """Takes training steps on batches of scenes; on a GPU, forward and backward pass are one CUDA graph."""

    def __init__(self, model: ActionDetector, scenes: SceneSet, stream: str, config: OptimiserConfig) -> None:
        self.model, self.scenes, self.stream = model, scenes, stream
        self.padded = _Padded(scenes)
        self.gradients = capture_gradients(model, self.loss)
        self.sgd = Sgd(model, config, scenes.device)

    def step(self, rows: Tensor, keep: Tensor, learning_rate: float) -> Tensor:
        """Takes one step and returns the loss before it.

        Args:
            rows: int64 (B,), which scenes.
            keep: float32 (B * MAX_ACTORS, C'), what the features are multiplied by: dropout.
            learning_rate: of this step.
        """
        loss = self.gradients(rows, keep)
        self.sgd.learning_rate.fill_(learning_rate)
        self.sgd.update([p.grad for p in self.sgd.params])
        return loss

    def loss(self, rows: Tensor, keep: Tensor) -> Tensor:
        """Binary cross-entropy of independent actions, summed over the actions and averaged over the actors."""
        scene_of_box = torch.arange(len(rows), device=rows.device).repeat_interleave(MAX_ACTORS)
        clips, boxes = self.scenes.inputs(self.stream, rows), self.padded.boxes[rows].flatten(0, 1)
        with _autocast(rows.device):
            features = self.model.pooled(clips, boxes, scene_of_box)
        logits = self.model.classify(features * keep)
        errors = F.binary_cross_entropy_with_logits(logits, self.padded.labels[rows].flatten(0, 1), reduction="none")
        counts = self.padded.counts[rows].flatten()
        return (errors.sum(1) * counts).sum() / counts.sum()


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


def train_detector(
    model: ActionDetector,
    scenes: SceneSet,
    stream: str,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
) -> list[float]:
    """Trains a detector in place on the true boxes of scenes, and leaves it in inference mode.

    SGD with momentum 0.9, weight decay 0.0001, linear warm-up over a tenth of the steps and cosine decay.

    Args:
        model: the detector, on the device of the scenes.
        scenes: the training scenes.
        stream: what the detector sees, rgb or flow.
        epochs: passes over the scenes; the last, incomplete batch of each is dropped.
        batch_size: scenes per step, at least 2; at most all scenes are used.
        learning_rate: after the warm-up.
        seed: of the order of the scenes and of dropout.

    Returns:
        The mean loss of each epoch: the binary cross-entropy summed over actions, per actor.

    Raises:
        FloatingPointError: the loss is not finite; the message names the epoch.
        ValueError: a number is out of range, naming it.
    """
    config = OptimiserConfig(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    model.train()
    trainer = _DetectorTrainer(model, scenes, stream, config)
    rng, size = np.random.default_rng(seed), min(batch_size, len(scenes))
    features, dropout = model.classifier.in_features, model.dropout.p
    steps = len(scenes) // size
    schedule = warmup_cosine(config.warmup, epochs * steps)
    losses = []
    for epoch in range(epochs):
        order = rng.permutation(len(scenes))
        total = torch.zeros((), device=scenes.device)
        for i in range(steps):
            kept = rng.random((size * MAX_ACTORS, features), np.float32) >= dropout
            rows, keep = order[i * size :][:size], kept.astype(np.float32) / (1 - dropout)
            rate = learning_rate * schedule(epoch * steps + i)
            total += trainer.step(*(torch.from_numpy(x).to(scenes.device) for x in (rows, keep)), rate)
        losses.append(total.item() / steps)
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"the detector's loss was {losses[-1]} in epoch {epoch + 1}: give a learning_rate below {learning_rate}"
            )
    model.eval()
    return losses


@torch.no_grad()
def detect(model: ActionDetector, scenes: SceneSet, stream: str, boxes: pd.DataFrame) -> pd.DataFrame:
    """Scores every action of every box, and leaves the detector in inference mode.

    Args:
        model: the detector.
        scenes: the scenes that the boxes lie in.
        stream: what the detector sees, rgb or flow.
        boxes: columns scene, x1, y1, x2, y2, and for detected boxes score, which multiplies the scores of the actions;
            the table of the scenes has the true boxes.

    Returns:
        One row per box and action, in the order of the boxes, with the columns of AVA's detections: video, timestamp,
        x1, y1, x2, y2, action from 1, score in [0, 1].

    Raises:
        ValueError: a box is malformed or lies in none of the scenes.
    """
    model.eval()
    corners = torch.tensor(boxes[[*CORNERS]].to_numpy(), dtype=torch.float32, device=scenes.device)
    scene_of_box = boxes["scene"].to_numpy(dtype=np.int64)
    absent = scene_of_box[(scene_of_box < 0) | (scene_of_box >= len(scenes))]
    if len(absent):
        raise ValueError(f"boxes must lie in scenes 0 to {len(scenes) - 1}, not in scene {absent[0]}")
    scores = np.zeros((len(boxes), model.num_actions))
    for start in range(0, len(scenes), SCENES_PER_PASS):
        own = np.flatnonzero((scene_of_box >= start) & (scene_of_box < start + SCENES_PER_PASS))
        if not len(own):
            continue
        own_scenes = torch.from_numpy(scene_of_box[own] - start).to(scenes.device)
        with _autocast(scenes.device):
            clips = scenes.inputs(stream, slice(start, start + SCENES_PER_PASS))
            logits = model(clips, corners[torch.from_numpy(own).to(scenes.device)], own_scenes)
        scores[own] = logits.double().sigmoid().cpu().numpy()
    if "score" in boxes:
        scores *= boxes["score"].to_numpy()[:, None]
    table = pd.DataFrame(key_frame_columns(boxes)).loc[np.repeat(np.arange(len(boxes)), model.num_actions)]
    table["action"] = np.tile(np.arange(1, model.num_actions + 1), len(boxes))
    return table.assign(score=scores.ravel()).reset_index(drop=True)


def fuse_detections(detections: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Averages the scores that several detectors, such as two streams, give to the same boxes and actions.

    Args:
        detections: tables of `detect` for the same boxes.

    Raises:
        ValueError: there is no table, or they are not of the same boxes and actions.
    """
    if not detections:
        raise ValueError("detections must hold at least one table, not none")
    first = detections[0]
    for number, table in enumerate(detections[1:], 2):
        if not table[[*BOX_COLUMNS]].equals(first[[*BOX_COLUMNS]]):
            raise ValueError(f"table {number} of detections must have the boxes and actions of the first, in its order")
    return first.assign(score=np.mean([table["score"] for table in detections], axis=0))
