"""Lessons besides logits: what is compared, who learns, and how their shuffled partners differ."""

import signal

import numpy as np
import pytest
import torch

from d3d import train
from d3d.data.load import load
from d3d.s3dg import checkpoints
from d3d.s3dg.network import s3dg
from d3d.train import loop
from d3d.train.controls import draw_partners
from d3d.train.lease import Lease
from d3d.train.lessons import build_head, on_grid
from d3d.train.networks import build_network, load_teacher, teacher_streams
from d3d.train.objective import Objective
from d3d.train.run import run
from d3d.train.states import States
from d3d.train.step import TrainStep
from d3d.train.team import SINGLE_PROCESS
from tests import configs
from tests.train.test_controls import save_flow_stream
from tests.train.test_step import MirroredTeam, max_difference

TINY = {"frames": 4, "size": 16, "train_clips": 48, "test_clips": 16, "epochs": 2, "batch_size": 12, "width": 0.1}
SPRITES = TINY | {"flow": "exact", "dropout": 0.0}
LESSONS = {
    "activations at 3c": {"distance": "activations", "layer": "Mixed_3c"},
    "activations at 4f": {"distance": "activations", "layer": "Mixed_4f"},
    "flow field": {"distance": "flow_field"},
}


@pytest.fixture(scope="module")
def data():
    return load(configs.training(**SPRITES).data, seed=0, streams=("rgb", "flow"))


