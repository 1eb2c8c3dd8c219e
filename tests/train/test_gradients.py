"""Gradients of a team: summed in several messages in a fixed order, most of them before the backward pass has ended."""

import pytest
import torch
from torch import nn

from d3d.train import gradients
from d3d.train.gradients import Gradients
from d3d.train.team import SINGLE_PROCESS, Team


class RecordingTeam(Team):
    """The second of two processes, whose other process always has the same values; records messages and waits."""

    def start_all_reduce_(self, x):
        events.append(("start", x.numel()))
        x.mul_(2)
        return lambda: events.append(("wait", x.numel()))


events: list = []


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).train()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("bucket_bytes", [4, 100, 2**23])
def test_a_team_sums_gradients_and_averages_running_statistics(parts, bucket_bytes, monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET_BYTES", bucket_bytes)
    events.clear()
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    results = {}
    for team in (SINGLE_PROCESS, RecordingTeam(1, 2)):
        model = network()
        computed = Gradients(model, team, torch.device("cpu"), num_extra=2)
        for _ in range(2):  # nothing is left over from the step before
            computed.clear()
            for i, part in enumerate(x.chunk(parts)):
                computed.backward(model(part).square().sum(), is_last=i == parts - 1)
            events.append("end of the backward pass")
            computed.extra += torch.tensor([1.0, 5.0])
            computed.finish()
        results[team.size] = computed, [b.clone() for b in model.buffers()]
    (single, statistics), (team, averaged) = results[1], results[2]
    assert all(torch.allclose(b, 2 * a) for a, b in zip(single.values, team.values, strict=True))
    assert all(torch.allclose(a, b) for a, b in zip(statistics, averaged, strict=True))
    assert team.extra.tolist() == [2, 10]
    sizes = [p.numel() for p in reversed(single.params)]
    messages = {4: sizes, 100: [26, 48], 2**23: [sum(sizes)]}[bucket_bytes]
    # The running statistics, 8 means and 8 variances, and the extra values are one message at the end.
    step = [("start", n) for n in messages] + ["end of the backward pass", ("start", 18)]
    step += [("wait", n) for n in (*messages, 18)]
    assert events[2:] == 2 * step


def test_a_networks_parameters_may_be_frozen():
    model = network()
    model[0].requires_grad_(False)
    computed = Gradients(model, SINGLE_PROCESS, torch.device("cpu"), num_extra=1)
    computed.clear()
    computed.backward(model(torch.randn(6, 4)).sum(), is_last=True)
    computed.finish()
    assert [g.shape for g in computed.values] == [(8,), (8,), (2, 8), (2,)]
