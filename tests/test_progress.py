import json

import pytest

from d3d.progress import MetricsFile, Progress, duration, read_metrics


def test_rows_come_back_with_their_time(tmp_path):
    table = MetricsFile(tmp_path / "a.jsonl")
    table.append({"step": 1, "loss": 0.1 + 0.2})
    (row,) = read_metrics(table.path)
    assert row.pop("time") > 1e9
    assert row == {"step": 1, "loss": 0.1 + 0.2}
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_row_that_is_being_written_is_left_for_later(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]


def test_going_on_drops_what_was_not_reached_and_what_was_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"event": "start"}, {"step": 5}, {"step": 10}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1')
    table = MetricsFile(path, keep=5)
    table.append({"step": 6})
    assert [row.get("step") for row in read_metrics(path)] == [None, 5, 6]
    assert MetricsFile(path).path.read_text() == ""


def test_a_disk_that_takes_no_row_is_named(tmp_path):
    table = MetricsFile(tmp_path / "a.jsonl")
    table.path.unlink()
    table.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"a.jsonl cannot be written: No space left"):
        table.append({"step": 1})


def test_lines_in_a_log(monkeypatch):
    told = []
    monkeypatch.setattr("d3d.progress.EVERY", 0.0)
    with Progress(3, "steps", told.append) as progress:
        progress.step(clips=8)
        progress.say("epoch 1")
    assert told[0].startswith("1 of 3 steps, ")
    assert "clips/s, " in told[0]
    assert told[1] == "epoch 1"
    assert (duration(95), duration(600), duration(11100)) == ("95 s", "10 min", "3 h 5 min")
