"""What a run takes of its machine: bounds from below that are near the truth, and the sentences about them."""

import pytest

from d3d.data.load import load
from d3d.s3dg.network import s3dg
from d3d.study import machine
from d3d.study.experiments import EXPERIMENTS, make_config
from d3d.study.profiles import read_profile
from tests import configs

GB = 10**9


def need(experiment: str, config, what: str, **options) -> float:
    (bytes_,) = [need.bytes for need in machine.needs(experiment, config, **options) if need.what == what]
    return bytes_


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_the_clips_take_what_is_said(stream):
    config = configs.training(frames=4, size=16, train_clips=64, test_clips=32, stream=stream, flow="exact")
    data = load(config.data, seed=0, streams=(stream,))
    tensors = [getattr(clips, name) for clips in data.splits.values() for name in ("rgb", "flow", "mask")]
    taken = sum(x.numel() * x.element_size() for x in tensors if x is not None)
    assert 0.8 * taken < need("train", config, "the clips") <= taken


@pytest.mark.parametrize("width", [0.25, 0.5, 1.0, 2.0])
def test_the_network_takes_what_is_said(width):
    parameters = sum(p.numel() for p in s3dg(16, width=width).parameters())
    # Weights, gradients and momenta; small networks have more parameters than the square of the width says.
    assert 0.9 * 12 * parameters < need("train", configs.training(width=width), "the network") <= 12 * parameters


def test_a_batch_is_as_large_as_the_clips_allow_and_shared_by_processes():
    config = configs.training(batch_size=64, train_clips=32)
    batch = need("train", config, "the activations of a batch")
    assert batch == need("train", configs.training(batch_size=32, train_clips=32), "the activations of a batch")
    assert need("train", config, "the activations of a batch", processes=2) == batch / 2
    accumulated = configs.training(batch_size=64, train_clips=32, accumulate=4)
    assert need("train", accumulated, "the activations of a batch") == batch / 4


def test_the_clips_of_videos_are_known_once_they_are_listed():
    config = configs.training(dataset="folder", root="videos", epochs=10, batch_size=64)
    assert "the activations of a batch" not in [need.what for need in machine.needs("train", config)]
    assert need("train", config, "the order of the training clips", train_clips=100) == 8 * 10 * 100


@pytest.mark.parametrize("profile", ["smoke", "h200", "portable", "settled"])
def test_the_studies_fit_a_gpu_and_smoke_fits_a_laptop(profile, monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda device: (2 if profile == "smoke" else 60) * GB)
    params = read_profile(f"notebooks/params/{profile}.yaml")
    for experiment in EXPERIMENTS:
        machine.check_memory(experiment, make_config(experiment, params | {"lambda_": 0.0}))


def test_what_does_not_fit_is_named_with_its_parameters(monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda device: 2 * GB)
    config = configs.training(train_clips=100_000, test_clips=16, frames=8, size=64)
    with pytest.raises(ValueError, match="at least") as error:
        machine.check_memory("train", config)
    # 4 bytes per pixel of 100,000 + 5 x 16 clips of 8 x 64 x 64 pixels.
    assert "13.1 GB of it for the clips, but cpu has 2 GB free: make it smaller by" in str(error.value)
    assert str(error.value).endswith("train_clips (100000), test_clips (16), frames (8) or size (64)")


def test_a_gpu_holds_the_clips_and_the_machine_their_order(monkeypatch):
    free = {"cuda": 100 * GB, "cpu": GB}
    monkeypatch.setattr(machine, "free_bytes", lambda device: free[device])
    config = configs.training(train_clips=100_000, frames=8, size=64, epochs=100)
    machine.check_memory("train", config, device="cuda")
    with pytest.raises(ValueError, match="for the clips, but cpu has"):
        machine.check_memory("train", config, device="cpu")
    long = configs.training(train_clips=100_000, frames=8, size=64, epochs=10_000)
    with pytest.raises(ValueError, match="for the order of the training clips, but cpu has 1 GB free"):
        machine.check_memory("train", long, device="cuda")
    free["cuda"] = GB
    with pytest.raises(ValueError, match="for the clips, but cuda has 1 GB free"):
        machine.check_memory("train", config, device="cuda")


def test_processes_need_room_too(monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda device: 2 * GB)
    machine.check_processes(4)
    with pytest.raises(ValueError, match=r"processes 1000 take at least 250 GB of memory, but .* 2 GB free: use one"):
        machine.check_processes(1000)


def test_ensembles_need_nothing():
    assert machine.needs("fuse", make_config("fuse", {})) == []


def test_the_free_memory_of_the_machine_is_plausible():
    assert 10**8 < machine.free_bytes("cpu") < 10**14
