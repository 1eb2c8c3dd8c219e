"""The controls of distillation: the class's mean output, and that of another clip of the class; and random views."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from d3d.data.load import load
from d3d.data.sprites import render
from d3d.s3dg import checkpoints
from d3d.study import arms, plan
from d3d.train.controls import class_means, draw_partners, halves_of
from d3d.train.loop import fit
from d3d.train.networks import CLASS_MEAN_EPOCHS, build_network, load_teacher
from d3d.train.objective import Objective
from d3d.train.step import TrainStep
from tests import configs
from tests.video.official import folder as make_folder
from tests.video.test_decode import noise_video

TINY = {"frames": 4, "size": 16, "train_clips": 48, "test_clips": 16, "epochs": 2, "batch_size": 12, "width": 0.1}
SPRITES = TINY | {"flow": "exact"}


@st.composite
def label_arrays(draw):
    sizes = draw(st.lists(st.integers(2, 9), min_size=1, max_size=6))
    return draw(st.permutations([label for label, size in enumerate(sizes) for _ in range(size)]))


@given(label_arrays(), st.integers(0, 999))
def test_partners_are_other_clips_of_the_class_each_once(labels, seed):
    labels = np.array(labels)
    partners = draw_partners(labels, [str(i) for i in range(6)], seed)
    assert (labels[partners] == labels).all()
    assert (partners != np.arange(len(labels))).all()
    assert sorted(partners) == list(range(len(labels)))
    assert (partners == draw_partners(labels, [str(i) for i in range(6)], seed)).all()


def test_partners_depend_on_the_seed():
    labels = np.arange(200) % 4
    drawn = [draw_partners(labels, "abcd", seed) for seed in (0, 1)]
    assert (drawn[0] != drawn[1]).mean() > 0.9


def test_a_class_of_one_clip_has_no_partners():
    with pytest.raises(ValueError, match=r"needs two training clips per class, and class 'wave' has one: add clips"):
        draw_partners(np.array([0, 0, 1]), ["swim", "wave"], 0)


def test_class_means_by_hand():
    outputs = np.array([[1, 2], [5, 0], [3, 6], [np.nan, np.nan]], dtype=np.float32)
    means = class_means(outputs, np.array([0, 1, 0, 1]))
    assert means.tolist() == [[2, 4], [5, 0], [2, 4], [5, 0]]


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    """Decodes in the process of the test."""
    monkeypatch.setattr("d3d.data.video_sets.cores", lambda: 0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    make_folder(root, lambda path, label, index: noise_video(path, "mpeg4"))
    return TINY | {"dataset": "folder", "root": str(root), "short_side": 18, "bound": 3.0, "memory": "yes"}


@pytest.fixture(params=["sprites", "rolled sprites", "videos"])
def options(request):
    more = {"sprites": SPRITES, "rolled sprites": SPRITES | {"augment": "roll"}}
    return more[request.param] if request.param in more else request.getfixturevalue("videos")


def load_training(options, **more):
    config = configs.training(**options, **more).data
    return load(config, seed=0, streams=("rgb", "flow"), workers=0, report=lambda line: None)


def save_flow_stream(options, data, path):
    """Writes a random network with the batch statistics of the clips, without which its outputs would vanish."""
    clips = data.splits["train"]
    model = build_network(configs.training(**options, stream="flow", seed=5), data, clips.labels.device).train()
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm3d)]:
        norm.momentum = None
    model(next(clips.batches([(np.arange(len(clips)), ())], ("flow",))).inputs["flow"])
    checkpoints.save_checkpoint(path, model, stream="flow", classes=data.classes)


def targets(config, data, rows, seeds):
    """What a student learns for some clips in one step."""
    teacher, clips = load_teacher(config, data), data.splits["train"]
    if teacher.partners is not None:
        clips = clips.with_partners(teacher.partners)
    (batch,) = clips.batches([(rows, seeds)], Objective(config, teacher).streams)
    return teacher(batch)


def test_what_students_of_one_teacher_learn(options, tmp_path):
    """Over an epoch the shuffled outputs are D3D's in another order within classes, and the mean has neither."""
    data, path = load_training(options), tmp_path / "flow-seed0.safetensors"
    save_flow_stream(options, data, path)
    rows, seeds = np.arange(len(data.splits["train"])), (0, 0, 1)
    labels = data.splits["train"].labels.numpy()
    learned = {}
    for outputs in ("clip", "shuffled", "class_mean"):
        config = configs.distilling(**options, teacher=str(path), outputs=outputs)
        learned[outputs] = targets(config, data, rows, seeds).numpy()
    partners = draw_partners(labels, data.classes, 0)
    assert np.allclose(learned["shuffled"], learned["clip"][partners], atol=1e-5)
    assert np.abs(learned["shuffled"] - learned["clip"]).max() > 1e-3
    assert np.allclose(class_means(learned["shuffled"], labels), class_means(learned["clip"], labels), atol=1e-5)
    assert np.allclose(class_means(learned["class_mean"], labels), learned["class_mean"], atol=1e-6)
    if data.splits["train"].augmented:
        views = [(0, 0, epoch) for epoch in range(CLASS_MEAN_EPOCHS)]
        config = configs.distilling(**options, teacher=str(path))
        expected = np.mean([class_means(targets(config, data, rows, s).numpy(), labels) for s in views], 0)
    else:
        expected = class_means(learned["clip"], labels)
    assert np.allclose(learned["class_mean"], expected, atol=1e-5)


