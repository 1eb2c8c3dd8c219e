"""States of a run: complete, verified, pruned, and otherwise refused with a clear message."""

import json
import os
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open

from d3d.s3dg.checkpoints import CheckpointError
from d3d.train.lease import Lease, LeaseError
from d3d.train.states import States

SETTINGS = {"seed": 3, "learning_rate": 0.1}


def tensors(value):
    return {"model.w": torch.full((5,), float(value)), "n": torch.tensor(value)}


@contextmanager
def held(folder, settings=SETTINGS, report=print, **kwargs):
    """States of a folder whose lease is given back after the block."""
    with Lease(folder, report) as lease:
        yield States(lease, settings, report, **kwargs)


class TestStates:
    def test_the_newest_is_read_and_two_are_kept(self, tmp_path):
        with held(tmp_path / "run.state") as states:
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
        with held(tmp_path, report=lines.append) as states:
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
                    match=r"step000000005.safetensors is damaged, like all states in .*: delete the folder to start "
                    "over",
                ):
                    states.latest()

    def test_those_of_a_finished_run_do_not_keep_other_settings_from_training(self, tmp_path):
        """Its record is written, and it was killed before it could delete its states."""
        with held(tmp_path) as first:
            first.save(5, tensors(5), {})
        other = SETTINGS | {"seed": 4}
        with (
            held(tmp_path, other, finished_run="another") as states,
            pytest.raises(CheckpointError, match=r"was saved with seed 3; this run has seed 4"),
        ):
            states.latest()
        with held(tmp_path, other, finished_run=first.run_id) as states:
            assert states.latest() is None
        assert not list(tmp_path.glob("step*"))

    def test_a_run_that_resumes_keeps_its_id(self, tmp_path):
        with held(tmp_path) as first:
            first.save(5, tensors(5), {})
        with held(tmp_path, finished_run=first.run_id) as second:
            assert second.run_id != first.run_id
            assert second.latest().step == 5
            assert second.run_id == first.run_id

    def test_other_settings_are_refused_by_name(self, tmp_path):
        with held(tmp_path) as first:
            first.save(5, tensors(5), {})
        with (
            held(tmp_path, SETTINGS | {"learning_rate": 0.2, "new": True}) as other,
            pytest.raises(
                CheckpointError,
                match=r"step000000005.safetensors was saved with learning_rate 0.1, new None; this run has "
                r"learning_rate 0.2, new True: restore the saved settings to resume, or delete .* to start over",
            ),
        ):
            other.latest()

    def test_states_of_another_version_of_the_code_are_set_aside(self, tmp_path):
        with held(tmp_path, SETTINGS | {"code": "a"}) as first:
            first.save(5, tensors(5), {})
        lines = []
        with held(tmp_path, SETTINGS | {"code": "b"}, lines.append) as second:
            assert second.latest() is None
            assert "step000000005.safetensors was saved by another version of the code: it is renamed " in lines[0]
            assert (tmp_path / "other-code-step000000005.safetensors").is_file()
            second.save(3, tensors(3), {})
            assert second.latest().step == 3

    def test_half_written_files_are_deleted(self, tmp_path):
        (tmp_path / ".step000000005.safetensors.123").write_bytes(b"half")
        with held(tmp_path) as states:
            assert states.latest() is None
            assert [path.name for path in tmp_path.iterdir()] == ["lease-000001"]

    def test_a_full_disk_leaves_the_state_before(self, tmp_path):
        with held(tmp_path) as states:
            states.save(5, tensors(5), {})
            (tmp_path / f".step000000010.safetensors.{os.getpid()}").symlink_to("/dev/full")
            with pytest.raises(OSError, match=r"step000000010.safetensors could not be written and any previous file"):
                states.save(10, tensors(10), {})
            assert states.latest().step == 5

    def test_a_process_that_has_lost_the_folder_writes_and_deletes_nothing(self, tmp_path):
        """Another one has taken it over while this one stood still, even in the middle of writing a state."""
        with held(tmp_path) as states:
            states.save(5, tensors(5), {})
            (tmp_path / "lease-000001").rename(tmp_path / "lease-000002")
            before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
            for write in (
                lambda: states.save(10, tensors(10), {}),
                states.latest,
                states.delete_folder,
                states._delete,
            ):
                with pytest.raises(LeaseError, match="was taken over by process"):
                    write()
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_the_check_sum_covers_the_settings(self, tmp_path):
        with held(tmp_path) as states:
            path = states.save(5, tensors(5), {})
            content = path.read_bytes()
            path.write_bytes(content.replace(b'seed\\": 3', b'seed\\": 4'))
            assert path.read_bytes() != content
            with pytest.raises(CheckpointError, match="is damaged, like all states"):
                states.latest()
            with safe_open(path, "pt") as file:
                assert json.loads(file.metadata()["about"])["fixed"]["seed"] == 4
