"""Training runs, on networks and clips small enough for a test."""

import hashlib
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from d3d.data.load import Data, load
from d3d.progress import read_metrics
from d3d.s3dg import checkpoints
from d3d.s3dg.network import s3dg
from d3d.study.schema import changed
from d3d.train import loop, networks
from d3d.train import run as train
from d3d.train.evaluate import predict
from d3d.train.lease import Lease
from d3d.train.states import States
from d3d.train.step import steps_per_epoch
from d3d.train.team import Team
from tests import configs

TINY = {"frames": 4, "size": 16, "train_clips": 24, "test_clips": 16, "epochs": 2, "batch_size": 10, "width": 0.1}


@pytest.fixture(scope="module")
def data():
    return load(configs.training(**TINY).data, seed=0, streams=("rgb", "flow"))


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """A flow stream's checkpoint on the same classes."""
    path = tmp_path_factory.mktemp("teacher") / "flow-seed0.safetensors"
    config = configs.training(**TINY, stream="flow")
    model = train.build_network(config, data)
    train.fit(model, config, data, report=lambda line: None)
    checkpoints.save_checkpoint(path, model, stream="flow", classes=data.classes)
    return str(path)


def fit(config, data, *, report=lambda line: None, **kwargs):
    """Trains a new network; returns its state and history."""
    model = train.build_network(config, data)
    history = train.fit(model, config, data, report=report, **kwargs)
    return model.state_dict(), history


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_seed_gives_the_same_bits(data):
    config = configs.training(**TINY)
    state, history = fit(config, data)
    torch.rand(100)
    second_state, second_history = fit(config, data)
    assert equal(state, second_state)
    assert history == second_history
    assert not equal(state, fit(changed(config, seed=1), data)[0])


def test_a_network_learns_classes_that_differ_in_colour(data):
    """The three bits of a class are its clips' red, green and blue, which a few epochs suffice to learn."""
    labels = torch.arange(24) % 8
    bits = torch.stack([labels >> i & 1 for i in range(3)], 1)
    rgb = (bits * 200).to(torch.uint8).view(-1, 3, 1, 1, 1).expand(-1, 3, 4, 16, 16)
    coloured = Data(data.classes[:8], {"train": replace(data.splits["train"], rgb=rgb, labels=labels)})
    config = configs.training(**TINY | {"epochs": 40, "width": 0.5, "batch_size": 24}, dropout=0.0)
    history = fit(config, coloured)[1]
    assert [row["epoch"] for row in history] == list(range(1, 41))
    assert history[-1]["cross_entropy"] < 0.5 * history[0]["cross_entropy"]
    assert history[-1]["top1"] > 0.6


def test_lambda_0_is_training_without_a_teacher(data):
    config = configs.distilling(**TINY, lambda_=0.0)
    assert train.load_teacher(config, data) is None
    assert train.teacher_streams(config) == ()
    assert equal(fit(config, data)[0], fit(configs.training(**TINY), data)[0])


def test_distillation_brings_the_student_to_the_teacher(data, teacher):
    config = configs.distilling(**TINY | {"epochs": 30}, teacher=teacher, lambda_=30.0, learning_rate=0.02, dropout=0.0)
    assert train.teacher_streams(config) == ("flow",)
    loaded = train.load_teacher(config, data)
    assert loaded.precomputed.shape == (24, 16)
    assert loaded.inputs == ()
    history = fit(config, data, teacher=loaded)[1]
    assert history[-1]["distance"] < 0.6 * history[0]["distance"]
    assert history[-1]["loss"] == pytest.approx(history[-1]["cross_entropy"] + 30 * history[-1]["distance"], rel=1e-5)


