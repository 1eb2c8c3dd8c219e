"""One step: equal to PyTorch's own optimiser, to a larger batch, and on a GPU to its CUDA graph."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from d3d.data import load as datasets
from d3d.study.schema import changed
from d3d.train.networks import Teacher, build_network
from d3d.train.objective import Objective
from d3d.train.step import TrainStep
from d3d.train.team import SINGLE_PROCESS, Team
from tests import configs

TINY = {"frames": 8, "size": 32, "train_clips": 48, "test_clips": 16, "batch_size": 12, "width": 0.1}


@pytest.fixture(scope="module")
def data():
    return datasets.load(configs.training(**TINY, flow="exact").data, seed=0, streams=("rgb", "flow"))


def train_steps(config, data, *, steps=3, teacher=None, frozen=False, **kwargs):
    """Trains for a few steps on the first clips; returns the parameters and each step's metrics."""
    model = build_network(config, data, data.splits["train"].labels.device)
    train_step = TrainStep(model, config, data.splits["train"], Objective(config, teacher), **kwargs)
    if frozen:
        freeze_norms(model)
    metrics = []
    for i in range(steps):
        metrics += train_step(i, np.arange(config.optimiser.batch_size) + i, view_seeds=(0,), learning_rate=0.05)
    metrics += train_step.drain()
    return [p.detach().clone() for p in model.parameters()], [m.values for m in metrics]


def freeze_norms(model):
    """Normalises by running statistics: those of a few clips amplify rounding errors."""
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm3d)]:
        norm.eval()
    return model


def max_difference(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_it_equals_pytorchs_sgd(data, momentum):
    config = configs.training(**TINY, dropout=0.0, momentum=momentum, weight_decay=0.01)
    clips = data.splits["train"]
    model = freeze_norms(build_network(config, data).train())
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=momentum, weight_decay=0.01
    )
    for i in range(3):
        batch = clips.batch(clips.draw(np.arange(12) + i, ()), ("rgb",))
        optimiser.zero_grad()
        loss = F.cross_entropy(model(batch.inputs["rgb"]), batch.labels)
        loss.backward()
        optimiser.step()
    parameters, metrics = train_steps(config, data, frozen=True)
    assert max_difference(parameters, list(model.parameters())) < 1e-6
    assert metrics[-1]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics[-1]["clips"] == 12


@pytest.mark.parametrize("accumulate", [2, 5])
def test_accumulating_equals_the_larger_batch(data, accumulate):
    """With frozen batch norm; includes dropout's masks and micro-batches of different sizes (12 clips in 5)."""
    config = configs.training(**TINY, dropout=0.5)
    parameters, metrics = train_steps(config, data, frozen=True)
    accumulated, accumulated_metrics = train_steps(changed(config, accumulate=accumulate), data, frozen=True)
    assert max_difference(parameters, accumulated) < 1e-6
    assert accumulated_metrics[-1] == pytest.approx(metrics[-1], rel=1e-5)


def test_micro_batches_have_their_own_batch_statistics(data):
    config = configs.training(**TINY, accumulate=2, dropout=0.0)
    model = build_network(config, data).train()
    train_step = TrainStep(model, config, data.splits["train"], Objective(config))
    train_step(0, np.arange(12), view_seeds=(0,), learning_rate=0.0)
    other = build_network(config, data).train()
    for rows in (torch.arange(6), torch.arange(6, 12)):
        other(data.splits["train"].inputs("rgb", rows))
    assert max_difference(list(model.buffers()), list(other.buffers())) < 1e-6


def test_the_dropout_mask_depends_on_seed_and_step_alone(data):
    config = configs.training(**TINY, dropout=0.5)
    train_step = TrainStep(build_network(config, data), config, data.splits["train"], Objective(config))
    rows = np.arange(12)
    torch.manual_seed(1)
    mask = train_step._dropout_mask(3, rows)
    torch.manual_seed(2)
    assert torch.equal(mask, train_step._dropout_mask(3, rows))
    assert not torch.equal(mask, train_step._dropout_mask(4, rows))
    assert mask.shape == (12, *train_step.model.pooled_shape((8, 32, 32)))
    assert mask.float().mean() == pytest.approx(0.5, abs=0.05)
    pooled = train_step.model.train().pooled(torch.rand(12, 3, 8, 32, 32))
    assert train_step._dropout_mask(3, rows).shape == pooled.shape


