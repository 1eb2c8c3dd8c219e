"""Files of networks and states: whole, verified, pruned, and refused by a sentence otherwise."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from d3d import checkpoints, records, sprite_classes, study
from d3d.checkpoints import CheckpointError, States, arm_network, save_checkpoint
from d3d.evaluate import predict
from d3d.s3dg import s3dg
from d3d.sprite_clips import SpriteDataConfig, sprite_clips

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


FIXED = {"seed": 3, "learning_rate": 0.1}


def tensors(value):
    return {"model.w": torch.full((5,), float(value)), "n": torch.tensor(value)}


class TestStates:
    def test_the_newest_comes_back_and_two_are_kept(self, tmp_path):
        states = States(tmp_path / "run.state", FIXED)
        assert states.latest() is None
        for step in (5, 10, 100):
            states.save(step, tensors(step), {"sums": {"loss": 0.1 + 0.2}})
        assert [path.name for path in states.paths()] == ["step000000100.safetensors", "step000000010.safetensors"]
        found = states.latest()
        assert found.step == 100
        assert found.about == {"sums": {"loss": 0.1 + 0.2}}
        assert torch.equal(found.tensors["model.w"], torch.full((5,), 100.0))
        states.clear()
        assert not (tmp_path / "run.state").exists()

    @pytest.mark.parametrize("damage", [lambda c: c[:-3], lambda c: c[:-1] + bytes([c[-1] ^ 1]), lambda c: b""])
    def test_a_damaged_one_is_told_and_the_one_before_taken(self, tmp_path, damage):
        told = []
        states = States(tmp_path, FIXED, told.append)
        states.save(5, tensors(5), {})
        path = states.save(10, tensors(10), {})
        path.write_bytes(damage(path.read_bytes()))
        assert states.latest().step == 5
        assert len(told) == 1
        assert "step000000010.safetensors is " in told[0]
        assert told[0].endswith("; going on from the state before it")
        # It is kept, but neither counts as the newest nor takes a good one's place.
        assert (tmp_path / "damaged-step000000010.safetensors").is_file()
        assert "step000000005.safetensors" in states.newest()
        (first,) = states.paths()
        first.write_bytes(b"x" * 50)
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"step000000005.safetensors is damaged, as all in .*: delete it"):
                states.latest()

    def test_another_config_is_refused_by_the_fields_that_differ(self, tmp_path):
        first = States(tmp_path, FIXED)
        first.save(5, tensors(5), {})
        os.close(first._held)
        other = States(tmp_path, FIXED | {"learning_rate": 0.2, "new": True})
        with pytest.raises(
            CheckpointError,
            match=r"step000000005.safetensors was saved with learning_rate 0.1, new None; this run has learning_rate "
            r"0.2, new True: give what it had to go on, or delete .* to start anew",
        ):
            other.latest()

    def test_what_other_code_saved_is_set_aside(self, tmp_path):
        first = States(tmp_path, FIXED | {"code": "a"})
        first.save(5, tensors(5), {})
        os.close(first._held)
        told = []
        second = States(tmp_path, FIXED | {"code": "b"}, told.append)
        assert second.latest() is None
        assert "step000000005.safetensors was saved by other code: it is set aside as other-code-step0" in told[0]
        assert (tmp_path / "other-code-step000000005.safetensors").is_file()
        second.save(3, tensors(3), {})
        assert second.latest().step == 3

    def test_what_a_killed_process_left_is_swept(self, tmp_path):
        (tmp_path / ".step000000005.safetensors.123").write_bytes(b"half")
        states = States(tmp_path, FIXED)
        assert states.latest() is None
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]

    def test_a_full_disk_keeps_the_one_before(self, tmp_path):
        states = States(tmp_path, FIXED)
        states.save(5, tensors(5), {})
        (tmp_path / f".step000000010.safetensors.{os.getpid()}").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"step000000010.safetensors could not be written and what stood there"):
            states.save(10, tensors(10), {})
        assert states.latest().step == 5

    @pytest.mark.parametrize("finished", [False, True])
    def test_a_second_process_waits(self, tmp_path, finished):
        """Also where the first deletes the folder, lock and all: the second then holds a new one."""
        states = States(tmp_path / "run.state", FIXED)
        code = f"from d3d.checkpoints import States; States({str(states.folder)!r}, {{}}); print('got it', flush=True)"
        other = subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True)
        assert "another process is at this run" in other.stdout.readline()
        assert other.poll() is None
        if finished:
            states.clear()
        os.close(states._held)
        assert other.stdout.readline() == "got it\n"
        other.communicate()
        assert (states.folder / "lock").is_file()

    def test_the_check_sum_covers_the_facts_too(self, tmp_path):
        states = States(tmp_path, FIXED)
        path = states.save(5, tensors(5), {})
        content = path.read_bytes()
        path.write_bytes(content.replace(b'seed\\": 3', b'seed\\": 4'))
        assert path.read_bytes() != content
        with pytest.raises(CheckpointError, match="is damaged, as all"):
            states.latest()
        with safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["about"])["fixed"]["seed"] == 4


def test_arms_are_found_by_their_weights(tmp_path, capsys):
    fit = sprite_clips(SpriteDataConfig(frames=4, size=16), "train/0", 32)
    classes = tuple(c.name for c in sprite_classes.CLASSES)
    save_checkpoint(study.weights(tmp_path, "rgb", 0), s3dg(16, width=0.1, seed=1), stream="rgb", classes=classes)
    (rgb, stream), (tuned, _), (random, _) = (
        arm_network(tmp_path, arm, 0, width=0.1, fit=fit) for arm in ("rgb", "tuned", "random")
    )
    assert stream == "rgb"
    assert all(torch.equal(a, b) for a, b in zip(rgb.parameters(), tuned.parameters(), strict=True))
    assert not torch.equal(rgb.Conv2d_0c_1x1.weight, random.Conv2d_0c_1x1.weight)
    assert arm_network(tmp_path, "d3d", 0, width=0.1, fit=fit) is None
    assert f"d3d: no weights at {tmp_path}/distill/d3d-seed0.safetensors, left out" in capsys.readouterr().out


@pytest.mark.parametrize("arm", ["d3d", pytest.param("rgb", marks=pytest.mark.slow)])
def test_the_committed_networks_do_what_their_records_say(arm):
    """On the first clips of iid, which the records' 4,000 are the rest of, within four standard errors."""
    path = Path(study.weights("results/portable", arm, 0))
    record = records.read(path.with_suffix(".json"))
    known = {f.name for f in fields(SpriteDataConfig)}
    clips = sprite_clips(SpriteDataConfig(**{k: v for k, v in record.params.items() if k in known}), "iid", 64)
    model, about = checkpoints.load_checkpoint(path)
    found = (predict(model, clips, about.stream).argmax(1) == clips.labels.numpy()).mean()
    assert found == pytest.approx(record.metrics["iid/top1"], abs=4 * np.sqrt(0.25 / 64))


def test_the_committed_weights_are_few():
    found = [Path(study.weights("results/portable", arm, 0)) for arm in ("rgb", "flow", "d3d")]
    assert sum(path.stat().st_size for path in found) < 3_000_000
