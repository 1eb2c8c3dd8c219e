"""What the processes of a team divide among themselves."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from d3d.train.team import SINGLE_PROCESS, Team


def together(monkeypatch, lists):
    """Calls `share` in one thread per list, as the processes of a team would; returns what each gets, and looked at."""
    barrier, values = Barrier(len(lists)), {}

    def all_gather(team, value):
        values[team.rank] = value
        barrier.wait(timeout=20)
        return [values[rank] for rank in range(team.size)]

    monkeypatch.setattr(Team, "all_gather", all_gather)

    def member(rank):
        looked_at = []
        results = Team(rank=rank, size=len(lists)).share(
            lambda names: looked_at.extend(names) or dict.fromkeys(names, rank), lists[rank]
        )
        return results, looked_at

    with ThreadPoolExecutor(len(lists)) as pool:
        return [future.result() for future in [pool.submit(member, rank) for rank in range(len(lists))]]


def test_a_search_is_divided_and_every_process_gets_all_of_it(monkeypatch):
    first, second = together(monkeypatch, [["a", "b", "c"]] * 2)
    assert first[0] == second[0] == {"a": 0, "c": 0, "b": 1}
    assert (first[1], second[1]) == (["a", "c"], ["b"])


def test_processes_that_see_other_files_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="do not see the same files: every host needs the same data set, at one path"):
        together(monkeypatch, [["a", "b"], ["a", "\udcff"]])


def test_one_process_looks_at_everything():
    assert SINGLE_PROCESS.share(lambda names: dict.fromkeys(names, 1), ["a", "b"]) == {"a": 1, "b": 1}