@pytest.mark.parametrize("distance", ["mse", "kl", "features"])
def test_losses_by_hand(data, distance):
    config = configs.distilling(**TINY, teacher="t", lambda_=3.0, distance=distance, temperature=2.0, dropout=0.0)
    output = "features" if distance == "features" else "logits"
    width = build_network(config, data).pooled_shape((8, 32, 32))[0] if output == "features" else 16
    precomputed = torch.randn(48, width, generator=torch.Generator().manual_seed(0))
    model = build_network(config, data)
    _, (metrics,) = train_steps(config, data, steps=1, teacher=Teacher(model, "flow", output, precomputed))
    student = build_network(config, data).train()
    pooled = student.pooled(data.splits["train"].inputs("rgb", torch.arange(12)))
    logits, targets = student.classify(pooled), precomputed[:12]
    if distance == "kl":
        soft_teacher, soft_student = (targets / 2).log_softmax(1), (logits / 2).log_softmax(1)
        expected = 4 * (soft_teacher.exp() * (soft_teacher - soft_student)).sum(1).mean()
    else:
        expected = (((logits if distance == "mse" else pooled.mean((2, 3, 4))) - targets) ** 2).mean()
    top1 = (logits.argmax(1) == data.splits["train"].labels[:12]).float().mean().item()
    assert metrics["distance"] == pytest.approx(expected.item(), rel=1e-4)
    assert metrics["loss"] == pytest.approx(metrics["cross_entropy"] + 3 * metrics["distance"], rel=1e-5)
    assert metrics["top1"] == pytest.approx(top1)


def test_training_resumes_from_a_state_to_the_same_bits(data):
    config = configs.training(**TINY)
    model = build_network(config, data)
    train_step = TrainStep(model, config, data.splits["train"], Objective(config))
    train_step(0, np.arange(12), view_seeds=(0,), learning_rate=0.05)
    state = {name: x.clone() for name, x in train_step.sgd.state_dict().items()}
    train_step(1, np.arange(12, 24), view_seeds=(0,), learning_rate=0.05)
    other = build_network(changed(config, seed=1), data)
    resumed = TrainStep(other, config, data.splits["train"], Objective(config))
    resumed.sgd.load_state_dict(state)
    resumed(1, np.arange(12, 24), view_seeds=(0,), learning_rate=0.05)
    assert all(torch.equal(x, train_step.sgd.state_dict()[name]) for name, x in resumed.sgd.state_dict().items())
    assert any(name.startswith("momentum.") for name in state)


class MirroredTeam(Team):
    """A team of two whose other process always has the same values as this one."""

    def start_all_reduce_(self, x):
        x.mul_(2)
        return lambda: None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("accumulate", "distance", "team"),
    [
        (1, "mse", SINGLE_PROCESS),
        (1, "features", SINGLE_PROCESS),
        (2, "mse", SINGLE_PROCESS),
        (1, "mse", MirroredTeam(0, 2)),
    ],
)
def test_a_captured_step_equals_an_eager_one(accumulate, distance, team):
    """With batches of two sizes, so that two graphs share memory, and a teacher whose outputs are on the GPU."""
    config = configs.distilling(**TINY, teacher="t", accumulate=accumulate, distance=distance)
    data = datasets.load(configs.training(**TINY).data, seed=0, device="cuda")
    output = "features" if distance == "features" else "logits"
    losses, parameters = {}, {}
    for capture in (False, True):
        model = build_network(config, data, "cuda")
        width = model.pooled_shape((8, 32, 32))[0] if output == "features" else 16
        precomputed = torch.randn(48, width, generator=torch.Generator().manual_seed(0)).cuda()
        objective = Objective(config, Teacher(model, "flow", output, precomputed))
        train_step = TrainStep(model, config, data.splits["train"], objective, team=team, capture=capture)
        metrics = []
        for i in range(24):
            rows = np.random.default_rng(i).permutation(48)[: 12 - i % 2]
            metrics += train_step(i, rows, view_seeds=(0,), learning_rate=0.05 / (i + 1))
        metrics += train_step.drain()
        assert len(train_step.graphs.entries) == (2 if capture else 0)
        assert [m.step for m in metrics] == list(range(24))
        losses[capture] = [m.values["loss"] for m in metrics]
        parameters[capture] = [p.detach().clone() for p in model.parameters()]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    assert max_difference(parameters[True], parameters[False]) < 1e-3
