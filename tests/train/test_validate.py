"""Evaluation of given weights on a tiny Kinetics: same numbers as after training, any file of weights, resuming."""

import numpy as np
import pandas as pd
import pytest
import torch

from d3d.data import video_sets
from d3d.data.load import load
from d3d.report import side_by_side
from d3d.s3dg.checkpoints import CheckpointInfo, load_checkpoint, save_checkpoint
from d3d.s3dg.network import s3dg
from d3d.s3dg.weights import tf_names
from d3d.study import archive, records
from d3d.study.experiments import make_config
from d3d.study.run import start
from d3d.train import fuse, splits, validate
from d3d.train.scores import over_classes
from tests.flow.test_extract import moving_video
from tests.video import official

CLASSES = ("air drumming", "playing guitar", "tai chi")
TINY = {"frames": 4, "size": 16, "view_clips": 2, "view_crops": 2}


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    """Decodes in this process: starting others takes seconds."""
    monkeypatch.setattr(video_sets, "cores", lambda: 0)


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory):
    """The parameters of a Kinetics of three classes of which no training video exists."""
    root = tmp_path_factory.mktemp("kinetics")
    layout = official.kinetics(root, lambda path, label, index: moving_video(path, label + 1, frames=8), classes=3)
    for path in (root / "videos" / "train").rglob("*.mp4"):
        path.unlink()
    return {name: str(value) for name, value in layout.items()}


@pytest.fixture
def network():
    """Random weights whose classes have different logits."""
    model = s3dg(3, width=0.1, seed=1)
    with torch.no_grad():
        model.Conv2d_0c_1x1.bias += torch.tensor([0.0, 0.02, 0.01])
    return model.eval()


def save(path, model, classes=CLASSES, **input):
    save_checkpoint(path, model, stream="rgb", classes=classes, input=input)
    return str(path)


def evaluate(tmp_path, kinetics, weights, **params):
    lines = []
    config = make_config(
        "evaluate", TINY | kinetics | {"weights": str(weights), "results": str(tmp_path / "results")} | params
    )
    name = validate.run(config, report=lines.append).name
    record = records.read(tmp_path / "results" / "evaluate" / f"{name}.json")
    return record, records.read_arrays(tmp_path / "results", record), lines


def test_it_gives_what_the_evaluation_after_training_gives(tmp_path, kinetics, network):
    record, arrays, _ = evaluate(tmp_path, kinetics, save(tmp_path / "a.safetensors", network))
    data = load(make_config("evaluate", TINY | kinetics).data, seed=0, training=False)
    metrics, expected = splits.evaluate_splits(network, data, "rgb")
    assert np.allclose(arrays["logits/kinetics400/val"], expected["logits/kinetics400/val"], atol=1e-5)
    assert {n: v for n, v in record.metrics.items() if n.startswith("kinetics")} == pytest.approx(metrics, abs=1e-5)
    assert record.metrics["kinetics400/val/clips"] == 6
    # Of training videos nothing is said: none was needed.
    assert record.files == {
        "listed": 6, "found": 6, "missing": 0, "decoded": 6, "refused": {}, "missing_first": []
    }  # fmt: skip
    assert record.stand_in


def test_its_records_are_compared_and_published_like_those_of_training(tmp_path, kinetics, network):
    weights = save(tmp_path / "a.safetensors", network)
    record, arrays, _ = evaluate(tmp_path, kinetics, weights, arm="d3d_released")
    evaluate(tmp_path, kinetics, save(tmp_path / "b.safetensors", s3dg(3, width=0.1)), arm="s3dg_released")
    fuse.run(start("fuse", {"results": str(tmp_path / "results")}))
    text = side_by_side.compare(tmp_path / "results")
    assert all(f"| {name}, as released" in text for name in ("D3D", "S3D-G", "D3D + S3D-G"))
    study = archive.pack(tmp_path / "results")
    (published,) = (r for r in records.read_all(study, ["evaluate"]) if r.arm == "d3d_released")
    assert published.metrics == record.metrics
    of_clips = records.read_arrays(study, published)
    predicted = arrays["logits/kinetics400/val"].argmax(1)
    assert of_clips["prediction/kinetics400/val"].tolist() == predicted.tolist()
    assert of_clips["videos/kinetics400/val"].tolist() == arrays["videos/kinetics400/val"].tolist()


