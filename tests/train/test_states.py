"""States of a run: whole, verified, pruned, and refused by a sentence otherwise."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from d3d.s3dg.checkpoints import CheckpointError
from d3d.train.states import States

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
        with pytest.raises(OSError, match=r"step000000010.safetensors could not be written and any previous file"):
            states.save(10, tensors(10), {})
        assert states.latest().step == 5

    @pytest.mark.parametrize("finished", [False, True])
    def test_a_second_process_waits(self, tmp_path, finished):
        """Also where the first deletes the folder, lock and all: the second then holds a new one."""
        states = States(tmp_path / "run.state", FIXED)
        code = f"from d3d.train.states import States; States({str(states.folder)!r}, {{}}); print('got it', flush=True)"
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
