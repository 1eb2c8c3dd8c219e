"""The loop, on networks and clips small enough for a test."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from d3d import checkpoints, train
from d3d.datasets import Data, load
from d3d.s3dg import s3dg
from d3d.train import DistillConfig, TrainConfig

TINY = {"frames": 4, "size": 16, "train_clips": 24, "test_clips": 16, "epochs": 2, "batch_size": 10, "width": 0.1}


@pytest.fixture(scope="module")
def data():
    return load(TrainConfig(**TINY), seed=0, streams=("rgb", "flow"))


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """A flow stream's checkpoint on the same classes."""
    path = tmp_path_factory.mktemp("teacher") / "flow-seed0.safetensors"
    config = TrainConfig(**TINY, stream="flow")
    model = train.build(config, data)
    train.fit(model, config, data, report=lambda line: None)
    checkpoints.save_checkpoint(path, model, stream="flow", classes=data.classes)
    return str(path)


def fitted(config, data, **kwargs):
    model = train.build(config, data)
    history = train.fit(model, config, data, report=lambda line: None, **kwargs)
    return model.state_dict(), history


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_seed_gives_the_same_bits(data):
    config = TrainConfig(**TINY)
    first, history = fitted(config, data)
    torch.rand(100)
    again, history_again = fitted(config, data)
    assert same(first, again)
    assert history == history_again
    assert not same(first, fitted(replace(config, seed=1), data)[0])


def test_training_learns_what_is_there(data):
    """The bits of class k are its clips' red, green and blue: a few epochs are enough to tell them apart."""
    labels = torch.arange(24) % 8
    bits = torch.stack([labels >> i & 1 for i in range(3)], 1)
    rgb = (bits * 200).to(torch.uint8).view(-1, 3, 1, 1, 1).expand(-1, 3, 4, 16, 16)
    coloured = Data(data.classes[:8], {"train": replace(data.splits["train"], rgb=rgb, labels=labels)})
    history = fitted(TrainConfig(**TINY | {"epochs": 40, "width": 0.5, "batch_size": 24}, dropout=0.0), coloured)[1]
    assert [row["epoch"] for row in history] == list(range(1, 41))
    assert history[-1]["cross_entropy"] < 0.5 * history[0]["cross_entropy"]
    assert history[-1]["top1"] > 0.6


def test_lambda_0_is_training_without_a_teacher(data):
    config = DistillConfig(**TINY, lambda_=0.0)
    assert train.load_teacher(config, data) is None
    assert train.teacher_streams(config) == ()
    assert same(fitted(config, data)[0], fitted(TrainConfig(**TINY), data)[0])


def test_distillation_brings_the_student_to_the_teacher(data, teacher):
    config = replace(DistillConfig(**TINY, teacher=teacher, lambda_=30.0, learning_rate=0.02), epochs=30, dropout=0.0)
    assert train.teacher_streams(config) == ("flow",)
    found = train.load_teacher(config, data)
    assert found.logits.shape == (24, 16)
    assert found.streams == ()
    history = fitted(config, data, teacher=found)[1]
    assert history[-1]["distance"] < 0.6 * history[0]["distance"]
    assert history[-1]["loss"] == pytest.approx(history[-1]["cross_entropy"] + 30 * history[-1]["distance"], rel=1e-5)


def test_a_student_starts_from_its_checkpoint(data, tmp_path):
    model = s3dg(16, width=0.1, seed=7)
    path = tmp_path / "rgb.safetensors"
    checkpoints.save_checkpoint(path, model, stream="rgb", classes=data.classes)
    start = train.build(DistillConfig(**TINY, student=str(path), lambda_=0.0), data)
    assert same(start.state_dict(), model.state_dict())


def test_a_student_of_another_width_is_refused(data, tmp_path):
    path = tmp_path / "rgb.safetensors"
    checkpoints.save_checkpoint(path, s3dg(16, width=0.3), stream="rgb", classes=data.classes)
    with pytest.raises(ValueError, match=r"rgb.safetensors has width 0.3, the run says 0.1"):
        train.build(DistillConfig(**TINY, student=str(path), lambda_=0.0), data)


def test_a_twin_sees_the_same_clips_with_other_weights_and_order(data):
    config, twin = TrainConfig(**TINY), TrainConfig(**TINY, twin=1)
    assert not same(train.build(config, data).state_dict(), train.build(twin, data).state_dict())
    assert torch.equal(load(twin, seed=0).splits["train"].rgb, data.splits["train"].rgb)
    assert fitted(config, data)[1] != fitted(twin, data)[1]