@pytest.fixture(scope="module")
def flow_stream(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "flow-seed0.safetensors"
    save_flow_stream(SPRITES, data, path)
    return str(path)


@pytest.fixture(params=LESSONS)
def options(request, flow_stream):
    options = SPRITES | LESSONS[request.param]
    return options if options["distance"] == "flow_field" else options | {"teacher": flow_stream}


def make_step(config, data, **kwargs):
    """A student with its lesson, and the step that trains it."""
    clips = data.splits["train"]
    teacher, model = load_teacher(config, data, clips.labels.device), build_network(config, data, clips.labels.device)
    if teacher.partners is not None:
        clips = clips.with_partners(teacher.partners)
    head = build_head(config, model, teacher.channels)
    return TrainStep(model, config, clips, Objective(config, teacher, head), **kwargs)


def test_on_a_grid_by_hand():
    """The cells of two clips have the means 2 and 6; without a spread, a channel is zero."""
    lesson = torch.tensor([[[1.0, 3.0], [0.0, 4.0]], [[5.0, 7.0], [6.0, 6.0]]]).view(2, 1, 1, 2, 2)
    lesson = torch.cat([lesson, torch.ones_like(lesson)], 1)
    cells = on_grid(lesson, (1, 1, 1))
    assert cells.flatten().tolist() == pytest.approx([-1, 0, 1, 0], abs=1e-5)
    places = on_grid(lesson, (1, 2, 2))
    expected = (lesson[:, 0] - 4) / lesson[:, 0].std(unbiased=False)
    assert torch.allclose(places[:, 0], expected, atol=1e-4)


def test_the_distance_by_hand(data, options):
    """The share of the lesson's variance that the head's prediction leaves unexplained."""
    config = configs.distilling(**options, lambda_=3.0)
    step = make_step(config, data)
    rows, layer = torch.arange(12), config.distillation.layer
    student, head, clips = build_network(config, data).train(), step.objective.head, data.splits["train"]
    x = student.endpoints(clips.inputs("rgb", rows), [layer])[layer]
    predicted = torch.einsum("bcthw,dc->bdthw", x, head.weight.flatten(1)) + head.bias.view(1, -1, 1, 1, 1)
    if config.distillation.distance == "flow_field":
        target = clips.inputs("flow", rows).unflatten(3, (2, 8)).unflatten(5, (2, 8)).unflatten(2, (2, 2))
        target = target.mean((3, 5, 7))  # cells of 2 x 8 x 8
    else:
        target = checkpoints.load_checkpoint(config.distillation.teacher)[0].eval()
        target = target.endpoints(clips.inputs("flow", rows), [layer])[layer]
    mean, var = target.mean((0, 2, 3, 4), keepdim=True), target.var((0, 2, 3, 4), keepdim=True, unbiased=False)
    expected = ((predicted - (target - mean) / (var + 1e-5).sqrt()) ** 2).mean()
    (metrics,) = step(0, rows.numpy(), view_seeds=(0,), learning_rate=0.0)
    assert metrics.values["distance"] == pytest.approx(expected.item(), rel=1e-3)
    loss = metrics.values["cross_entropy"] + 3 * metrics.values["distance"]
    assert metrics.values["loss"] == pytest.approx(loss, rel=1e-5)


def test_the_lesson_reaches_the_layer_and_what_lies_before_it(data, options):
    step = make_step(configs.distilling(**options), data)
    objective, model = step.objective, step.model
    batch = step.clips.batch(step.clips.draw(np.arange(12), (0,)), objective.streams)
    objective(model, batch, torch.ones(12, 1, 1, 1, 1))["distance"].sum().backward()
    stages = list(model.features)
    for name, stage in model.features.items():
        learns = stages.index(name) <= stages.index(objective.layers[0])
        for parameter in (p for p in stage.parameters() if p.requires_grad):
            assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == learns, name
    assert all(p.grad.abs().sum() > 0 for p in objective.head.parameters())
    if network := getattr(objective.teacher, "model", None):
        assert all(p.grad is None for p in network.parameters())


def test_the_partner_differs_in_whose_lesson_it_is_alone(data, options):
    steps = [make_step(configs.distilling(**options, outputs=outputs), data) for outputs in ("clip", "shuffled")]
    own, partner = (step.objective for step in steps)
    rows = np.arange(12)
    partners = draw_partners(data.splits["train"].labels.numpy(), data.classes, 0)

    def lesson(step, rows):
        return step.objective.teacher(step.clips.batch(step.clips.draw(rows, (0,)), step.objective.streams))

    assert torch.equal(lesson(steps[1], rows), lesson(steps[0], partners[rows]))
    assert not torch.equal(lesson(steps[1], rows), lesson(steps[0], rows))
    assert own.streams == ("rgb", "flow")
    assert partner.streams == ("rgb", "partner_flow")
    for a, b in ((own.head, partner.head), (steps[0].model, steps[1].model)):
        assert max_difference(a.parameters(), b.parameters()) == 0


def test_a_stopped_run_resumes_to_the_same_bits(data, options, tmp_path):
    config = configs.distilling(**options | {"outputs": "shuffled"})

    def fit(**kwargs):
        model = build_network(config, data)
        history = train.fit(model, config, data, teacher=load_teacher(config, data), **kwargs)
        return model.state_dict(), history

    def stop_after_first_epoch(line):
        if line.startswith("epoch   1/2"):
            signal.raise_signal(signal.SIGTERM)

    expected, expected_history = fit(report=lambda line: None)
    with Lease(tmp_path) as lease, pytest.raises(loop.Stopped):
        fit(states=States(lease, {}), report=stop_after_first_epoch)
    lines = []
    with Lease(tmp_path) as lease:
        states = States(lease, {})
        tensors = states.latest().tensors
        assert {"model.head.weight", "momentum.head.weight", "model.head.bias"} <= set(tensors)
        state, history = fit(states=states, report=lines.append)
    assert any(line.startswith("resuming after step ") for line in lines)
    assert history == expected_history
    assert all(torch.equal(x, expected[name]) for name, x in state.items())


def test_the_saved_student_has_no_head(options, tmp_path):
    config = configs.distilling(**options | {"epochs": 1}, results=str(tmp_path), arm="taught")
    assert teacher_streams(config) == ("flow",)
    record = run("distill", config, report=lambda line: None)
    model, info = checkpoints.load_checkpoint(tmp_path / "distill/taught-seed0.safetensors")
    assert list(model.state_dict()) == list(s3dg(16, width=0.1).state_dict())
    assert info.stream == "rgb"
    assert record.params["layer"] == config.distillation.layer


def test_two_processes_learn_as_one(data, options):
    """The other process has the same clips, so that together they take the step of one."""
    config = configs.distilling(**options)
    alone, team = make_step(config, data), make_step(config, data, team=MirroredTeam(0, 2))
    for i in range(3):
        rows = np.arange(12) + i
        alone(i, rows, view_seeds=(0,), learning_rate=0.05)
        team(i, np.concatenate([rows, rows]), view_seeds=(0,), learning_rate=0.05)
    for a, b in ((alone.objective.head, team.objective.head), (alone.model, team.model)):
        assert max_difference(a.parameters(), b.parameters()) < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("outputs", ["clip", "shuffled"])
@pytest.mark.parametrize("team", [SINGLE_PROCESS, MirroredTeam(0, 2)], ids=["alone", "team"])
def test_a_captured_step_equals_an_eager_one(options, outputs, team):
    data = load(configs.training(**SPRITES).data, seed=0, streams=("rgb", "flow"), device="cuda")
    config = configs.distilling(**options, outputs=outputs)
    losses, parameters = {}, {}
    for capture in (False, True):
        step = make_step(config, data, team=team, capture=capture)
        metrics = []
        for i in range(12):
            rows = np.random.default_rng(i).permutation(48)[:12]
            metrics += step(i, rows, view_seeds=(0,), learning_rate=0.05 / (i + 1))
        losses[capture] = [m.values["distance"] for m in [*metrics, *step.drain()]]
        parameters[capture] = [p.detach().clone() for p in step.sgd.params]
        assert len(step.graphs.entries) == capture
    assert losses[True] == pytest.approx(losses[False], rel=1e-2)
    assert max_difference(parameters[True], parameters[False]) < 1e-2
