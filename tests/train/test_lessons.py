"""Lessons besides logits: what is compared, who learns, and how their shuffled partners differ."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from d3d import train
from d3d.data.load import load
from d3d.s3dg import checkpoints
from d3d.s3dg.network import s3dg
from d3d.train import loop
from d3d.train.controls import draw_halves, draw_partners, halves_of
from d3d.train.lease import Lease
from d3d.train.lessons import Head, build_head, fit_head, on_grid, standardise
from d3d.train.networks import build_network, load_teacher, teacher_streams
from d3d.train.objective import Objective
from d3d.train.order import steps_of
from d3d.train.run import run
from d3d.train.states import States
from d3d.train.step import TrainStep
from d3d.train.team import SINGLE_PROCESS, Team
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
    """A student with its lesson, whose head has been fitted to some clips, and the step that trains it."""
    clips = data.splits["train"]
    teacher, model = load_teacher(config, data, clips.labels.device), build_network(config, data, clips.labels.device)
    if teacher.partners is not None:
        clips = clips.with_partners(teacher.partners)
    head = build_head(model, config.distillation.layer, teacher.channels)
    objective = Objective(config, teacher, head)
    batches = clips.batches([(np.arange(48), (0,))], objective.streams)
    fit_head(head, model.train(), teacher, batches, stream="rgb", layer=config.distillation.layer)
    return TrainStep(model, config, clips, objective, **kwargs)


def test_on_a_grid_by_hand():
    """The cells of two clips have the means 2 and 6; without a spread, a channel is zero."""
    lesson = torch.tensor([[[1.0, 3.0], [0.0, 4.0]], [[5.0, 7.0], [6.0, 6.0]]]).view(2, 1, 1, 2, 2)
    lesson = torch.cat([lesson, torch.ones_like(lesson)], 1)
    cells = on_grid(lesson, (1, 1, 1))
    assert cells.flatten().tolist() == pytest.approx([-1, 0, 1, 0], abs=1e-5)
    places = on_grid(lesson, (1, 2, 2))
    expected = (lesson[:, 0] - 4) / lesson[:, 0].std(unbiased=False)
    assert torch.allclose(places[:, 0], expected, atol=1e-4)


def standardised(x):
    axes = (0, 2, 3, 4)
    return (x - x.mean(axes, keepdim=True)) / (x.var(axes, keepdim=True, unbiased=False) + 1e-5).sqrt()


def test_the_head_starts_as_a_regression(data, options):
    """That of scikit-learn, on the same clips; it explains more of the lesson than nothing."""
    config = configs.distilling(**options)
    step, clips, layer = make_step(config, data), data.splits["train"], config.distillation.layer
    student, teacher = build_network(config, data).train(), step.objective.teacher
    assert max_difference(student.buffers(), step.model.buffers()) == 0
    with torch.no_grad():
        x = standardise(student.endpoints(clips.inputs("rgb", slice(None)), [layer])[layer])
        y = on_grid(teacher(clips.batch(clips.draw(np.arange(48), (0,)), step.objective.streams)), x.shape[2:])
        rows_x, rows_y = (z.transpose(0, 1).flatten(1).T.double().numpy() for z in (x, y))
        ridge = 1e-3 * (rows_x**2).mean() * len(rows_x)
        expected = Ridge(alpha=ridge, fit_intercept=False).fit(rows_x, rows_y).coef_
        head = step.objective.head
        weight = (head.scale * head.weight).flatten(1).detach().numpy()
        assert np.allclose(weight, expected, atol=1e-3 * np.abs(expected).max())
        assert (step.objective.head(x) - y).square().mean() < 0.98 * y.square().mean()


def test_the_curvature_in_the_head_is_at_most_two():
    """Also if all channels of the layer are the same; the largest eigenvalue is that of one row of the Hessian."""
    for channels, outputs in ((9, 2), (4, 7)):
        head, x = Head(channels, outputs), standardise(torch.randn(3, 1, 2, 4, 4).expand(-1, channels, -1, -1, -1))

        def distance(weight, head=head, x=x):
            return torch.func.functional_call(head, {"weight": weight}, x).square().mean()

        hessian = torch.autograd.functional.hessian(distance, head.weight.detach())
        largest = torch.linalg.eigvalsh(hessian.reshape(channels * outputs, -1))[-1]
        assert largest.item() == pytest.approx(2, rel=1e-3)


def test_a_team_fits_one_head(data, options):
    """Each process sees half of the clips; the sum of their covariances is that of all."""
    config = configs.distilling(**options)
    clips, model = data.splits["train"], build_network(config, data).train()
    teacher, layer = load_teacher(config, data), config.distillation.layer
    sums = []

    class Summing(Team):
        def all_reduce_(self, x):
            if not x.ndim:
                return x  # whether clips are lacking
            sums.append(x.clone())
            return x.copy_(sum(sums))

    heads = [build_head(model, layer, teacher.channels) for _ in range(3)]
    streams = Objective(config, teacher).streams
    first, second = (list(clips.batches([(rows, (0,))], streams)) for rows in np.split(np.arange(48), 2))
    fit_head(heads[0], model, teacher, first, stream="rgb", layer=layer, team=Summing(0, 2))
    fit_head(heads[1], model, teacher, second, stream="rgb", layer=layer, team=Summing(1, 2))
    fit_head(heads[2], model, teacher, [*first, *second], stream="rgb", layer=layer)
    assert torch.allclose(heads[1].weight, heads[2].weight, atol=1e-6 * heads[2].weight.abs().max().item())
    assert not torch.allclose(heads[0].weight, heads[2].weight)


def test_the_distance_by_hand(data, options):
    """The share of the lesson's variance that the head's prediction leaves unexplained."""
    config = configs.distilling(**options, lambda_=3.0)
    step = make_step(config, data)
    rows, layer = torch.arange(12), config.distillation.layer
    student, head, clips = build_network(config, data).train(), step.objective.head, data.splits["train"]
    x = student.endpoints(clips.inputs("rgb", rows), [layer])[layer]
    predicted = torch.einsum("bcthw,dc->bdthw", standardised(x), head.scale * head.weight.flatten(1))
    if config.distillation.distance == "flow_field":
        target = clips.inputs("flow", rows).unflatten(3, (2, 8)).unflatten(5, (2, 8)).unflatten(2, (2, 2))
        target = target.mean((3, 5, 7))  # cells of 2 x 8 x 8
    else:
        target = checkpoints.load_checkpoint(config.distillation.teacher)[0].eval()
        target = target.endpoints(clips.inputs("flow", rows), [layer])[layer]
    expected = ((predicted - standardised(target)) ** 2).mean()
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
    assert max_difference(steps[0].model.parameters(), steps[1].model.parameters()) == 0


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
        assert {"model.head.weight", "momentum.head.weight"} <= set(tensors)
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


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=60), st.integers(0, 999))
def test_halves_are_of_equal_size_and_keep_sources_together(clips, seed):
    labels, films = np.array(clips).T
    sources = 10 * labels + films
    halves = draw_halves(labels, sources, seed)
    assert set(halves) <= {1, 2}
    for source in np.unique(sources):
        assert len(set(halves[sources == source])) == 1
    for label in np.unique(labels):
        sizes = [np.sum(halves[labels == label] == half) for half in (1, 2)]
        assert abs(sizes[0] - sizes[1]) <= np.unique(sources[labels == label], return_counts=True)[1].max()
    assert (halves == draw_halves(labels, sources, seed)).all()


@pytest.fixture(scope="module")
def streams_of_halves(tmp_path_factory):
    """Flow streams of the two halves, trained for one epoch; their paths and what their records say."""
    results = tmp_path_factory.mktemp("halves")
    for half in (1, 2):
        options = SPRITES | {"stream": "flow", "epochs": 1, "half": half, "results": str(results)}
        run("train", configs.training(**options, arm=f"flow_half_{half}"), report=lambda line: None)
    return [str(results / f"train/flow_half_{half}-seed0.safetensors") for half in (1, 2)]


def test_a_stream_of_a_half_is_one_of_its_clips(data, streams_of_halves):
    clips = data.splits["train"]
    rows = np.flatnonzero(halves_of(clips, 0) == 2)
    assert len(rows) == 16  # of three clips per class, one
    subset = clips.subset(rows)
    assert torch.equal(subset.inputs("flow", slice(None)), clips.inputs("flow", torch.from_numpy(rows)))
    assert (subset.table["label"].to_numpy() == clips.labels.numpy()[rows]).all()
    config = configs.training(**SPRITES | {"stream": "flow", "epochs": 1})
    model = build_network(config, data)
    train.fit(model, config, replace(data, splits=data.splits | {"train": subset}), report=lambda line: None)
    saved = checkpoints.load_checkpoint(streams_of_halves[1])[0].state_dict()
    assert all(torch.equal(x, saved[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("outputs", ["clip", "shuffled"])
def test_a_clip_is_taught_by_the_teacher_that_has_not_seen_it(data, streams_of_halves, outputs):
    first, second = streams_of_halves
    lessons = [
        load_teacher(configs.distilling(**SPRITES, outputs=outputs, **teachers), data)
        for teachers in ({"teacher": first}, {"teacher": second}, {"teacher": first, "second_teacher": second})
    ]
    rows, clips = np.arange(48), data.splits["train"]
    batch = clips.batch(clips.draw(rows, (0,)), ("rgb",))
    of_first, of_second, learned = (lesson(batch) for lesson in lessons)
    # Whether a teacher has seen the clip whose outputs are learnt, which may be the partner.
    shown = rows if outputs == "clip" else draw_partners(clips.labels.numpy(), data.classes, 0)
    seen_by_first = torch.from_numpy(halves_of(clips, 0)[shown] == 1)
    assert torch.equal(learned[seen_by_first], of_second[seen_by_first])
    assert torch.equal(learned[~seen_by_first], of_first[~seen_by_first])
    assert not torch.equal(of_first, of_second)


def test_two_teachers_teach_a_layer_too(data, streams_of_halves):
    teachers = dict(zip(("teacher", "second_teacher"), streams_of_halves, strict=True))
    step = make_step(configs.distilling(**SPRITES, distance="activations", outputs="shuffled", **teachers), data)
    (metrics,) = step(0, np.arange(12), view_seeds=(0,), learning_rate=0.1)
    assert metrics.values["distance"] > 0


def test_teachers_of_the_wrong_halves_are_refused(data, streams_of_halves, flow_stream):
    first, second = streams_of_halves
    message = r"flow_half_2-seed0.safetensors was trained on half 2, but this teacher needs .* with half 1"
    with pytest.raises(ValueError, match=message):
        load_teacher(configs.distilling(**SPRITES, teacher=second, second_teacher=first), data)
    with pytest.raises(
        ValueError, match="was trained on all clips, but this teacher needs a stream trained with half 2"
    ):
        load_teacher(configs.distilling(**SPRITES, teacher=first, second_teacher=flow_stream), data)


def test_the_student_of_two_teachers_runs_and_resumes_by_their_weights(streams_of_halves, tmp_path):
    teachers = dict(zip(("teacher", "second_teacher"), streams_of_halves, strict=True))
    config = configs.distilling(**SPRITES | {"epochs": 1}, **teachers, results=str(tmp_path), arm="d3d_unseen")
    record = run("distill", config, report=lambda line: None)
    assert record.params["second_teacher"] == streams_of_halves[1]
    assert record.metrics["seconds/teacher"] > 0


UNLABELLED = SPRITES | {"unlabelled_clips": 64}


@pytest.fixture(scope="module")
def more_data():
    return load(configs.distilling(**UNLABELLED, teacher="t").data, seed=0, streams=("rgb", "flow"))


def test_further_clips_follow_those_of_the_run(data, more_data):
    few, many = data.splits["train"], more_data.splits["train"]
    assert (many.num_labelled, len(many)) == (48, 112)
    assert torch.equal(many.rgb[:48], few.rgb)
    assert (many.table["label"][:48] == few.table["label"]).all()


def test_every_step_has_as_many_unlabelled_clips(data, more_data, flow_stream):
    config = configs.distilling(**UNLABELLED | {"epochs": 3}, teacher=flow_stream)
    steps = steps_of(config, more_data.splits["train"], 4)
    for (rows, seeds), (without, same_seeds) in zip(steps, steps_of(config, data.splits["train"], 4), strict=True):
        assert (rows[::2] == without).all()
        assert (rows[1::2] >= 48).all()
        assert seeds == same_seeds
    used = np.concatenate([rows[1::2] for rows, _ in steps])
    assert len(used) == 144
    assert sorted(used[:64]) == sorted(used[64:128]) == list(range(48, 112))


def test_unlabelled_clips_count_in_the_distance_alone(more_data, flow_stream):
    config = configs.distilling(**UNLABELLED, teacher=flow_stream, lambda_=3.0)
    clips, teacher = more_data.splits["train"], load_teacher(config, more_data)
    model = build_network(config, more_data)
    step = TrainStep(model, config, clips, Objective(config, teacher))
    rows = np.stack([np.arange(6), np.arange(60, 66)], 1).ravel()
    student = build_network(config, more_data).train()
    logits, labels = student(clips.inputs("rgb", torch.from_numpy(rows))), clips.labels[rows]
    (metrics,) = step(0, rows, view_seeds=(0,), learning_rate=0.0)
    cross_entropy = torch.nn.functional.cross_entropy(logits[::2], labels[::2]).item()
    distance = (logits - teacher.precomputed[rows]).square().mean().item()
    assert metrics.values["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-4)
    assert metrics.values["distance"] == pytest.approx(distance, rel=1e-4)
    assert metrics.values["loss"] == pytest.approx(cross_entropy + 3 * distance, rel=1e-4)
    assert metrics.values["top1"] == pytest.approx((logits.argmax(1) == labels)[::2].float().mean().item())
    # The gradient knows no label of theirs.
    gradients = []
    for wrong in (0, 1):
        relabelled = replace(clips, labels=torch.cat([clips.labels[:48], (clips.labels[48:] + wrong) % 16]))
        other = TrainStep(build_network(config, more_data), config, relabelled, Objective(config, teacher))
        other(0, rows, view_seeds=(0,), learning_rate=0.1)
        gradients.append([p.detach().clone() for p in other.model.parameters()])
    assert max_difference(*gradients) == 0


def test_partners_of_unlabelled_clips_are_unlabelled(data, more_data, flow_stream):
    clips = more_data.splits["train"]
    lesson = load_teacher(configs.distilling(**UNLABELLED, distance="flow_field", outputs="shuffled"), more_data)
    few = load_teacher(configs.distilling(**SPRITES, distance="flow_field", outputs="shuffled"), data)
    assert (lesson.partners[:48] == few.partners).all()
    assert sorted(lesson.partners[48:]) == list(range(48, 112))
    assert (clips.labels.numpy()[lesson.partners] == clips.labels.numpy()).all()


def test_a_run_with_unlabelled_clips_resumes_to_the_same_bits(more_data, flow_stream, tmp_path):
    config = configs.distilling(**UNLABELLED, teacher=flow_stream, outputs="shuffled")

    def fit(**kwargs):
        model = build_network(config, more_data)
        history = train.fit(model, config, more_data, teacher=load_teacher(config, more_data), **kwargs)
        return model.state_dict(), history

    expected, expected_history = fit(report=lambda line: None)
    with Lease(tmp_path) as lease, pytest.raises(loop.Stopped):
        fit(states=States(lease, {}), report=lambda line: signal.raise_signal(signal.SIGTERM))
    with Lease(tmp_path) as lease:
        state, history = fit(states=States(lease, {}), report=lambda line: None)
    assert history == expected_history
    assert all(torch.equal(x, expected[name]) for name, x in state.items())
