"""Trains an action detector on key frames, and applies it to boxes.

    detector = ActionDetector(model, len(CLASSES))
    losses = train_detector(detector, train_scenes, "rgb", epochs=20, batch_size=16, learning_rate=0.02)
    detections = detect(detector, test_scenes, "rgb", test_scenes.table)         # or boxes of `person_boxes`
    frame_map(test_scenes.ground_truth(), detections).mean

Everything is fine-tuned, batch norm as well: its statistics come from the batch, as in the training on clips. (With
frozen statistics a trained RGB network diverged at a learning rate of 0.03; with clipped gradients none did, but frame
mAP was two thirds to three quarters.)
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from d3d.data.scenes import MAX_ACTORS
from d3d.detection.key_frames import Actors, KeyFrames
from d3d.detection.loop import Saving, Step, run_epochs
from d3d.detection.network import ActionDetector
from d3d.detection.scene_sets import key_frame_columns
from d3d.s3dg.graphs import capture_gradients
from d3d.study.parameters import OptimiserConfig
from d3d.train.sgd import Sgd
from d3d.video.ava import BOX_COLUMNS, CORNERS

# Key frames per forward pass without gradients.
KEY_FRAMES_PER_PASS = 32


class _DetectorTrainer:
    """Takes training steps on batches of key frames; on a GPU, forward and backward pass are one CUDA graph."""

    def __init__(
        self, model: ActionDetector, key_frames: KeyFrames, stream: str, config: OptimiserConfig, actors: int, seed: int
    ) -> None:
        self.model, self.key_frames, self.stream, self.seed = model, key_frames, stream, seed
        self.actors = Actors(key_frames, actors)
        self.gradients = capture_gradients(model, self.loss)
        self.sgd = Sgd(model, config, key_frames.device)

    def take_steps(self, steps: Sequence[Step]) -> Iterator[Tensor]:
        """Takes steps and yields the loss before each; 0 for a step none of whose key frames can be read."""
        draws = [(self.seed, step.number) for step in steps]
        batches = self.key_frames.clips(self.stream, [step.rows for step in steps], draws)
        for step, batch in zip(steps, batches, strict=True):
            if not len(batch.rows):
                yield torch.zeros((), device=self.key_frames.device)
                continue
            # Instead of key frames that cannot be read, those that can are seen again: all steps have one shape.
            filled = np.resize(np.arange(len(batch.rows)), len(step.rows))
            index = torch.from_numpy(filled).to(self.key_frames.device)
            clips = batch.clips if len(filled) == len(batch.rows) else batch.clips[index]
            batch = batch._replace(rows=batch.rows[filled], clips=clips, mirrored=batch.mirrored[index])
            rng = np.random.default_rng((self.seed, step.number, 1))
            boxes, labels, counts = self.actors.of(batch, rng)
            loss = self.gradients(batch.clips, boxes, labels, counts, self.keep(len(filled), rng))
            self.sgd.learning_rate.fill_(step.learning_rate)
            self.sgd.update([p.grad for p in self.sgd.params])
            yield loss

    def keep(self, count: int, rng: np.random.Generator) -> Tensor:
        """Draws what the features of a step's boxes are multiplied by, float32 (B * M, C'): dropout."""
        dropout = self.model.dropout.p
        kept = rng.random((count * self.actors.most, self.model.classifier.in_features), np.float32) >= dropout
        return torch.from_numpy(kept.astype(np.float32) / np.float32(1 - dropout)).to(self.key_frames.device)

    def loss(self, clips: Tensor, boxes: Tensor, labels: Tensor, counts: Tensor, keep: Tensor) -> Tensor:
        """Binary cross-entropy of independent actions, summed over the actions and averaged over the actors.

        Args:
            clips: (B, C, T, H, W).
            boxes: (B, M, 4).
            labels: (B, M, K).
            counts: (B, M), 1 where a box counts.
            keep: (B * M, C'), what the features are multiplied by.
        """
        scene_of_box = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
        with _autocast(boxes.device):
            features = self.model.pooled(clips, boxes.flatten(0, 1), scene_of_box)
        logits = self.model.classify(features * keep)
        errors = F.binary_cross_entropy_with_logits(logits, labels.flatten(0, 1), reduction="none")
        return (errors.sum(1) * counts.flatten()).sum() / counts.sum()


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


def train_detector(
    model: ActionDetector,
    key_frames: KeyFrames,
    stream: str,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    actors: int = MAX_ACTORS,
    report: Callable[[str], None] | None = None,
    saving: Saving | None = None,
) -> list[float]:
    """Trains a detector in place on the true boxes of key frames, and leaves it in inference mode.

    SGD with momentum 0.9, weight decay 0.0001, linear warm-up over a tenth of the steps and cosine decay.

    Args:
        model: the detector, on the device of the key frames.
        key_frames: those for training.
        stream: what the detector sees, rgb or flow.
        epochs: passes over the key frames; the last, incomplete batch of each is dropped.
        batch_size: key frames per step, at least 2; at most all of them are used.
        learning_rate: after the warm-up.
        seed: of the order of the key frames, of their views and of dropout.
        actors: boxes per key frame that a step sees; of a key frame with more, each step draws some anew.
        report: receives lines about the progress; None: none.
        saving: where states are saved, from which a killed training resumes; None: nowhere.

    Returns:
        The mean loss of each epoch: the binary cross-entropy summed over actions, per actor.

    Raises:
        FloatingPointError: the loss is not finite; the message names the epoch.
        ValueError: a number is out of range, naming it.
    """
    config = OptimiserConfig(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    model.train()
    trainer = _DetectorTrainer(model, key_frames, stream, config, actors, seed)
    losses = run_epochs(
        len(key_frames), config, trainer.take_steps, trainer.sgd, seed=seed, name="detector", report=report,
        saving=saving,
    )  # fmt: skip
    model.eval()
    return losses


@torch.no_grad()
def detect(
    model: ActionDetector, key_frames: KeyFrames, stream: str, boxes: pd.DataFrame, *, most: int | None = None
) -> pd.DataFrame:
    """Scores every action of every box, and leaves the detector in inference mode.

    Args:
        model: the detector.
        key_frames: the key frames that the boxes lie in.
        stream: what the detector sees, rgb or flow.
        boxes: columns scene (the row of the key frame), x1, y1, x2, y2, for key frames of video files video and
            timestamp, and for detected boxes score, which multiplies the scores of the actions; the table of a set of
            scenes has the true boxes.
        most: how many rows of each key frame are returned, those with the highest scores; None: all.

    Returns:
        One row per box and action, in the order of the boxes, with the columns of AVA's detections: video, timestamp,
        x1, y1, x2, y2, action, score in [0, 1]. Boxes of key frames whose file cannot be read are left out.

    Raises:
        ValueError: a box is malformed or lies in none of the key frames.
    """
    model.eval()
    corners = torch.tensor(boxes[[*CORNERS]].to_numpy(), dtype=torch.float32, device=key_frames.device)
    scene_of_box = boxes["scene"].to_numpy(dtype=np.int64)
    absent = scene_of_box[(scene_of_box < 0) | (scene_of_box >= len(key_frames))]
    if len(absent):
        raise ValueError(f"boxes must lie in scenes 0 to {len(key_frames) - 1}, not in scene {absent[0]}")
    with_boxes = np.unique(scene_of_box)
    batches = [with_boxes[i : i + KEY_FRAMES_PER_PASS] for i in range(0, len(with_boxes), KEY_FRAMES_PER_PASS)]
    order = np.argsort(scene_of_box, kind="stable")
    parts = [_detections(boxes[:0], np.zeros((0, model.num_actions)), key_frames.actions)]
    for batch in key_frames.clips(stream, batches):
        first, end = (np.searchsorted(scene_of_box[order], batch.rows, side) for side in ("left", "right"))
        own = np.concatenate([np.empty(0, np.int64), *(order[a:b] for a, b in zip(first, end, strict=True))])
        if not len(own):
            continue
        own_scenes = np.repeat(np.arange(len(batch.rows)), end - first)
        indices = (torch.from_numpy(x).to(key_frames.device) for x in (own, own_scenes))
        with _autocast(key_frames.device):
            own_corners, own_scene = corners[next(indices)], next(indices)
            logits = model(batch.clips, own_corners, own_scene)
        scores = logits.double().sigmoid().cpu().numpy()
        if "score" in boxes:
            scores *= boxes["score"].to_numpy()[own, None]
        part = _detections(boxes.iloc[own], scores, key_frames.actions)
        part.index = (own[:, None] * model.num_actions + np.arange(model.num_actions)).ravel()
        if most is not None:
            ranked = part.sort_values("score", ascending=False, kind="stable")
            part = ranked.groupby(["video", "timestamp"], sort=False).head(most)
        parts.append(part)
    return pd.concat(parts[1:] or parts).sort_index().reset_index(drop=True)


def _detections(boxes: pd.DataFrame, scores: np.ndarray, actions: Sequence[int]) -> pd.DataFrame:
    """The table of detections of boxes (N) and their scores (N, K): one row per box and action."""
    table = pd.DataFrame(key_frame_columns(boxes)).loc[np.repeat(np.arange(len(boxes)), len(actions))]
    return table.assign(action=np.tile(np.asarray(actions), len(boxes)), score=scores.ravel())


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
