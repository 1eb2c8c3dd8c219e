"""Files of networks: whole, verified, and refused by a sentence otherwise."""

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


def saved(path, **kwargs):
    model = s3dg(3, width=0.1, seed=5)
    checkpoints.save_checkpoint(path, model, stream="rgb", classes=CLASSES, **kwargs)
    return model


def test_they_come_back_as_they_were(tmp_path):
    model = s3dg(3, in_channels=2, width=0.1, seed=5)
    path = tmp_path / "a.safetensors"
    checkpoints.save_checkpoint(path, model, stream="flow", classes=CLASSES, input={"frames": 8})
    again, about = checkpoints.load_checkpoint(path)
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in again.state_dict().items())
    assert about == checkpoints.read_about(path)
    assert about == checkpoints.About("flow", CLASSES, 0.1, 2, {"frames": 8})
    assert not again.training


def test_equal_networks_are_equal_files(tmp_path):
    content = set()
    for i in range(12):
        saved(tmp_path / f"{i}.safetensors")
        content.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(content) == 1


def test_a_cut_file_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    saved(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"a.safetensors is no whole safetensors file"):
        checkpoints.load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="train that network first"):
        checkpoints.load_checkpoint(tmp_path / "b.safetensors")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_no_flipped_bit_goes_unnoticed(tmp_path, place, bit):
    path = tmp_path / "a.safetensors"
    saved(path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a.safetensors (is|does)"):
        checkpoints.load_checkpoint(path)


@pytest.mark.parametrize("meta", [None, {"about": "not json"}, {"about": "[1]"}, {"about": '{"format": "d3d-1"}'}])
def test_foreign_weights_are_named(tmp_path, meta):
    path = tmp_path / "foreign.safetensors"
    save_file({"x": np.zeros(3)}, path, metadata=meta)
    with pytest.raises(CheckpointError, match=r"foreign.safetensors is no checkpoint of this package"):
        checkpoints.load_checkpoint(path)