def test_a_student_starts_from_its_checkpoint(data, tmp_path):
    model = s3dg(16, width=0.1, seed=7)
    path = tmp_path / "rgb.safetensors"
    checkpoints.save_checkpoint(path, model, stream="rgb", classes=data.classes)
    student = train.build_network(configs.distilling(**TINY, student=str(path), lambda_=0.0), data)
    assert equal(student.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("trained_on", "is_rendered"),
    [({"frames": 4, "size": 16}, True), ({"frames": 4, "size": 16, "fps": 25.0}, False), ({}, False)],
    ids=["sprites", "videos", "imported"],
)
def test_a_run_knows_whether_its_first_weights_come_from_rendered_clips(tmp_path, trained_on, is_rendered):
    path = tmp_path / "source.safetensors"
    checkpoints.save_checkpoint(path, s3dg(3, width=0.1), stream="rgb", classes=("a", "b", "c"), input=trained_on)
    config = configs.distilling(student=str(path), lambda_=0.0)
    assert networks.starts_from_rendered_clips(config) == is_rendered
    assert not networks.starts_from_rendered_clips(configs.distilling(student="", lambda_=0.0))


def test_a_student_of_another_width_is_refused(data, tmp_path):
    path = tmp_path / "rgb.safetensors"
    checkpoints.save_checkpoint(path, s3dg(16, width=0.3), stream="rgb", classes=data.classes)
    with pytest.raises(ValueError, match=r"rgb.safetensors has width 0.3, but this run has width 0.1"):
        train.build_network(configs.distilling(**TINY, student=str(path), lambda_=0.0), data)


def test_a_twin_has_the_same_clips_but_other_weights_and_order(data):
    config, twin = configs.training(**TINY), configs.training(**TINY, twin=1)
    assert not equal(train.build_network(config, data).state_dict(), train.build_network(twin, data).state_dict())
    assert torch.equal(load(twin.data, seed=0).splits["train"].rgb, data.splits["train"].rgb)
    assert fit(config, data)[1] != fit(twin, data)[1]


@pytest.mark.parametrize(
    ("clips", "batch_size", "processes", "steps"),
    [(9537, 16, 8, 596), (24, 10, 1, 3), (9, 2, 1, 4), (6000, 128, 1, 47), (3, 32, 1, 1), (8, 32, 4, 1)],
)
def test_every_step_has_two_clips_per_process(clips, batch_size, processes, steps):
    config = configs.training(**TINY | {"batch_size": batch_size})
    assert steps_per_epoch(clips, config.optimiser, Team(0, processes)) == steps
    assert clips // steps // processes >= 2


def first_clips(data, count):
    """The data set with its first training clips only."""
    clips = data.splits["train"]
    clips = replace(clips, rgb=clips.rgb[:count], labels=clips.labels[:count], table=clips.table.iloc[:count])
    return Data(data.classes, data.splits | {"train": clips})


@pytest.mark.parametrize(("clips", "batch_size"), [(9, 2), (3, 2), (5, 4)])
def test_no_batch_is_of_one_clip(data, clips, batch_size):
    config = configs.training(**TINY | {"batch_size": batch_size, "epochs": 1})
    assert len(fit(config, first_clips(data, clips))[1]) == 1


def test_fewer_clips_than_a_batch_are_one_batch(data):
    three_clips, lines = first_clips(data, 3), []
    state, history = fit(configs.training(**TINY | {"batch_size": 32}), three_clips, report=lines.append)
    expected_state, expected_history = fit(configs.training(**TINY | {"batch_size": 3}), three_clips)
    assert equal(state, expected_state)
    assert history == expected_history
    sentence = "batch_size is 32, but there are only 3 training clips: each step uses all of them"
    assert lines.count(sentence) == 1
    assert sum("batch_size" in line for line in lines) == 1
    fit(configs.training(**TINY | {"batch_size": 3, "epochs": 1}), three_clips, report=lines.append)
    assert sum("batch_size" in line for line in lines) == 1


def test_a_run_with_fewer_clips_than_a_batch_resumes_to_the_same_bits(data, tmp_path):
    three_clips, lines = first_clips(data, 3), []
    config = configs.training(**TINY | {"batch_size": 32, "epochs": 3})
    expected_state, expected_history = fit(config, three_clips)

    def stop_after_first_epoch(line):
        if line.startswith("epoch   1/3"):
            signal.raise_signal(signal.SIGTERM)

    with Lease(tmp_path) as lease, pytest.raises(loop.Stopped, match="after step 2 of 3"):
        fit(config, three_clips, states=States(lease, {}), report=stop_after_first_epoch)
    with Lease(tmp_path) as lease:
        state, history = fit(config, three_clips, states=States(lease, {}), report=lines.append)
    assert "resuming after step 2 of 3" in lines
    assert equal(state, expected_state)
    assert history == expected_history


