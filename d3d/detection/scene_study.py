"""The experiment `detect` on scenes: which of a seed's trained networks makes the best detector of actions.

One person detector, and one action detector per network, are trained on the same scenes. All action detectors see the
same scenes in the same order for as many steps; the one of random weights shows what the scenes alone teach.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from d3d.data.sprite_classes import CLASSES
from d3d.detection.network import ActionDetector
from d3d.detection.people import person_boxes, score_people, train_person_detector
from d3d.detection.scene_sets import SceneSet, scene_set
from d3d.detection.scoring import frame_map
from d3d.detection.training import detect, fuse_detections, train_detector
from d3d.s3dg.checkpoints import load_checkpoint
from d3d.s3dg.network import S3DG, s3dg
from d3d.study import plan
from d3d.study.arms import ARMS, arms_examined_by
from d3d.study.detection import DetectConfig
from d3d.study.run import Run
from d3d.study.schema import changed
from d3d.video.ava import CORNERS

TEST_SPLIT = "iid"
NAMES = tuple(c.name for c in CLASSES)
GROUPS = tuple(dict.fromkeys(c.group for c in CLASSES))


def run(active_run: Run) -> None:
    """Writes one record per arm; arms without weights in the run's results folder are skipped."""
    config, seed = active_run.config, active_run.config.run.seed
    own = config.detection
    with active_run.phase("data"):
        train, test = render(config, active_run.device)
    with active_run.phase("persons"):
        persons = train_person_detector(
            train, epochs=own.person_epochs, batch_size=own.scenes_per_step, learning_rate=own.person_rate, seed=seed
        )
        people = person_boxes(persons, test)
        of_persons = {f"persons/{name}": value for name, value in score_people(test, people).items()}
    # By the name of the boxes, the detections of each arm on them.
    boxes = {"boxes": test.table, "detected": people}
    detections: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in boxes}
    for arm in arms_examined_by("detect"):
        entry, losses = ARMS[arm], []
        if entry.members:
            if not set(entry.members) <= set(detections["boxes"]):
                continue
            for tables in detections.values():
                tables[arm] = fuse_detections([tables[member] for member in entry.members])
        elif network := load_network(config, arm, active_run.device):
            model, stream = network
            detector = ActionDetector(model, len(CLASSES), seed=seed)
            with active_run.phase("training"):
                losses = train_detector(
                    detector, train, stream, epochs=own.detector_epochs, batch_size=own.scenes_per_step,
                    learning_rate=own.detector_rate, seed=seed,
                )  # fmt: skip
            with active_run.phase("test"):
                for name, tables in detections.items():
                    tables[arm] = detect(detector, test, stream, boxes[name])
        else:
            continue
        metrics = of_persons | {
            metric: value for name, tables in detections.items() for metric, value in score(test, tables[arm], name)
        }
        arrays = drawn({name: tables[arm] for name, tables in detections.items()}, own.drawn_scenes)
        if losses:
            arrays["curve/loss"] = np.array(losses, np.float32)
        active_run.write(arm, metrics, arrays=arrays)


def render(config: DetectConfig, device: str) -> tuple[SceneSet, SceneSet]:
    """Renders the training scenes of the seed, and the test scenes, which are the same for every seed."""
    # Only TV-L1 of the test scenes is cached: that of the training scenes would serve one seed, and take gigabytes.
    uncached = changed(config.data, flow_cache="")
    train = scene_set(uncached, f"train/{config.run.seed}", config.detection.train_scenes, device=device)
    return train, scene_set(config.data, TEST_SPLIT, config.detection.test_scenes, device=device)


def load_network(config: DetectConfig, arm: str, device: str) -> tuple[S3DG, str] | None:
    """Loads the network that an arm's detector starts from, or makes one of random weights.

    Returns:
        The network and its stream, or None, with a printed line, if it was not trained.
    """
    if ARMS[arm].experiment == "probe":
        return s3dg(len(CLASSES), width=config.network.width, seed=config.run.seed).to(device), "rgb"
    path = plan.weights_path(config.run.results, arm, config.run.seed)
    if not Path(path).is_file():
        print(f"{arm}: no weights at {path}, skipped")
        return None
    model, info = load_checkpoint(path, classes=NAMES, device=device)
    return model, info.stream


def score(test: SceneSet, detections: pd.DataFrame, name: str) -> list[tuple[str, float]]:
    """Scores detections by frame mAP at an IoU of 0.5.

    Args:
        test: the scenes.
        detections: as `detect` returns them.
        name: of the boxes, which the metrics begin with.

    Returns:
        `<name>/frame_map`, the same of each group of classes, `<name>/<group>/frame_map`, and the average precision of
        each class that has actors, `<name>/frame_map/<class>`.
    """
    result = frame_map(test.ground_truth(), detections, classes=test.actions)
    scored = {i: value for i, value in enumerate(result.per_class.values()) if not np.isnan(value)}
    groups = {group: [value for i, value in scored.items() if CLASSES[i].group == group] for group in GROUPS}
    return [
        (f"{name}/frame_map", result.mean),
        *((f"{name}/{group}/frame_map", float(np.mean(values))) for group, values in groups.items() if values),
        *((f"{name}/frame_map/{NAMES[i]}", value) for i, value in scored.items()),
    ]


def drawn(detections: Mapping[str, pd.DataFrame], count: int) -> dict[str, np.ndarray]:
    """The detections in the first test scenes, for pictures.

    Args:
        detections: by the name of the boxes, as `detect` returns them.
        count: how many scenes.

    Returns:
        For each name `<name>/scene` (N,), `<name>/corners` float32 (N, 4) and `<name>/scores` float16 (N, K).
    """
    arrays = {}
    for name, table in detections.items() if count else ():
        first_rows = table[:: len(CLASSES)]  # a row per box
        scenes = first_rows["video"].str.removeprefix("scene ").astype(int).to_numpy()
        own = scenes < count
        scores = table["score"].to_numpy().reshape(-1, len(CLASSES))[own]
        arrays[f"{name}/scene"] = scenes[own].astype(np.uint16)
        arrays[f"{name}/corners"] = first_rows[[*CORNERS]].to_numpy(np.float32)[own]
        arrays[f"{name}/scores"] = scores.astype(np.float16)
    return arrays