SLOW = [
    pytest.param(*names, marks=pytest.mark.slow)
    for names in (("clip", "mse"), ("class_mean", "mse"), ("shuffled", "activations"))
]


@pytest.mark.parametrize(("outputs", "distance"), [("shuffled", "mse"), *SLOW])
def test_students_learn_alike_from_memory_and_from_files(videos, tmp_path, outputs, distance):
    """The flow of both is that of a cache; the draws of seed, epoch and clip are the same."""
    from d3d.flow.cache import FlowSpec
    from d3d.flow.extract import extract

    cache = tmp_path / "flow"
    paths = load_training(videos).splits["train"].table["path"]
    extract(sorted(paths), videos["root"], cache, FlowSpec(fps=25, short_side=18, bound=3), report=lambda line: None)
    states = []
    for memory in ("yes", "no"):
        options = videos | {"memory": memory, "flow_cache": str(cache)}
        path = tmp_path / "flow-seed0.safetensors"
        config = configs.distilling(**options, teacher=str(path), outputs=outputs, distance=distance, lambda_=3.0)
        data = load(config.data, seed=0, streams=("rgb",), teacher=("flow",), workers=0, report=lambda line: None)
        assert data.splits["train"].in_memory == (memory == "yes")
        if memory == "yes":
            save_flow_stream(options, load(config.data, seed=0, streams=("rgb", "flow"), workers=0), path)
        model = build_network(config, data)
        history = fit(model, config, data, teacher=load_teacher(config, data), report=lambda line: None)
        states.append((model.state_dict(), history))
    assert states[0][1] == states[1][1]
    assert all(torch.equal(x, states[1][0][name]) for name, x in states[0][0].items())


@pytest.mark.parametrize("memory", ["yes", "no"])
def test_a_subset_shows_the_clips_of_its_rows(options, memory):
    if "root" not in options and memory == "no":
        pytest.skip("rendered clips are in memory")
    options = options | ({"memory": memory} if "root" in options else {})
    data = load(configs.training(**options).data, seed=0, streams=("rgb",), workers=0, report=lambda line: None)
    clips, rows = data.splits["train"], np.array([3, 0])
    (expected,) = clips.batches([(rows, ())], ("rgb",))
    (batch,) = clips.subset(rows).batches([(np.arange(2), ())], ("rgb",))
    assert torch.equal(batch.inputs["rgb"], expected.inputs["rgb"])
    assert torch.equal(batch.labels, expected.labels)
    assert set(halves_of(clips, 0)) == {1, 2}