def test_a_record_keeps_a_batch_size_above_the_number_of_clips(tmp_path):
    sizes = {"train_clips": 16, "batch_size": 32, "epochs": 1}
    lines = []
    record = train.run("train", configs.training(**TINY | sizes, results=str(tmp_path)), report=lines.append)
    assert "batch_size is 32, but there are only 16 training clips: each step uses all of them" in lines
    assert record.params["batch_size"] == 32
    assert [row.get("step") for row in read_metrics(tmp_path / "train/rgb-seed0.jsonl")] == [0, 1, 1]


@pytest.mark.parametrize(
    ("batch_size", "processes", "sentence"),
    [
        (10, 3, r"batch_size 10 is too small for 3 processes with accumulate 2: .* two clips per .*, at least 12$"),
        (32, 7, r"the number of training clips, 24, is too small for 7 processes with accumulate 2: .*, at least 28$"),
    ],
)
def test_batches_too_small_for_batch_norm_are_refused(data, batch_size, processes, sentence):
    config = configs.training(**TINY | {"batch_size": batch_size}, accumulate=2)
    with pytest.raises(ValueError, match=sentence):
        fit(config, data, team=Team(0, processes))


def test_one_training_clip_is_refused(data):
    with pytest.raises(
        ValueError, match=r"training clips, 1, is too small for 1 process with accumulate 1: .* least 2$"
    ):
        fit(configs.training(**TINY), first_clips(data, 1))


def test_labels_out_of_range_are_refused(data):
    clips = data.splits["train"]
    wrong = Data(data.classes[:8], {"train": replace(clips, labels=torch.arange(24) % 9)})
    with pytest.raises(ValueError, match=r"labels must lie between 0 and 7, those of the training clips reach 0..8"):
        fit(configs.training(**TINY), wrong)


def test_a_student_of_another_stream_is_refused(data, teacher):
    with pytest.raises(ValueError, match="is a flow stream, but this run trains 'rgb'"):
        train.build_network(configs.distilling(**TINY, student=teacher, lambda_=0.0), data)


def test_a_teacher_with_other_classes_is_refused(data, tmp_path):
    path = tmp_path / "other.safetensors"
    checkpoints.save_checkpoint(path, s3dg(3, width=0.1), stream="rgb", classes=("a", "b", "c"))
    with pytest.raises(
        ValueError, match=r"other.safetensors was trained on 3 classes \(a, b, c\), the data set has 16 \(right"
    ):
        train.load_teacher(configs.distilling(**TINY, teacher=str(path)), data)


def test_a_teacher_of_another_input_is_refused(data, tmp_path):
    path = tmp_path / "flow.safetensors"
    other_input = configs.training(**TINY | {"frames": 8}, flow="exact").data.input_spec("flow")
    checkpoints.save_checkpoint(
        path, s3dg(16, in_channels=2, width=0.1), stream="flow", classes=data.classes, input=other_input
    )
    with pytest.raises(
        ValueError,
        match=r"flow.safetensors was trained on another input: frames 8, flow exact; this run has frames 4, flow tvl",
    ):
        train.load_teacher(configs.distilling(**TINY, teacher=str(path)), data)


def test_a_teacher_with_more_features_is_refused(data, tmp_path):
    path = tmp_path / "flow.safetensors"
    checkpoints.save_checkpoint(path, s3dg(16, in_channels=2, width=0.3), stream="flow", classes=data.classes)
    with pytest.raises(ValueError, match=r"has width 0.3, the student 0.1: distance 'features' needs the same width"):
        train.load_teacher(configs.distilling(**TINY, teacher=str(path), distance="features"), data)


def test_relations_need_no_teacher_of_the_same_width(data, tmp_path):
    path = tmp_path / "flow.safetensors"
    model = s3dg(16, in_channels=2, width=0.3)
    checkpoints.save_checkpoint(path, model, stream="flow", classes=data.classes)
    config = configs.distilling(**TINY, teacher=str(path), distance="relations", lambda_=10.0)
    loaded = train.load_teacher(config, data)
    assert loaded.precomputed.shape == (24, model.pooled_shape((4, 16, 16))[0])
    row = fit(config, data, teacher=loaded)[1][-1]
    assert row["loss"] == pytest.approx(row["cross_entropy"] + 10 * row["distance"], rel=1e-5)
    assert 0 < row["distance"] < 4


