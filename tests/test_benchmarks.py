"""The benches compare what they say: contestants that fail are absent, ratios are those of equal batches."""

import sys

import pytest
import torch

from d3d.study.records import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import networks
import scaling

CASE = networks.Case("inference", "float32", 2, ("s3dg_folded", "s3dg_folded_captured", "torchvision_s3d"), (8, 32))


def contestants(metrics):
    return {name.split("/")[3] for name in metrics if name.endswith("/clips_per_second")}


def test_a_contestant_that_fails_is_absent_with_its_reason(monkeypatch, capsys):
    def build_step(name, case, clips):
        assert clips.shape == (2, 3, 8, 32, 32)
        if name == "s3dg_folded_captured":
            raise RuntimeError("no graphs here\nat all")
        return lambda: None

    monkeypatch.setattr(networks, "build_step", build_step)
    assert contestants(networks.compare(CASE, runs=1)) == {"s3dg_folded", "torchvision_s3d"}
    assert "no row of s3dg_folded_captured for inference/float32/batch2: no graphs here\n" in capsys.readouterr().out


def test_a_contestant_without_room_beside_the_others_runs_alone(monkeypatch):
    alive = []

    class Step:
        def __init__(self, name):
            self.name = name
            alive.append(name)

        def __call__(self):
            pass

        def __del__(self):
            alive.remove(self.name)

    def build_step(name, case, clips):
        if len(alive) == 2:
            raise torch.OutOfMemoryError("full")
        return Step(name)

    monkeypatch.setattr(networks, "build_step", build_step)
    assert contestants(networks.compare(CASE, runs=1)) == set(CASE.contestants)
    assert not alive


def test_the_compiled_peer_speaks_for_its_step():
    cases = [
        networks.Case("inference", "bf16", 1, ("s3dg_folded", "torchvision_s3d_compiled_graphs")),
        networks.Case("inference", "bf16", 32, ("s3dg_folded", "torchvision_s3d", "torchvision_s3d_compiled")),
        networks.Case("inference", "bf16", 64, ("s3dg_folded", "s3dg_folded_captured", "torchvision_s3d")),
    ]
    rates = {
        "batch1/s3dg_folded": 60.0,
        "batch1/torchvision_s3d_compiled_graphs": 30.0,
        "batch32/s3dg_folded": 400.0,
        "batch32/torchvision_s3d": 80.0,
        "batch32/torchvision_s3d_compiled": 100.0,
        "batch64/s3dg_folded": 600.0,
        "batch64/torchvision_s3d": 60.0,
    }
    metrics = {f"inference/bf16/{name}/clips_per_second": rate for name, rate in rates.items()}
    by_case, by_step = networks.ratios(cases, metrics)
    assert by_case == {
        "inference/bf16/batch1/ratio": 2.0,
        "inference/bf16/batch32/ratio": 4.0,
        "inference/bf16/batch64/ratio": 10.0,
    }
    assert by_step == {"inference/bf16/ratio": 4.0}


@pytest.mark.parametrize("clip", [(64, 224), (16, 64), (8, 32)])
def test_torchvision_s_network_takes_small_clips(clip):
    frames, size = clip
    with torch.device("meta"):
        network = networks.torchvision_network(clip).eval()
        assert network(torch.empty(2, 3, frames, size, size)).shape == (2, networks.CLASSES)
    assert (network.avgpool.kernel_size == [2, 7, 7]) == (clip == (64, 224))


@pytest.mark.slow
@pytest.mark.skipif(scaling.CUDA, reason="the toy cases are for a CPU")
def test_two_processes_train_on_twice_the_clips():
    one, two = (scaling.run("study", count) for count in (1, 2))
    assert (one["clips"], two["clips"]) == (scaling.TOY["study"].clips, 2 * scaling.TOY["study"].clips)
    assert min(one["seconds"], two["seconds"]) > 0
