"""One step: equal to PyTorch's own optimiser, to a larger batch, and on a GPU to itself captured."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from d3d.data import load as datasets
from d3d.study.schema import changed
from d3d.train.networks import Teacher, build
from d3d.train.objective import Objective
from d3d.train.step import Step
from d3d.train.team import ALONE, Team
from tests import configs

TINY = {"frames": 8, "size": 32, "train_clips": 48, "test_clips": 16, "batch_size": 12, "width": 0.1}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(scope="module")
def data():
    return datasets.load(configs.training(**TINY, flow="exact").data, seed=0, streams=("rgb", "flow"))


def trained(config, data, *, steps=3, teacher=None, frozen=False, **kwargs):
    """Parameters after a few steps on the first clips, and what the last told."""
    model = build(config, data, data.splits["train"].labels.device)
    step = Step(model, config, data.splits["train"], Objective(config, teacher), **kwargs)
    if frozen:
        freeze(model)
    told = []
    for i in range(steps):
        told += step(i, np.arange(config.optimiser.batch_size) + i, rate=0.05)
    told += step.drain()
    return [p.detach().clone() for p in model.parameters()], [t.values for t in told]


def freeze(model):
    """Batch norm by its averages: over a few clips its statistics blow rounding up."""
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm3d)]:
        norm.eval()
    return model


def farthest(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_it_is_pytorchs_sgd(data, momentum):
    config = configs.training(**TINY, dropout=0.0, momentum=momentum, weight_decay=0.01)
    clips = data.splits["train"]
    model = freeze(build(config, data).train())
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=momentum, weight_decay=0.01
    )
    for i in range(3):
        batch = clips.batch(torch.arange(12) + i, ("rgb",))
        optimiser.zero_grad()
        loss = F.cross_entropy(model(batch.inputs["rgb"]), batch.labels)
        loss.backward()
        optimiser.step()
    ours, told = trained(config, data, frozen=True)
    assert farthest(ours, list(model.parameters())) < 1e-6
    assert told[-1]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert told[-1]["clips"] == 12


@pytest.mark.parametrize("accumulate", [2, 5])
def test_accumulating_equals_the_larger_batch(data, accumulate):
    """Exactly where batch norm does not look at the batch; dropout's masks and the uneven parts (12 in 5) included."""
    config = configs.training(**TINY, dropout=0.5)
    whole, told = trained(config, data, frozen=True)
    parts, told_too = trained(changed(config, accumulate=accumulate), data, frozen=True)
    assert farthest(whole, parts) < 1e-6
    assert told_too[-1] == pytest.approx(told[-1], rel=1e-5)


def test_parts_have_their_own_batch_statistics(data):
    config = configs.training(**TINY, accumulate=2, dropout=0.0)
    model = build(config, data).train()
    step = Step(model, config, data.splits["train"], Objective(config))
    step(0, np.arange(12), rate=0.0)
    other = build(config, data).train()
    for rows in (torch.arange(6), torch.arange(6, 12)):
        other(data.splits["train"].inputs("rgb", rows))
    assert farthest(list(model.buffers()), list(other.buffers())) < 1e-6


def test_the_mask_follows_from_seed_and_step(data):
    config = configs.training(**TINY, dropout=0.5)
    step = Step(build(config, data), config, data.splits["train"], Objective(config))
    rows = np.arange(12)
    torch.manual_seed(1)
    mask = step._dropout_mask(3, rows)
    torch.manual_seed(2)
    assert torch.equal(mask, step._dropout_mask(3, rows))
    assert not torch.equal(mask, step._dropout_mask(4, rows))
    assert mask.shape == (12, *step.model.pooled_shape((8, 32, 32)))
    assert mask.float().mean() == pytest.approx(0.5, abs=0.05)
    assert step._dropout_mask(3, rows).shape == step.model.train().pooled(torch.rand(12, 3, 8, 32, 32)).shape


@pytest.mark.parametrize("distance", ["mse", "kl", "features"])
def test_the_terms_by_hand(data, distance):
    config = configs.distilling(**TINY, teacher="t", lambda_=3.0, distance=distance, temperature=2.0, dropout=0.0)
    of = "features" if distance == "features" else "logits"
    width = build(config, data).pooled_shape((8, 32, 32))[0] if of == "features" else 16
    outputs = torch.randn(48, width, generator=torch.Generator().manual_seed(0))
    model = build(config, data)
    _, (told,) = trained(config, data, steps=1, teacher=Teacher(model, "flow", of, outputs))
    student = build(config, data).train()
    pooled = student.pooled(data.splits["train"].inputs("rgb", torch.arange(12)))
    logits, said = student.classify(pooled), outputs[:12]
    if distance == "kl":
        soft_said, soft = (said / 2).log_softmax(1), (logits / 2).log_softmax(1)
        expected = 4 * (soft_said.exp() * (soft_said - soft)).sum(1).mean()
    else:
        expected = (((logits if distance == "mse" else pooled.mean((2, 3, 4))) - said) ** 2).mean()
    assert told["distance"] == pytest.approx(expected.item(), rel=1e-4)
    assert told["loss"] == pytest.approx(told["cross_entropy"] + 3 * told["distance"], rel=1e-5)
    assert told["top1"] == pytest.approx((logits.argmax(1) == data.splits["train"].labels[:12]).float().mean().item())


def test_a_state_brings_everything_back(data):
    config = configs.training(**TINY)
    model = build(config, data)
    step = Step(model, config, data.splits["train"], Objective(config))
    step(0, np.arange(12), rate=0.05)
    state = {name: x.clone() for name, x in step.sgd.state().items()}
    step(1, np.arange(12, 24), rate=0.05)
    again = Step(build(changed(config, seed=1), data), config, data.splits["train"], Objective(config))
    again.sgd.restore(state)
    again(1, np.arange(12, 24), rate=0.05)
    assert all(torch.equal(x, step.sgd.state()[name]) for name, x in again.sgd.state().items())
    assert any(name.startswith("momentum.") for name in state)


class Twins(Team):
    """A team of two whose other process always has what this one has."""

    def sum_(self, x):
        return x.mul_(2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("accumulate", "distance", "team"),
    [(1, "mse", ALONE), (1, "features", ALONE), (2, "mse", ALONE), (1, "mse", Twins(0, 2))],
)
def test_a_captured_step_is_the_step(accumulate, distance, team):
    """Batches of two sizes, so that two graphs share their memory; with a teacher, whose outputs lie on the GPU."""
    config = configs.distilling(**TINY, teacher="t", accumulate=accumulate, distance=distance)
    data = datasets.load(configs.training(**TINY).data, seed=0, device="cuda")
    of = "features" if distance == "features" else "logits"
    found = {}
    for capture in (False, True):
        model = build(config, data, "cuda")
        width = model.pooled_shape((8, 32, 32))[0] if of == "features" else 16
        outputs = torch.randn(48, width, generator=torch.Generator().manual_seed(0)).cuda()
        teacher = Teacher(model, "flow", of, outputs)
        step = Step(model, config, data.splits["train"], Objective(config, teacher), team=team, capture=capture)
        told = []
        for i in range(24):
            rows = np.random.default_rng(i).permutation(48)[: 12 - i % 2]
            told += step(i, rows, rate=0.05 / (i + 1))
        told += step.drain()
        assert len(step.graphs) == (2 if capture else 0)
        assert [t.position for t in told] == list(range(24))
        found[capture] = [t.values["loss"] for t in told], [p.detach().clone() for p in model.parameters()]
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-3)
    assert farthest(found[True][1], found[False][1]) < 1e-3