def test_distance_features_compares_pooled_features(data, teacher):
    config = configs.distilling(**TINY, teacher=teacher, distance="features")
    loaded = train.load_teacher(config, data)
    width = s3dg(16, width=0.1).pooled_shape((4, 16, 16))[0]
    assert loaded.precomputed.shape == (24, width)
    history = fit(config, data, teacher=loaded)[1]
    assert history[-1]["loss"] == pytest.approx(history[-1]["cross_entropy"] + history[-1]["distance"], rel=1e-5)


def test_a_student_of_other_classes_gets_a_new_classifier(data, tmp_path):
    """As when fine-tuning from Kinetics to UCF101."""
    path, lines = tmp_path / "kinetics.safetensors", []
    source = s3dg(400, width=0.1, seed=9)
    checkpoints.save_checkpoint(path, source, stream="rgb", classes=tuple(map(str, range(400))))
    config = configs.distilling(**TINY, student=str(path), lambda_=0.0)
    model = train.build_network(config, data, report=lines.append)
    assert lines == [
        f"student {path} was trained on 400 other classes: it gets a new classifier for the 16 classes of this data set"
    ]
    head = "Conv2d_0c_1x1."
    state, source_state = model.state_dict(), source.state_dict()
    assert all(torch.equal(x, source_state[name]) for name, x in state.items() if not name.startswith(head))
    fresh = train.build_network(configs.training(**TINY), data).state_dict()
    assert all(torch.equal(x, fresh[name]) for name, x in state.items() if name.startswith(head))


def test_an_incomplete_evaluation_is_refused(data):
    """No metric is silently computed on a part of a split."""
    iid_only = Data(data.classes, {"train": data.splits["train"], "iid": data.splits["iid"]})
    model = s3dg(16, width=0.1)
    with torch.no_grad():
        model.Conv2d_0c_1x1.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="16 of the 16 clips of split 'iid' have logits that are nan"):
        train.evaluate_splits(model, iid_only, "rgb")


class FakeTeam(Team):
    """The first of several processes, where `gather_fn` makes up the values of all."""

    def all_gather(self, value):
        return self.gather_fn(value)


def test_processes_evaluate_parts_of_a_split(data):
    """The predictions of 20 processes for 16 clips, so that some have none, are those of one process."""
    model = s3dg(16, width=0.1).eval()
    iid_only = Data(data.classes, {"train": data.splits["train"], "iid": data.splits["iid"]})
    expected = predict(model, data.splits["iid"], "rgb")
    rows_by_rank = [np.arange(16)[rank::20] for rank in range(20)]
    logits_by_rank = [predict(model, data.splits["iid"], "rgb", rows=rows) for rows in rows_by_rank]
    team = FakeTeam(0, 20)
    object.__setattr__(team, "gather_fn", lambda value: logits_by_rank)
    _, arrays = train.evaluate_splits(model, iid_only, "rgb", team=team)
    assert np.allclose(arrays["logits/iid"], expected, atol=1e-6)


def test_processes_with_different_settings_are_refused(data):
    team = FakeTeam(0, 2)
    object.__setattr__(team, "gather_fn", lambda value: [value, value | {"learning_rate": 7.0}])
    with pytest.raises(ValueError, match=r"same settings, but learning_rate is 0.1 in process 0 and 7.0 in process 1"):
        train._run_settings("train", configs.training(**TINY), data, "code", team)


def test_the_settings_of_a_run_include_data_and_weights(data, teacher):
    config = configs.distilling(**TINY, teacher=teacher)
    settings = train._run_settings("distill", config, data, "code", Team())
    assert "results" not in settings
    with open(teacher, "rb") as file:
        assert hashlib.sha256(file.read()).hexdigest().startswith(settings["teacher's weights"])
    other_settings = train._run_settings("distill", config, first_clips(data, 9), "code", Team())
    assert other_settings["training clips"] != settings["training clips"]


