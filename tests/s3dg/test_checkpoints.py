"""Checkpoints: a round trip changes nothing, and damaged or foreign files are errors in one sentence."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from d3d.s3dg import checkpoints
from d3d.s3dg.checkpoints import CheckpointError
from d3d.s3dg.network import s3dg

CLASSES = ("a", "b", "c")


def save_network(path):
    checkpoints.save_checkpoint(path, s3dg(3, width=0.1, seed=5), stream="rgb", classes=CLASSES)


def test_load_returns_what_was_saved(tmp_path):
    model = s3dg(3, in_channels=2, width=0.1, seed=5)
    path = tmp_path / "a.safetensors"
    checkpoints.save_checkpoint(path, model, stream="flow", classes=CLASSES, input={"frames": 8})
    loaded, info = checkpoints.load_checkpoint(path)
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in loaded.state_dict().items())
    assert info == checkpoints.read_info(path)
    assert info == checkpoints.CheckpointInfo("flow", CLASSES, 0.1, 2, {"frames": 8})
    assert not loaded.training


def test_equal_networks_are_equal_files(tmp_path):
    content = set()
    for i in range(12):
        save_network(tmp_path / f"{i}.safetensors")
        content.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(content) == 1


def test_truncated_and_missing_files_are_errors_that_name_them(tmp_path):
    path = tmp_path / "a.safetensors"
    save_network(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"a.safetensors is not a complete safetensors file"):
        checkpoints.load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="train that network first"):
        checkpoints.load_checkpoint(tmp_path / "b.safetensors")


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_every_flipped_bit_is_detected(tmp_path, position, bit):
    path = tmp_path / "a.safetensors"
    save_network(path)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a.safetensors (is|does)"):
        checkpoints.load_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {"about": "not json"}, {"about": "[1]"}, {"about": '{"format": "d3d-1"}'}])
def test_foreign_files_are_errors(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file({"x": np.zeros(3)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"foreign.safetensors is not a checkpoint of this package"):
        checkpoints.load_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(value, tmp_path):
    path = tmp_path / "a.safetensors"
    save_network(path)
    content = path.read_bytes()
    model = s3dg(3, width=0.1)
    model.features["Conv2d_1a_7x7"].norm.running_var[2] = value
    with pytest.raises(CheckpointError, match=r"a.safetensors is not usable: .*1a_7x7.norm.running_var is not finite"):
        checkpoints.save_checkpoint(path, model, stream="rgb", classes=CLASSES)
    assert path.read_bytes() == content


def test_class_names_must_be_as_many_as_the_logits(tmp_path):
    with pytest.raises(CheckpointError, match=r"a.safetensors is not written: the network has 2 classes, not 3"):
        checkpoints.save_checkpoint(tmp_path / "a.safetensors", s3dg(2, width=0.1), stream="rgb", classes=CLASSES)
    assert not list(tmp_path.iterdir())


def test_a_loaded_network_is_laid_out_in_memory_as_a_new_one(tmp_path):
    """The fast kernels need channels-last weights, and training must not train what is frozen."""
    save_network(tmp_path / "a.safetensors")
    loaded, new = checkpoints.load_checkpoint(tmp_path / "a.safetensors")[0], s3dg(3, width=0.1)
    assert {n: x.stride() for n, x in loaded.state_dict().items()} == {
        n: x.stride() for n, x in new.state_dict().items()
    }
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in new.parameters()]


def test_loading_draws_no_random_numbers(tmp_path):
    save_network(tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    checkpoints.load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_description_of_an_older_file_may_lack_the_input(tmp_path):
    path, model = tmp_path / "a.safetensors", s3dg(3, width=0.1)
    about = {"stream": "rgb", "classes": list(CLASSES), "width": 0.1, "in_channels": 3}
    path.write_bytes(checkpoints.to_safetensors(checkpoints.NETWORK_FORMAT, model.state_dict(), about))
    assert checkpoints.read_info(path).input == {}