def test_rolled_clips_are_the_clips_on_their_torus():
    """Rolling the rendered frames and their exact flow by the numbers drawn gives the very inputs of the view."""
    data = load_training(SPRITES, augment="roll")
    clips, rows = data.splits["train"], np.array([3, 0, 40])
    rendered = render(configs.training(**SPRITES).data.clip, "train/0", rows)
    drawn = set()
    for epoch in range(5):
        views = clips.draw(rows, (0, 0, epoch))
        batch = clips.batch(views, ("rgb", "flow"))
        for k, (row, down, right) in enumerate(views.tolist()):
            assert row == rows[k]
            rgb = (rendered.rgb[k] * 255).round().roll((down, right), (2, 3)) / 255
            assert torch.equal(batch.inputs["rgb"][k], rgb)
            flow = rendered.flow[k].half().float().roll((down, right), (2, 3)).clamp(-5, 5) / 5
            assert torch.equal(batch.inputs["flow"][k], flow)
            drawn.add((down, right))
    assert len(drawn) > 10
    assert not data.splits["iid"].augmented
    assert data.splits["train"].draw(rows, ()).tolist() == [[row, 0, 0] for row in rows]
    with pytest.raises(ValueError, match="augment 'roll' is for sprites only, not for dataset 'folder'"):
        configs.data(dataset="folder", root="x", augment="roll")


def test_the_arms_of_the_controls_are_d3d_but_for_the_outputs():
    profile = {"examined_seeds": [0], "ablations": [], "overrides": {}, "students": {"epochs": 3}, "epochs": 9}
    params = {
        name: plan.overrides("distill", name, 4, profile=profile, results="r")
        for name in ("d3d", "class_mean", "flow_shuffled")
    }
    assert [p["outputs"] for p in params.values()] == ["clip", "class_mean", "shuffled"]
    for name, p in params.items():
        assert p | {"arm": "d3d", "outputs": "clip"} == params["d3d"]
        named = {"arm": "", "lambda_": 1.0, "distance": "mse", "outputs": p["outputs"], "teacher": p["teacher"]}
        assert plan.arm_name("distill", named) == plan.main_student(named) == name
        assert {"probe", "attribution"} <= set(arms.ARMS[name].examined_by) <= set(arms.ARMS["d3d"].examined_by)


def on_cpu(clips):
    """The same clips in the memory of the CPU."""

    def moved(x):
        if isinstance(x, torch.Tensor):
            return x.cpu()
        return {name: moved(y) for name, y in x.items()} if isinstance(x, dict) else x

    return replace(clips, **{f.name: moved(getattr(clips, f.name)) for f in fields(clips)})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_views_have_the_same_bits_on_a_gpu(options):
    config = configs.training(**options).data
    clips = load(config, seed=0, streams=("rgb", "flow"), workers=0, device="cuda").splits["train"]
    request = np.arange(8), (0, 0, 3)
    a, b = (next(c.batches([request], ("rgb", "flow"))) for c in (clips, on_cpu(clips)))
    assert all(torch.equal(a.inputs[stream].cpu(), b.inputs[stream]) for stream in ("rgb", "flow"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("outputs", ["clip", "shuffled"])
def test_a_captured_step_cuts_the_views_of_an_eager_one(options, tmp_path, outputs):
    config = configs.training(**options).data
    data = load(config, seed=0, streams=("rgb", "flow"), workers=0, device="cuda", report=lambda line: None)
    path = tmp_path / "flow-seed0.safetensors"
    save_flow_stream(options, data, path)
    config = configs.distilling(**options, teacher=str(path), outputs=outputs, dropout=0.0)
    teacher = load_teacher(config, data, "cuda")
    clips = data.splits["train"]
    clips = clips if teacher.partners is None else clips.with_partners(teacher.partners)
    losses = {}
    for capture in (False, True):
        model = build_network(config, data, "cuda")
        train_step = TrainStep(model, config, clips, Objective(config, teacher), capture=capture)
        metrics = []
        for i in range(12):
            metrics += train_step(i, np.roll(np.arange(10), i), view_seeds=(0, 0, i), learning_rate=0.02 / (i + 1))
        losses[capture] = [m.values["distance"] for m in [*metrics, *train_step.drain()]]
        assert len(train_step.graphs.entries) == capture
    assert losses[True] == pytest.approx(losses[False], rel=2e-2)
    assert len(set(losses[True])) == 12