def test_another_number_of_processes_is_refused():
    with pytest.raises(
        ValueError,
        match=r"processes is 4, but .* running processes is 1: start the run with torchrun --nproc-per-node 4,",
    ):
        train.run("train", configs.training(**TINY, processes=4))


def test_a_loss_that_is_not_finite_stops_the_run(data):
    with pytest.raises(
        FloatingPointError,
        match=r"not finite at step \d of 6 \(epoch 1\): loss nan, cross_entropy nan, distance 0; lower learning_rate",
    ):
        fit(configs.training(**TINY, learning_rate=1e30), data)


def test_warm_up_and_cosine_by_hand():
    factor = loop.warmup_cosine(0.2, 10)
    assert [factor(0), factor(1), factor(2)] == [0.5, 1.0, 1.0]
    assert factor(6) == pytest.approx(0.5)
    assert factor(10) == pytest.approx(0.0)


def test_metrics_cover_every_test_clip(data):
    metrics, arrays = train.evaluate_splits(s3dg(16, width=0.1), data, "rgb")
    assert {"val/top1", "iid/top1", "decorrelated/top1", "iid/motion/top1"} <= set(metrics)
    assert arrays["logits/iid"].shape == (16, 16)
    correct = arrays["logits/iid"].argmax(1) == arrays["labels/iid"]
    assert metrics["iid/top1"] == correct.mean()
    assert metrics["iid/motion/top1"] == correct[arrays["groups/iid"] == "motion"].mean()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stream": "depth"}, "stream must be one of rgb, flow, not 'depth'"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
        ({"batch_size": 1}, "batch_size must be at least 2, not 1"),
        ({"seed": -1}, r"seed must lie in \[0, 999\], not -1"),
        ({"seed": 1000}, r"seed must lie in \[0, 999\], not 1000"),
        ({"twin": 2}, r"twin must lie in \[0, 1\], not 2"),
        ({"workers": -1}, "workers must not be negative, it is -1"),
        ({"processes": -2}, "processes must not be negative, it is -2"),
        ({"accumulate": 0}, "accumulate must be at least 1, not 0"),
        ({"accumulate": 17}, r"accumulate must lie between 1 and half of batch_size \(16\), .*, not 17"),
        ({"save_every": 0.0}, "save_every must be positive, it is 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, it is -0.1"),
        ({"noise": float("nan")}, "noise must not be negative, it is nan"),
    ],
)
def test_a_value_out_of_range_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        configs.training(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "a student with lambda_ above 0 needs teacher"),
        (
            {"teacher": "t", "distance": "cosine"},
            "distance must be one of mse, kl, features, relations, activations, flow_field, not 'cosine'",
        ),
        ({"distance": "activations"}, "a student with lambda_ above 0 needs teacher"),
        ({"teacher": "t", "distance": "flow_field"}, "distance 'flow_field' .* leave teacher empty"),
        ({"teacher": "t", "distance": "activations", "outputs": "class_mean"}, "outputs 'class_mean' is for logits"),
        ({"second_teacher": "t", "lambda_": 0.0}, "second_teacher teaches half of the clips: it needs teacher"),
        ({"teacher": "t", "second_teacher": "u", "outputs": "class_mean"}, "outputs 'class_mean' would average"),
        ({"unlabelled_clips": 9, "lambda_": 0.0}, "unlabelled_clips .* need lambda_ above 0"),
        (
            {"teacher": "t", "unlabelled_clips": 9, "outputs": "class_mean"},
            "unlabelled_clips .* need .* outputs 'clip' or",
        ),
        ({"teacher": "t", "unlabelled_clips": 9, "half": 1}, "unlabelled_clips belong to no half"),
        ({"teacher": "t", "half": 3}, r"half must lie in \[0, 2\], not 3"),
        ({"teacher": "t", "layer": "Mixed_5c"}, "layer must be one of Mixed_3c, Mixed_4b, Mixed_4f, not 'Mixed_5c'"),
        ({"teacher": "t", "temperature": 0.0}, "temperature must be positive, it is 0.0"),
        ({"lambda_": -1.0}, "lambda_ must not be negative, it is -1.0"),
    ],
)
def test_a_student_out_of_range_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        configs.distilling(**values)
