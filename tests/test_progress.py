import json

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


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    file = MetricsFile(tmp_path / "a.jsonl")
    file.path.unlink()
    file.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"a.jsonl cannot be written: No space left"):
        file.append({"step": 1})


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
