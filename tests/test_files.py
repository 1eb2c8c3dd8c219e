"""Writing files where the disk is full."""

import errno
import os
from pathlib import Path

import pytest

from d3d import files


def test_results_are_written_once_there_is_space(monkeypatch):
    lines, waits, attempts = [], [], []
    monkeypatch.setattr(files.time, "sleep", waits.append)

    def write():
        attempts.append(len(attempts))
        if len(attempts) < 4:
            raise OSError(errno.ENOSPC, "a.json could not be written: No space left on device")
        return "a.json"

    assert files.write_patiently(write, lines.append) == "a.json"
    assert waits == [files.RETRY_EVERY] * 3
    assert lines[0] == (
        "a.json could not be written: No space left on device; the results are kept in memory and writing is tried "
        "again every 10 s: free space on that disk, or make the folder writable"
    )
    assert len(lines) == 2
    assert lines[1].startswith("the results are written, after ")


def test_the_wait_for_space_is_reported_again_after_ten_minutes(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr(files.time, "sleep", lambda seconds: now.append(now[-1] + seconds))
    monkeypatch.setattr(files.time, "monotonic", lambda: now[-1])

    def write():
        if now[-1] < 1500:
            raise OSError(errno.EROFS, "a.json could not be written: Read-only file system")

    files.write_patiently(write, lines.append)
    assert len([line for line in lines if "Read-only" in line]) == 3
    assert lines[-1] == "the results are written, after 1500 s of waiting"


def test_other_errors_are_not_waited_for():
    def write():
        raise ValueError("metric 'iid/top1' is nan")

    with pytest.raises(ValueError, match="nan"):
        files.write_patiently(write, print)


def test_a_full_disk_is_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "TemporaryFile", lambda dir: Path("/dev/full").open("wb", 0))  # noqa: SIM115
    with pytest.raises(OSError, match=f"results cannot be written to {tmp_path}: {os.strerror(errno.ENOSPC)}"):
        files.check_writable(tmp_path)