def test_missing_and_refused_videos_are_counted_and_named(tmp_path, network):
    root = tmp_path / "set"
    layout = official.kinetics(root, lambda path, label, index: moving_video(path, label + 1, frames=8))
    first, second, third, *_ = sorted((root / "videos" / "val").rglob("*.mp4"))
    first.unlink()
    second.write_bytes(third.read_bytes()[:400])
    weights = save(tmp_path / "a.safetensors", s3dg(2, width=0.1), CLASSES[:2])
    record, arrays, lines = evaluate(tmp_path, {k: str(v) for k, v in layout.items()}, weights)
    counts = {name: record.files[name] for name in ("listed", "found", "missing", "decoded")}
    assert counts == {"listed": 4, "found": 3, "missing": 1, "decoded": 2}
    assert record.files["missing_first"] == [f"air drumming/{first.stem}"]
    assert list(record.files["refused"]) == [str(second)]
    assert any("left out" in line and second.name in line for line in lines)
    clips = pd.read_csv(tmp_path / "results/evaluate/rgb-seed0.clips.csv")
    assert clips["class"].tolist() == ["playing guitar"] * 2
    assert clips["video"].tolist() == arrays["videos/kinetics400/val"].tolist()
    assert third.name in clips["video"][0]
    classes = pd.read_csv(tmp_path / "results/evaluate/rgb-seed0.classes.csv")
    assert classes["clips"].tolist() == [0, 2]
    assert np.isnan(classes["top1"][0])
    assert classes["top1"][1] == record.metrics["kinetics400/val/top1"]


def test_variables_of_tf_slim_and_a_file_of_labels(tmp_path, kinetics, network):
    """An .npz of the same network, with its classes in another order, is evaluated to the same logits."""
    _, expected, _ = evaluate(tmp_path, kinetics, save(tmp_path / "a.safetensors", network), arm="a")
    order = [2, 0, 1]
    state = network.state_dict()
    variables = {}
    for key, name in tf_names(network).items():
        x = state[key][order] if key.startswith("Conv2d_0c_1x1.") else state[key]
        x = x[..., None, None, None] if x.ndim == 2 else x
        variables[f"InceptionV1/{name}"] = (x.permute(2, 3, 4, 1, 0) if x.ndim == 5 else x).numpy()
    np.savez(tmp_path / "b.npz", **variables)
    # As the names are written in a folder or by hand.
    (tmp_path / "labels.txt").write_text("Tai_Chi\nair drumming\nplaying guitar\n")
    labels = str(tmp_path / "labels.txt")
    record, arrays, _ = evaluate(tmp_path, kinetics, tmp_path / "b.npz", arm="b", labels=labels)
    assert np.allclose(arrays["logits/kinetics400/val"], expected["logits/kinetics400/val"], atol=1e-5)
    assert record.provenance["weights"]["file"] == "b.npz"
    _, wrong, _ = evaluate(tmp_path, kinetics, tmp_path / "b.npz", arm="c")
    assert np.allclose(wrong["logits/kinetics400/val"], expected["logits/kinetics400/val"][:, order], atol=1e-5)


def test_classes_are_matched_by_name():
    info = CheckpointInfo("rgb", ("b", "c", "a"), 1.0, 3)
    assert validate.logits_in_order(info, ("a", "b", "c"), "w").tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="weights w have 3 classes, and none called 'd'; the data set has 2"):
        validate.logits_in_order(info, ("a", "d"), "w")
    with pytest.raises(ValueError, match="weights w have 3 classes; the data set has 2"):
        validate.logits_in_order(info, ("a", "b"), "w")


def test_a_killed_evaluation_resumes(tmp_path, kinetics, network, monkeypatch):
    weights = save(tmp_path / "a.safetensors", network)
    _, expected, _ = evaluate(tmp_path, kinetics, weights, arm="whole")
    predicted = []

    def stopping(model, clips, stream, *, rows, done):
        """Predicts a clip at a time; is stopped after four clips, once."""
        for row in rows:
            if len(predicted) == 4:
                predicted.append("stopped")
                raise KeyboardInterrupt
            predicted.append(int(row))
            splits.predict(model, clips, stream, rows=np.array([row]), done=done)

    monkeypatch.setattr(validate, "predict", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, kinetics, weights, arm="killed")
    (saved,) = (tmp_path / "results/evaluate/killed-seed0.state").iterdir()
    assert not (tmp_path / "results/evaluate/killed-seed0.json").exists()
    _, arrays, lines = evaluate(tmp_path, kinetics, weights, arm="killed")
    assert "resuming after 4 of 6 clips" in lines
    assert predicted == [0, 1, 2, 3, "stopped", 4, 5]
    assert np.allclose(arrays["logits/kinetics400/val"], expected["logits/kinetics400/val"], atol=1e-6)
    assert not saved.parent.exists()
    # Predictions of other weights are not taken for these.
    other = save(tmp_path / "b.safetensors", s3dg(3, width=0.1, seed=5))
    saved.parent.mkdir()
    predicted.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, kinetics, weights, arm="killed")
    _, _, lines = evaluate(tmp_path, kinetics, other, arm="killed")
    assert not any("resuming" in line for line in lines)


