"""Leak controls: whether a single frame reveals the motion that a clip's label names. It should not.

The two classes of a motion pair have the same appearance, so that without motion the choice between them is right half
of the time. All controls are tested on the split `decorrelated`, where appearance is independent of motion.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from d3d.data.load import Data
from d3d.data.sprite_classes import CLASSES, siblings
from d3d.data.sprite_clips import render_batches, sprite_clips
from d3d.study.parameters import LeakConfig
from d3d.study.run import Run
from d3d.study.schema import changed
from d3d.train import scores
from d3d.train.evaluate import predict
from d3d.train.loop import fit
from d3d.train.networks import build_network


def run(active_run: Run) -> None:
    """Writes the records `pose` and `one_frame`."""
    for name, phase, control in (("pose", "pose", pose_control), ("one_frame", "train", single_frame_control)):
        with active_run.phase(phase):
            metrics = control(active_run.config, active_run.device)
        active_run.write(name, metrics)
        print(metrics)


def single_frames(num_frames: int) -> dict[str, int]:
    """Maps the names of the tested frames to their indices."""
    return {"first": 0, "middle": num_frames // 2, "last": num_frames - 1}


def pair_accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes how often a clip's class scores higher than its sibling; a tie counts half, chance is 0.5.

    Args:
        logits: (N, K), or log-probabilities.
        labels: (N,).

    Returns:
        `motion_pairs` and `appearance_pairs`, each only if there are clips of such pairs.
    """
    groups = np.array([c.group for c in CLASSES])[labels]
    accuracies = scores.pair_accuracy(logits, labels, groups, siblings())
    return {name.replace("/pair_accuracy", "_pairs"): value for name, value in accuracies.items()}


def single_frame_control(config: LeakConfig, device: torch.device | str = "cpu") -> dict[str, float]:
    """Trains S3D-G on single frames, one network per tested frame.

    Returns:
        `<frame>/motion_pairs` and `<frame>/appearance_pairs`, with frame `first`, `middle` or `last`. The appearance
        pairs are the positive control: a frame does show them, so the network can learn from frames.
    """
    train_config = changed(config.train, test_clips=config.leak_clips)
    data_config = train_config.data
    train = sprite_clips(data_config, f"train/{train_config.run.seed}", data_config.train_clips, device=device)
    test = sprite_clips(data_config, "decorrelated", data_config.test_clips, device=device)
    classes = tuple(c.name for c in CLASSES)
    metrics = {}
    for frame, t in single_frames(data_config.clip.frames).items():
        splits = {
            name: replace(clips, rgb=clips.rgb[:, :, t : t + 1])
            for name, clips in {"train": train, "decorrelated": test}.items()
        }
        data = Data(classes, splits)
        model = build_network(train_config, data, device)
        fit(model, train_config, data)
        accuracy = pair_accuracy(predict(model, splits["decorrelated"], "rgb"), test.table["label"].to_numpy())
        metrics |= {f"{frame}/{name}": value for name, value in accuracy.items()}
    return metrics


def pose_control(config: LeakConfig, device: torch.device | str = "cpu") -> dict[str, float]:
    """Fits logistic regressions on the target sprite's position, size and angle, and their products.

    Returns:
        `<frame>/motion_pairs`, with frame `first`, `middle` or `last`, and `three/motion_pairs`, the positive control:
        the poses in three consecutive frames reveal the motion.
    """
    data_config, seed = config.train.data, config.train.run.seed
    tested_frames = {name: [t] for name, t in single_frames(data_config.clip.frames).items()} | {"three": [0, 1, 2]}
    poses, labels = {}, {}
    for split, count in {f"train/{seed}": data_config.train_clips, "decorrelated": config.leak_clips}.items():
        # Only poses and tables are kept: the pixels of that many clips would take tens of GB.
        chunks = [(chunk.pose, chunk.table) for chunk in render_batches(data_config.clip, split, count, device=device)]
        table = pd.concat([table for _, table in chunks])
        in_motion_pair = (table["group"] == "motion").to_numpy()
        poses[split] = np.concatenate([pose for pose, _ in chunks])[in_motion_pair]
        labels[split] = table["label"].to_numpy()[in_motion_pair]
    metrics = {}
    train, test = poses
    for name, frames in tested_frames.items():
        x = {split: _pose_features(pose[:, frames], data_config.clip.size) for split, pose in poses.items()}
        model = make_pipeline(PolynomialFeatures(2), StandardScaler(), LogisticRegression(max_iter=500, C=0.1))
        model.fit(x[train], labels[train])
        logits = np.full((len(x[test]), len(CLASSES)), -np.inf)
        logits[:, model.classes_] = model.predict_log_proba(x[test])
        metrics[f"{name}/motion_pairs"] = pair_accuracy(logits, labels[test])["motion_pairs"]
    return metrics


def _pose_features(pose: np.ndarray, size: int) -> np.ndarray:
    """Poses (N, T, 4) to features (N, 7 T): sine and cosine of the periodic x, y and angle, logarithm of the radius."""
    angles = np.stack([2 * np.pi * pose[..., 0] / size, 2 * np.pi * pose[..., 1] / size, pose[..., 3]], -1)
    return np.concatenate([np.sin(angles), np.cos(angles), np.log(pose[..., 2:3])], -1).reshape(len(pose), -1)
