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


def about(number, path, *, error=False):
    """What Snakemake says about a job on a cluster."""
    lines = ["[Sat Nov 28 18:59:01 2026]", "Error in rule train:" if error else "rule train:"]
    if error:
        lines += ["    message: None", f"    jobid: {number}", f"    output: {path}, {path}.npz"]
        lines += [
            "    log: logs/7.log (check log file(s) for error details)",
            "    shell:",
            "        mkdir -p x; exit 1",
        ]
        lines += ["        (command exited with non-zero exit code)", "    external_jobid: 7"]
    else:
        lines += ["    input: stamp", f"    output: {path}, {path}.npz", f"    jobid: {number}", "    threads: 2"]
        lines += ["    resources: mem_mb=16000, nodes=1"]
    return [f"{line}\n" for line in lines]


def test_jobs_elsewhere_are_shown_like_those_of_this_machine(tmp_path):
    record = Record("train", "rgb", 0, {}, {"iid/top1": 0.625}, True, PROVENANCE | {"seconds": 40.0})
    path = records.write(tmp_path, record)
    start = [
        "SLURM run ID: d3d_1\n",
        *COUNTS,
        *about(3, path),
        "Job 3 has been submitted with SLURM jobid 7 (log: x).\n",
    ]
    failure = [*about(3, path, error=True), "Trying to restart job 3.\n", *about(3, path)]
    end = ["Finished jobid: 3 (Rule: train)\n", "Finished jobid: 0 (Rule: study)\n", *about(0, "localrule study:")]
    lines = list(follow([*start, *failure, *end], clock=ticking(0.0, 40.0)))
    assert lines[:2] == [f"failed: {path} (job 7), see logs/7.log", f"starting {path} again"]
    assert len(lines) == 3
    assert "iid/top1 0.625" in lines[2]
    assert " 40.0 s; about " in lines[2]


def test_a_failure_at_the_end_is_shown(tmp_path):
    assert list(follow(about(3, "a.json", error=True))) == ["failed: a.json (job 7), see logs/7.log"]
