"""Leak controls: what a single frame gives away of the motion that a clip's label names. It should be nothing.

Two motion classes form a pair where appearance cannot tell them: choosing between the two is right half of the time by
chance. All is tested on `decorrelated`, where appearance has nothing to do with the motion.
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
from d3d.data.sprite_clips import rendered, sprite_clips
from d3d.study.parameters import LeakConfig
from d3d.study.run import Run
from d3d.study.schema import changed
from d3d.train.evaluate import predict
from d3d.train.loop import fit
from d3d.train.networks import build_network


def run(this: Run) -> None:
    """Writes the records `pose` and `one_frame` of a run."""
    for name, phase, control in (("pose", "pose", pose), ("one_frame", "train", one_frame)):
        with this.phase(phase):
            metrics = control(this.config, this.device)
        this.write(name, metrics)
        print(metrics)


def moments(frames: int) -> dict[str, int]:
    """The frames that are looked at."""
    return {"first": 0, "middle": frames // 2, "last": frames - 1}


def pair_accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`motion_pairs` and `appearance_pairs`: how often a clip's class outscores its sibling; chance is 0.5.

    scores (N, K): logits or log-probabilities. labels (N,). A group without clips is left out.
    """
    sibling = siblings()[labels]
    own, other = (scores[np.arange(len(labels)), column] for column in (labels, sibling))
    right = (own > other) + 0.5 * (own == other)
    groups = np.array([c.group for c in CLASSES])[labels]
    return {f"{name}_pairs": float(right[groups == name].mean()) for name in ("motion", "appearance") if name in groups}


def one_frame(config: LeakConfig, device: torch.device | str = "cpu") -> dict[str, float]:
    """S3D-G trained on single frames of all classes: `<moment>/motion_pairs` and `<moment>/appearance_pairs`.

    The appearance pairs are the positive control: a frame does tell those, so the network can learn from frames.
    """
    training = changed(config.train, test_clips=config.leak_clips)
    shown = training.data
    train = sprite_clips(shown, f"train/{training.run.seed}", shown.train_clips, device=device)
    test = sprite_clips(shown, "decorrelated", shown.test_clips, device=device)
    classes = tuple(c.name for c in CLASSES)
    metrics = {}
    for moment, t in moments(config.train.data.clip.frames).items():
        splits = {
            name: replace(clips, rgb=clips.rgb[:, :, t : t + 1])
            for name, clips in {"train": train, "decorrelated": test}.items()
        }
        data = Data(classes, splits)
        model = build_network(training, data, device)
        fit(model, training, data)
        found = pair_accuracy(predict(model, splits["decorrelated"], "rgb"), test.table["label"].to_numpy())
        metrics |= {f"{moment}/{name}": value for name, value in found.items()}
    return metrics


def pose(config: LeakConfig, device: torch.device | str = "cpu") -> dict[str, float]:
    """Logistic regression on position, size and angle, and their products: `<moment>/motion_pairs`.

    `three/motion_pairs` is the positive control: the poses of three frames on end tell the motion.
    """
    shown, seed = config.train.data, config.train.run.seed
    looked_at = {name: [t] for name, t in moments(shown.clip.frames).items()} | {"three": [0, 1, 2]}
    poses, labels = {}, {}
    for split, count in {f"train/{seed}": shown.train_clips, "decorrelated": config.leak_clips}.items():
        # Part by part: all frames of so many clips would fill tens of GB.
        parts = [(p.pose, p.table) for p in rendered(shown.clip, split, count, device=device)]
        table = pd.concat([table for _, table in parts])
        moving = (table["group"] == "motion").to_numpy()
        poses[split] = np.concatenate([found for found, _ in parts])[moving]
        labels[split] = table["label"].to_numpy()[moving]
    metrics = {}
    train, test = poses
    for moment, frames in looked_at.items():
        x = {split: _features(found[:, frames], shown.clip.size) for split, found in poses.items()}
        model = make_pipeline(PolynomialFeatures(2), StandardScaler(), LogisticRegression(max_iter=500, C=0.1))
        model.fit(x[train], labels[train])
        scores = np.full((len(x[test]), len(CLASSES)), -np.inf)
        scores[:, model.classes_] = model.predict_log_proba(x[test])
        metrics[f"{moment}/motion_pairs"] = pair_accuracy(scores, labels[test])["motion_pairs"]
    return metrics


def _features(pose: np.ndarray, size: int) -> np.ndarray:
    """Poses (N, T, 4) as numbers (N, 7 T): what wraps around as sine and cosine, the radius as its logarithm."""
    turns = np.stack([2 * np.pi * pose[..., 0] / size, 2 * np.pi * pose[..., 1] / size, pose[..., 3]], -1)
    return np.concatenate([np.sin(turns), np.cos(turns), np.log(pose[..., 2:3])], -1).reshape(len(pose), -1)
