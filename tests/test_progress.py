import json
import resource
import signal
import subprocess
import sys

import pytest

from d3d.progress import MetricsFile, Progress, format_duration, read_metrics


def test_read_metrics_returns_appended_rows_with_their_time(tmp_path):
    file = MetricsFile(tmp_path / "a.jsonl")
    file.append({"step": 1, "loss": 0.1 + 0.2})
    (row,) = read_metrics(file.path)
    assert row.pop("time") > 1e9
    assert row == {"step": 1, "loss": 0.1 + 0.2}
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_an_incomplete_row_is_not_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]


def test_resuming_drops_later_steps_and_an_incomplete_row(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"event": "start"}, {"step": 5}, {"step": 10}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1')
    file = MetricsFile(path, last_step=5)
    file.append({"step": 6})
    assert [row.get("step") for row in read_metrics(path)] == [None, 5, 6]
    assert MetricsFile(path).path.read_text() == ""


def test_rows_that_a_full_disk_does_not_take_are_left_out_with_one_warning(tmp_path):
    lines = []
    file = MetricsFile(tmp_path / "a.jsonl", report=lines.append)
    file.path.unlink()
    file.path.symlink_to("/dev/full")
    for step in (1, 2):
        file.append({"step": step})
    assert lines == [f"{file.path} cannot be written: No space left on device; work continues without its rows"]
    file.path.unlink()
    file.append({"step": 3})
    assert lines[1:] == [f"{file.path} is written again, without 2 rows"]
    assert [row["step"] for row in read_metrics(file.path)] == [3]


def test_a_row_that_fits_in_part_leaves_no_part(tmp_path):
    """A limit of the file's size stands for a disk that takes the first bytes of a row."""
    file = MetricsFile(tmp_path / "a.jsonl", report=lambda line: None)
    file.append({"step": 1})
    size = file.path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    file.append({"step": 2})
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.path.stat().st_size == size
    file.append({"step": 3})
    assert [row["step"] for row in read_metrics(file.path)] == [1, 3]


@pytest.mark.parametrize("output", ["/dev/full", "closed"])
def test_a_log_that_cannot_be_written_does_not_change_the_exit_status(output):
    code = (
        "from d3d.progress import close_output, print_line\nfor _ in range(9999): print_line('x' * 99)\nclose_output()"
    )
    if output == "closed":  # the reader of a pipe is gone: SIGTERM, as for any program
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        process.stdout.close()
        assert process.wait() == -signal.SIGTERM
        return
    with open(output, "w") as full:
        process = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full, check=False)
    assert process.returncode == 0


def test_progress_reports_lines_in_a_log(monkeypatch):
    lines = []
    monkeypatch.setattr("d3d.progress.LOG_INTERVAL", 0.0)
    with Progress(3, "steps", lines.append) as progress:
        progress.update(clips=8)
        progress.log("epoch 1")
    assert lines[0].startswith("1 of 3 steps, ")
    assert "clips/s, " in lines[0]
    assert lines[1] == "epoch 1"
    assert (format_duration(95), format_duration(600), format_duration(11100)) == ("95 s", "10 min", "3 h 5 min")
