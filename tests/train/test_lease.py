"""The lease of a run's folder: one holder at a time, whoever is killed, stopped, slow or wrong about the time."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from d3d.train import lease
from d3d.train.lease import Lease, LeaseError

HOLD = """
import sys, time
from d3d.train.lease import Lease
with Lease(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def _quick(monkeypatch):
    """A lease that is over fifty times as fast."""
    for name, seconds in (("BEAT", 0.04), ("EXPIRY", 0.5), ("POLL", 0.01)):
        monkeypatch.setattr(lease, name, seconds)


def hold(folder):
    """A process that holds a folder, at the usual speed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def leave(folder, number=1, **changes):
    """Writes the lease of a process on another host."""
    with Lease(folder.with_name("elsewhere")) as template:
        holder = replace(template.holder, host="hostb", machine="another", pid=77, since="2026-01-02 03:04:05 UTC")
    path = folder / f"lease-{number:06d}"
    folder.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(holder) | changes))
    return path


def test_the_folder_is_there_while_it_is_held(tmp_path):
    folder = tmp_path / "run.state"
    with Lease(folder) as current:
        current.check()
        assert [path.name for path in folder.iterdir()] == ["lease-000001"]
        content = json.loads(current.path.read_text())
        assert content["pid"] == os.getpid()
        assert content["since"].endswith(" UTC")
    assert not folder.exists()
    with Lease(folder):
        (folder / "state").touch()
    assert [path.name for path in folder.iterdir()] == ["state"]


def test_a_killed_holder_of_this_host_is_followed_at_once(tmp_path):
    process = hold(tmp_path)
    process.kill()
    process.communicate()
    lines = []
    with Lease(tmp_path, lines.append) as current:
        assert current.number == 2
        assert [path.name for path in tmp_path.iterdir()] == ["lease-000002"]
    assert not lines


def test_a_process_id_that_is_used_again_is_no_holder(tmp_path):
    leave(tmp_path, machine=lease._machine(), pid=os.getpid(), born="1")
    with Lease(tmp_path) as current:
        assert current.number == 2


@pytest.mark.usefixtures("_quick")
def test_a_holder_that_is_alive_refuses_others_by_name(tmp_path):
    lines = []
    with Lease(tmp_path) as first, pytest.raises(LeaseError) as refused, Lease(tmp_path, lines.append):
        pass
    holder = f"process {os.getpid()} on {first.holder.host}, since {first.holder.since}"
    assert str(refused.value) == (
        f"{tmp_path} belongs to another run of the same command, {holder}: let it finish, or choose another folder by "
        "`results`"
    )
    assert lines == [f"{tmp_path} is held by {holder}: waiting up to 0.5 s for it to end"]


@pytest.mark.usefixtures("_quick")
def test_who_waits_gets_the_folder_when_it_is_given_back(tmp_path):
    folder, waits = tmp_path / "run.state", threading.Event()
    taken = []

    def wait():
        with Lease(folder, lambda line: waits.set()) as current:
            taken.append(current.number)

    with Lease(folder) as first:
        second = threading.Thread(target=wait)
        second.start()
        assert waits.wait(10)
        first.delete_folder()
    second.join()
    assert taken == [1]


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("hours", [-1000, 0, 1000])
def test_a_holder_on_another_host_is_followed_when_its_lease_expires(tmp_path, hours):
    """Whatever the other host's clock says; no clocks are compared."""
    path = leave(tmp_path)
    os.utime(path, (time.time() + 3600 * hours,) * 2)
    lines, began = [], time.monotonic()
    with Lease(tmp_path, lines.append) as current:
        assert current.number == 2
        assert time.monotonic() - began >= 0.5
    assert lines == [f"{tmp_path} is held by process 77 on hostb, since 2026-01-02 03:04:05 UTC: waiting up to 0.5 s "
                     "for it to end"]  # fmt: skip


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("content", [b"", b'{"token": 1}', b"\xff" * 10_000])
def test_a_lease_that_cannot_be_read_expires_too(tmp_path, content):
    leave(tmp_path).write_bytes(content)
    lines = []
    with Lease(tmp_path, lines.append) as current:
        assert current.number == 2
    assert "process 0 on an unknown host, since an unknown time" in lines[0]


@pytest.mark.usefixtures("_quick")
@pytest.mark.slow
def test_of_many_that_follow_one_gets_the_folder(tmp_path):
    leave(tmp_path)
    holders, refused = [], []
    inside = threading.Lock()

    def follow():
        try:
            with Lease(tmp_path, lambda line: None) as current:
                assert inside.acquire(blocking=False)
                holders.append(current.number)
                time.sleep(1)
                current.check()
                inside.release()
        except LeaseError:
            refused.append(1)

    threads = [threading.Thread(target=follow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert holders[0] == 2
    assert len(holders) + len(refused) == 8


@pytest.mark.usefixtures("_quick")
def test_a_holder_that_stood_still_notices_before_it_writes(tmp_path, monkeypatch):
    with Lease(tmp_path) as first:
        monkeypatch.setattr(first, "_beat_until_end", lambda: None)
        first._ended.set()  # its thread stands still, as the whole process would
        # The folder is another's after 0.5 s; the first one's process is alive, but does not beat.
        with Lease(tmp_path, lambda line: None) as second:
            second.check()
            for check in (first.check, first.raise_if_lost):
                with pytest.raises(LeaseError) as lost:
                    check()
                assert str(lost.value) == (
                    f"{tmp_path} was taken over by process {os.getpid()} on {second.holder.host}, since "
                    f"{second.holder.since}, after this process had stood still for 0.5 s, or it was deleted: this "
                    "process writes nothing more"
                )
            second.check()
    # Leaving the first one deletes nothing of the next holder.
    leave(tmp_path)
    first.__exit__()
    assert (tmp_path / "lease-000001").exists()


@pytest.mark.usefixtures("_quick")
def test_a_beat_needs_no_space_and_revives_no_lease(tmp_path):
    with Lease(tmp_path) as current:
        before = current.path.stat()
        time.sleep(0.2)
        after = current.path.stat()
        assert after.st_mtime_ns > before.st_mtime_ns
        assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
        current.path.unlink()
        time.sleep(0.2)
        assert not list(tmp_path.iterdir())
        with pytest.raises(LeaseError):
            current.raise_if_lost()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=rf"{tmp_path} cannot be taken for this run: No space left"), Lease(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_read_for_a_moment_is_not_lost(tmp_path, monkeypatch):
    with Lease(tmp_path) as current:

        def broken(path):
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(lease, "_holder", broken)
            current.check()
            current.beaten -= lease.EXPIRY
            with pytest.raises(LeaseError):
                current.check()
