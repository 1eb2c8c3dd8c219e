"""States of a run: complete, verified, pruned, and otherwise refused with a clear message."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from d3d.s3dg.checkpoints import CheckpointError
from d3d.train.states import States

SETTINGS = {"seed": 3, "learning_rate": 0.1}


def tensors(value):
    return {"model.w": torch.full((5,), float(value)), "n": torch.tensor(value)}


class TestStates:
    def test_the_newest_is_read_and_two_are_kept(self, tmp_path):
        states = States(tmp_path / "run.state", SETTINGS)
        assert states.latest() is None
        for step in (5, 10, 100):
            states.save(step, tensors(step), {"sums": {"loss": 0.1 + 0.2}})
        assert [path.name for path in states.paths()] == ["step000000100.safetensors", "step000000010.safetensors"]
        state = states.latest()
        assert state.step == 100
        assert state.metadata == {"sums": {"loss": 0.1 + 0.2}}
        assert torch.equal(state.tensors["model.w"], torch.full((5,), 100.0))
        states.delete_folder()
        assert not (tmp_path / "run.state").exists()

    @pytest.mark.parametrize("damage", [lambda c: c[:-3], lambda c: c[:-1] + bytes([c[-1] ^ 1]), lambda c: b""])
    def test_a_damaged_one_is_reported_and_the_one_before_read(self, tmp_path, damage):
        lines = []
        states = States(tmp_path, SETTINGS, lines.append)
        states.save(5, tensors(5), {})
        path = states.save(10, tensors(10), {})
        path.write_bytes(damage(path.read_bytes()))
        assert states.latest().step == 5
        assert len(lines) == 1
        assert "step000000010.safetensors is " in lines[0]
        assert lines[0].endswith("; resuming from the previous state")
        # It stays on disk, but does not count as the newest and takes no good one's place.
        assert (tmp_path / "damaged-step000000010.safetensors").is_file()
        assert "step000000005.safetensors" in states.describe_latest()
        (first,) = states.paths()
        first.write_bytes(b"x" * 50)
        for _ in range(2):
            with pytest.raises(
                CheckpointError,
                match=r"step000000005.safetensors is damaged, like all states in .*: delete the folder to start over",
            ):
                states.latest()

    def test_those_of_a_finished_run_do_not_keep_other_settings_from_training(self, tmp_path):
        """Its record is written, and it was killed before it could delete its states."""
        first = States(tmp_path, SETTINGS)
        first.save(5, tensors(5), {})
        os.close(first._lock_fd)
        with pytest.raises(CheckpointError, match=r"was saved with seed 3; this run has seed 4"):
            self.of_other_settings(tmp_path, finished_run="another").latest()
        assert self.of_other_settings(tmp_path, finished_run=first.run_id).latest() is None
        assert not list(tmp_path.glob("step*"))

    def of_other_settings(self, folder, finished_run):
        states = States(folder, SETTINGS | {"seed": 4}, finished_run=finished_run)
        os.close(states._lock_fd)
        return states

    def test_a_run_that_resumes_keeps_its_id(self, tmp_path):
        first = States(tmp_path, SETTINGS)
        first.save(5, tensors(5), {})
        os.close(first._lock_fd)
        second = States(tmp_path, SETTINGS, finished_run=first.run_id)
        assert second.run_id != first.run_id
        assert second.latest().step == 5
        assert second.run_id == first.run_id

    def test_other_settings_are_refused_by_name(self, tmp_path):
        first = States(tmp_path, SETTINGS)
        first.save(5, tensors(5), {})
        os.close(first._lock_fd)
        other = States(tmp_path, SETTINGS | {"learning_rate": 0.2, "new": True})
        with pytest.raises(
            CheckpointError,
            match=r"step000000005.safetensors was saved with learning_rate 0.1, new None; this run has learning_rate "
            r"0.2, new True: restore the saved settings to resume, or delete .* to start over",
        ):
            other.latest()

    def test_states_of_another_version_of_the_code_are_set_aside(self, tmp_path):
        first = States(tmp_path, SETTINGS | {"code": "a"})
        first.save(5, tensors(5), {})
        os.close(first._lock_fd)
        lines = []
        second = States(tmp_path, SETTINGS | {"code": "b"}, lines.append)
        assert second.latest() is None
        assert "step000000005.safetensors was saved by another version of the code: it is renamed " in lines[0]
        assert (tmp_path / "other-code-step000000005.safetensors").is_file()
        second.save(3, tensors(3), {})
        assert second.latest().step == 3

    def test_half_written_files_are_deleted(self, tmp_path):
        (tmp_path / ".step000000005.safetensors.123").write_bytes(b"half")
        states = States(tmp_path, SETTINGS)
        assert states.latest() is None
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]

    def test_a_full_disk_leaves_the_state_before(self, tmp_path):
        states = States(tmp_path, SETTINGS)
        states.save(5, tensors(5), {})
        (tmp_path / f".step000000010.safetensors.{os.getpid()}").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"step000000010.safetensors could not be written and any previous file"):
            states.save(10, tensors(10), {})
        assert states.latest().step == 5

    @pytest.mark.parametrize("finished", [False, True])
    def test_a_second_process_waits(self, tmp_path, finished):
        """Also if the first deletes the folder with the lock: the second then locks a new one."""
        states = States(tmp_path / "run.state", SETTINGS)
        code = f"from d3d.train.states import States; States({str(states.folder)!r}, {{}}); print('locked', flush=True)"
        other = subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True)
        assert "another process is training this run" in other.stdout.readline()
        assert other.poll() is None
        if finished:
            states.delete_folder()
        os.close(states._lock_fd)
        assert other.stdout.readline() == "locked\n"
        other.communicate()
        assert (states.folder / "lock").is_file()

    def test_the_check_sum_covers_the_settings(self, tmp_path):
        states = States(tmp_path, SETTINGS)
        path = states.save(5, tensors(5), {})
        content = path.read_bytes()
        path.write_bytes(content.replace(b'seed\\": 3', b'seed\\": 4'))
        assert path.read_bytes() != content
        with pytest.raises(CheckpointError, match="is damaged, like all states"):
            states.latest()
        with safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["about"])["fixed"]["seed"] == 4