@pytest.mark.parametrize(("clips", "batch_size"), [(9, 2), (3, 2), (5, 4)])
def test_no_batch_is_of_one_clip(data, clips, batch_size):
    few = replace(
        data.splits["train"],
        rgb=data.splits["train"].rgb[:clips],
        labels=data.splits["train"].labels[:clips],
    )
    config = TrainConfig(**TINY | {"batch_size": batch_size, "epochs": 1})
    assert len(fitted(config, Data(data.classes, {"train": few}))[1]) == 1


def test_a_student_of_another_stream_is_refused(data, teacher):
    with pytest.raises(ValueError, match="is a flow stream, the run trains 'rgb'"):
        train.build(DistillConfig(**TINY, student=teacher, lambda_=0.0), data)


def test_a_teacher_with_other_classes_is_refused(data, tmp_path):
    path = tmp_path / "other.safetensors"
    checkpoints.save_checkpoint(path, s3dg(3, width=0.1), stream="rgb", classes=("a", "b", "c"))
    with pytest.raises(
        ValueError, match=r"other.safetensors was trained on 3 classes \(a, b, c\), the data set has 16 \(right"
    ):
        train.load_teacher(DistillConfig(**TINY, teacher=str(path)), data)


def test_a_loss_that_is_not_finite_stops_the_run(data):
    with pytest.raises(FloatingPointError, match=r"not finite in epoch 1: .*lower learning_rate"):
        fitted(replace(TrainConfig(**TINY), learning_rate=1e30), data)


def test_warm_up_and_cosine_by_hand():
    factor = train._warmup_cosine(0.2, 10)
    assert [factor(0), factor(1), factor(2)] == [0.5, 1.0, 1.0]
    assert factor(6) == pytest.approx(0.5)
    assert factor(10) == pytest.approx(0.0)


def test_scores_cover_every_test_clip(data):
    metrics, arrays = train.score(s3dg(16, width=0.1), data, "rgb")
    assert {"val/top1", "iid/top1", "decorrelated/top1", "iid/motion/top1"} <= set(metrics)
    assert arrays["logits/iid"].shape == (16, 16)
    right = arrays["logits/iid"].argmax(1) == arrays["labels/iid"]
    assert metrics["iid/top1"] == right.mean()
    assert metrics["iid/motion/top1"] == right[arrays["groups/iid"] == "motion"].mean()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stream": "depth"}, "stream must be one of rgb, flow, not 'depth'"),
        ({"epochs": 0}, "epochs must be positive, not 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
        ({"batch_size": 1}, "batch_size must be at least 2 for batch norm, not 1"),
        ({"seed": -1}, "seed must lie between 0 and 999, not -1"),
        ({"seed": 1000}, "seed must lie between 0 and 999, not 1000"),
        ({"twin": 2}, "twin must be 0 or 1, not 2"),
        ({"noise": float("nan")}, "noise must not be negative, it is nan"),
    ],
)
def test_a_value_out_of_range_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "a student with lambda_ above 0 needs teacher"),
        ({"teacher": "t", "distance": "cosine"}, "distance must be one of mse, kl, not 'cosine'"),
        ({"lambda_": -1.0}, "lambda_ must not be negative"),
    ],
)
def test_a_student_out_of_range_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**values)


class TestCheckpoints:
    def test_they_come_back_as_they_were(self, tmp_path):
        model = s3dg(3, in_channels=2, width=0.1, seed=5)
        path = tmp_path / "a.safetensors"
        checkpoints.save_checkpoint(path, model, stream="flow", classes=("a", "b", "c"))
        again, about = checkpoints.load_checkpoint(path)
        assert same(again.state_dict(), model.state_dict())
        assert about == checkpoints.read_about(path)
        assert about == checkpoints.About("flow", ("a", "b", "c"), 0.1, 2)
        assert not again.training

    def test_equal_networks_are_equal_files(self, tmp_path):
        content = set()
        for i in range(12):
            path = tmp_path / f"{i}.safetensors"
            checkpoints.save_checkpoint(path, s3dg(3, width=0.1), stream="rgb", classes=("a", "b", "c"))
            content.add(path.read_bytes())
        assert len(content) == 1

    def test_damage_is_named(self, tmp_path):
        path = tmp_path / "a.safetensors"
        checkpoints.save_checkpoint(path, s3dg(3, width=0.1), stream="rgb", classes=("a", "b", "c"))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"a.safetensors is no whole safetensors file"):
            checkpoints.load_checkpoint(path)
        with pytest.raises(FileNotFoundError, match="train that network first"):
            checkpoints.load_checkpoint(tmp_path / "b.safetensors")

    def test_foreign_weights_are_named(self, tmp_path):
        from safetensors.numpy import save_file

        path = tmp_path / "foreign.safetensors"
        save_file({"x": np.zeros(3)}, path)
        with pytest.raises(ValueError, match=r"foreign.safetensors is no checkpoint of this package"):
            checkpoints.load_checkpoint(path)
