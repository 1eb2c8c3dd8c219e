"""Files: full disks, folders that cannot be used, and messages about them."""

import errno
import os
from pathlib import Path

import pytest

from d3d import files
from d3d.files import check_folder, check_writable, write_atomic
from d3d.messages import one_line


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


def test_a_message_is_one_printable_line_of_bounded_length():
    assert one_line("a sentence, as it is: é") == "a sentence, as it is: é"
    assert one_line("a\nb\x1b[31m\t") == "a\\nb\\x1b[31m\\t"
    line = one_line(ValueError(f"begins {'x' * 2**20} ends"))
    assert len(line) < 610
    assert line.startswith("begins xx")
    assert line.endswith("xx ends")


def test_a_missing_folder_a_folder_and_a_link_to_one_can_be_used(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "new/er", tmp_path / "link", tmp_path / "link/new"):
        check_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("below", [".", "a", "a/b"])
def test_a_file_or_a_broken_link_in_place_of_a_folder_is_named(tmp_path, below):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name, kind in {"file": "a file", "link": "a link to nothing"}.items():
        path = tmp_path / name / below
        with pytest.raises(NotADirectoryError, match=f"/{name} is {kind}, but it must be a folder"):
            check_folder(path)
        with pytest.raises(OSError, match=f"results cannot be written to .*/{name} is {kind}"):
            check_writable(path)
        with pytest.raises(OSError, match="x could not be written and any previous file is untouched"):
            write_atomic({path / "x": b""})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