def test_damaged_predictions_are_computed_again(tmp_path, kinetics, network):
    weights = save(tmp_path / "a.safetensors", network)
    lines = []
    saved = validate.SavedPredictions(tmp_path / "state", "identity", 60.0, lines.append)
    clips = load(make_config("evaluate", TINY | kinetics).data, seed=0, training=False).splits["kinetics400/val"]
    model, _ = load_checkpoint(weights)
    rows = np.arange(3)
    expected = saved.predict(model, clips, "rgb", rows=rows)
    saved.folder.mkdir()
    saved._write(tmp_path / "state" / "x.npz", dict(enumerate(expected)))
    (tmp_path / "state" / "x.npz").write_bytes((tmp_path / "state" / "x.npz").read_bytes()[:100])
    assert saved._read(tmp_path / "state" / "x.npz") == {}
    assert lines[-1].startswith("not resumed: ")


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"weights": ""}, "evaluate needs weights: a .safetensors file"),
        ({"dataset": "sprites", "root": "", "annotations": ""}, "evaluate reads video files, not 'sprites'"),
        ({"stream": "flow"}, "are a rgb stream, but the run has stream 'flow'"),
        ({"labels": "absent"}, "no labels at absent"),
        ({"processes": 2}, "processes is 2, but the number of running processes is 1"),
        ({"arm": "taken"}, "taken-seed0.json is the record of a network of the same arm and seed"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(tmp_path, kinetics, network, params, sentence):
    path = tmp_path / "results/train/taken-seed0.json"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        evaluate(tmp_path, kinetics, **{"weights": save(tmp_path / "a.safetensors", network)} | params)
    assert not list((tmp_path / "results").glob("evaluate/*.json"))


def test_flow_of_another_scale_is_refused(tmp_path, kinetics):
    model = s3dg(3, in_channels=2, width=0.1)
    path = tmp_path / "flow.safetensors"
    save_checkpoint(path, model, stream="flow", classes=CLASSES, input={"bound": 20.0, "frames": 64})
    with pytest.raises(ValueError, match=r"of another scale: bound 20.0 instead of 5.0, frames 64 instead of 4"):
        evaluate(tmp_path, kinetics, path, stream="flow")


def test_another_input_and_chance_are_reported(tmp_path, kinetics, network):
    weights = save(tmp_path / "a.safetensors", network, frames=64)
    _, _, lines = evaluate(tmp_path, kinetics, weights)
    assert any("were trained on another input: frames 64 instead of 4" in line for line in lines)
    assert any("is no better than chance" in line for line in lines)


def test_scores_over_classes_by_hand():
    """Three clips of class 0 (two right), one of class 5 (wrong, its class sixth) of six classes."""
    logits = np.array([[9, 1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5], [1, 9, 2, 3, 4, 5], [6, 5, 4, 3, 2, 1.0]])
    scores = over_classes(logits, np.array([0, 0, 0, 5]))
    # The third clip's class has the lowest logit too.
    assert scores == {"clips": 4.0, "class_accuracy": pytest.approx((2 / 3 + 0) / 2), "top5": 0.5}
    assert "top5" not in over_classes(logits[:, :5], np.array([0, 0, 0, 4]))


def test_two_evaluations_are_fused_only_if_they_scored_the_same_videos():
    first = {"logits/s": np.eye(2), "labels/s": np.array([0, 1]), "groups/s": np.array(["all"] * 2)}
    first |= {"videos/s": np.array(["a", "b"])}
    metrics, arrays = fuse.evaluate_ensemble([first, first])
    assert metrics["s/clips"] == 2
    assert arrays["videos/s"].tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="did not score the same clips of 's'"):
        fuse.evaluate_ensemble([first, first | {"videos/s": np.array(["a", "c"])}])
