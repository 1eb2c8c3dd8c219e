"""Snakemake's output, shortened: one line per finished notebook, with the time left."""

import pytest

from d3d.study import records
from d3d.study.follow import Timing, follow
from d3d.study.records import Record
from tests.study.test_records import PROVENANCE

COUNTS = """Assuming unrestricted shared filesystem usage.
Building DAG of jobs...
Job stats:
job        count
-------  -------
book           1
chapter        2
train          4
study          1
total          8

Select jobs to execute...
Execute 2 jobs...
""".splitlines(keepends=True)


@pytest.fixture
def finished(tmp_path):
    """The line with which a job of training ends."""

    def line(seed, seconds):
        record = Record("train", "rgb", seed, {}, {"iid/top1": 0.625}, True, PROVENANCE | {"seconds": float(seconds)})
        return f"finished {records.write(tmp_path, record)} {seconds}\n"

    return line


def ticking(*times):
    """A clock that gives these times in turn."""
    return iter(times).__next__


def test_a_finished_run_is_one_line_with_its_metric_and_the_time_left(finished):
    # Two runs of 40 s each in 40 s: two at once. Left: 2 x 40 s of training, 2 chapters and the book, which typically
    # take .4 and 2.25 times as long as a run of training: 80 + 32 + 90 = 202 s of work, two at once.
    lines = [*COUNTS, finished(0, 40), finished(1, 40)]
    first, second = follow(lines, clock=ticking(0.0, 40.0, 40.0))
    assert first.split()[:3] == ["1/7", "train", "rgb-seed0"]
    assert "iid/top1 0.625" in first
    assert second.endswith("40.0 s; about 101 s left")


def test_what_a_rule_took_replaces_what_it_typically_takes():
    timing = Timing(0.0)
    timing.remaining.update({"train": 2, "probe": 2})
    timing.finish("train", 10.0)
    timing.finish("probe", 100.0)
    assert timing.left(110.0) == pytest.approx(110.0)


def test_the_last_job_has_nothing_left(finished):
    *_, last = follow([*COUNTS, *(finished(seed, 5) for seed in range(7))], clock=ticking(*range(0, 80, 5)))
    assert last.startswith("  7/7 ")
    assert "left" not in last


def test_what_failed_is_passed_on_and_progress_is_not():
    lines = [*COUNTS, "RuntimeError: no space\n", "failed: a.ipynb and a.log show where\n", "3 of 8 steps (38%) done\n"]
    assert list(follow(lines)) == ["RuntimeError: no space", "failed: a.ipynb and a.log show where"]


def test_a_chapter_and_the_book_are_named(tmp_path):
    lines = [*COUNTS, "finished book/chapters/data.ipynb 12\n", "finished book/_build/html/index.html 48\n"]
    chapter, book = follow(lines, clock=ticking(0.0, 12.0, 60.0))
    assert chapter.split()[1:5] == ["chapter", "data", "12.0", "s;"]
    assert book.split()[:3] == ["2/7", "book", "index"]


def test_a_comparison_is_shown_when_it_is_made(tmp_path):
    path = tmp_path / "mine/comparison.md"
    path.parent.mkdir()
    path.write_text("| network | top-1 |")
    line, table = follow([f"finished {path} 2\n"], clock=ticking(0.0, 2.0))
    assert line.split()[1] == "comparison"
    assert table == "\n| network | top-1 |"
