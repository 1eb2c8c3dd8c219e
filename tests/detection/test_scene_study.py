"""The experiment on scenes: what it measures of each arm, and which detections it keeps."""

import numpy as np
import pandas as pd
import pytest

from d3d.data.sprite_classes import CLASSES
from d3d.detection import scene_study
from d3d.detection.scene_sets import scene_set
from d3d.s3dg.checkpoints import save_checkpoint
from d3d.s3dg.network import s3dg
from tests import configs

SIZES = {"frames": 2, "size": 16, "extent": 0.28, "noise": 0.0, "camera": 0.0, "flow": "exact"}
CORNERS = ["x1", "y1", "x2", "y2"]
K = len(CLASSES)


@pytest.fixture(scope="module")
def scenes():
    return scene_set(configs.data(**SIZES), "iid", 6)


def detections(scenes, scores):
    """The detections of the true boxes, with these scores (N, K)."""
    truth = scenes.ground_truth().drop(columns="action")
    rows = truth.loc[np.repeat(truth.index, K)].reset_index(drop=True)
    return rows.assign(action=np.tile(np.arange(1, K + 1), len(truth)), score=np.asarray(scores).ravel())


def test_the_scores_of_classes_and_their_groups(scenes):
    labels = scenes.table["label"].to_numpy()
    perfect = dict(scene_study.score(scenes, detections(scenes, np.eye(K)[labels]), "boxes"))
    groups = {CLASSES[label].group for label in labels}
    names = {CLASSES[label].name for label in labels}
    assert set(perfect) == {
        "boxes/frame_map",
        *(f"boxes/{group}/frame_map" for group in groups),
        *(f"boxes/frame_map/{name}" for name in names),
    }
    assert set(perfect.values()) == {1.0}
    # Motion classes are never detected.
    is_motion = np.array([CLASSES[label].group == "motion" for label in labels])
    partial = np.where(is_motion[:, None], 0.0, np.eye(K)[labels])
    table = detections(scenes, partial)
    scores = dict(scene_study.score(scenes, table[table["score"] > 0], "detected"))
    assert scores["detected/motion/frame_map"] == 0
    counts = [CLASSES[label].group != "motion" for label in set(labels)]
    assert scores["detected/frame_map"] == pytest.approx(np.mean(counts))


def test_the_detections_of_the_first_scenes_are_kept(scenes):
    scores = np.random.default_rng(0).random((len(scenes.table), K))
    arrays = scene_study.drawn({"boxes": detections(scenes, scores)}, 2)
    own = (scenes.table["scene"] < 2).to_numpy()
    assert arrays["boxes/scene"].tolist() == scenes.table["scene"][own].tolist()
    assert np.allclose(arrays["boxes/corners"], scenes.table.loc[own, CORNERS])
    assert np.allclose(arrays["boxes/scores"], scores[own], atol=1e-3)
    assert scene_study.drawn({"boxes": detections(scenes, scores)}, 0) == {}
    none = pd.DataFrame({name: column[:0] for name, column in detections(scenes, scores).items()})
    assert len(scene_study.drawn({"detected": none}, 2)["detected/scores"]) == 0


def test_detectors_start_from_trained_networks_or_random_weights(tmp_path, capsys):
    config = configs.detecting(**SIZES, width=0.1, seed=3, results=str(tmp_path))
    model = s3dg(K, width=0.1, in_channels=2, seed=7)
    (tmp_path / "train").mkdir()
    save_checkpoint(tmp_path / "train/flow-seed3.safetensors", model, stream="flow", classes=scene_study.NAMES)
    network, stream = scene_study.load_network(config, "flow", "cpu")
    assert stream == "flow"
    assert network.state_dict()["Conv2d_0c_1x1.weight"].equal(model.state_dict()["Conv2d_0c_1x1.weight"])
    random, stream = scene_study.load_network(config, "random", "cpu")
    assert (stream, random.width) == ("rgb", 0.1)
    assert scene_study.load_network(config, "d3d", "cpu") is None
    assert "d3d: no weights at" in capsys.readouterr().out


def test_only_the_test_scenes_are_cached(tmp_path):
    sizes = SIZES | {
        "flow": "tvl1",
        "flow_cache": str(tmp_path),
        "train_scenes": 2,
        "test_scenes": 2,
        "drawn_scenes": 0,
    }
    config = configs.detecting(**sizes, seed=3)
    train, test = scene_study.render(config, "cpu")
    assert (train.table["split"].iat[0], test.table["split"].iat[0]) == ("train/3", "iid")
    assert len(list(tmp_path.glob("*.npy"))) == 1
