"""Who watches a peer learns of its end, its silence and its goodbye, whatever else happens."""

import os
import socket
import threading
import time
from contextlib import suppress
from typing import ClassVar

import pytest

from d3d.train import peers
from d3d.train.peers import Peer, PeerLostError, Watch, watch_peers
from d3d.train.team import Team

ENDS = "process 1 on hostb has ended, and its output may say why; run the same command again on every host to resume"
SILENT = "process 1 on hostb is lost: it has sent nothing for 0.5 s; run the same command again on every host to resume"


@pytest.fixture
def exits(monkeypatch):
    """A watch that is over fifty times as fast, and the exit statuses of the process that it would have ended."""
    for name, seconds in (("BEAT", 0.05), ("LOST", 0.5), ("GRACE", 0.3)):
        monkeypatch.setattr(peers, name, seconds)
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(peers, "end_torchrun", lambda: statuses.append("torchrun"))
    return statuses


@pytest.fixture
def pair():
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def watch(here):
    return Watch({here: Peer("process 1 on hostb", time.monotonic())})


def test_a_peer_that_ends_ends_this_process_after_a_moment(exits, pair, capsys):
    here, there = pair
    watching = watch(here)
    assert there.recv(1) == b"."
    there.close()
    watching.thread.join()
    assert exits == ["torchrun", 1]
    assert capsys.readouterr().err == f"d3d train: {ENDS}\n"


def test_a_peer_that_is_silent_is_lost(exits, pair, capsys):
    here, there = pair
    for _ in range(10):
        there.send(b".")
    began = time.monotonic()
    watching = watch(here)
    watching.thread.join()
    assert time.monotonic() - began > 0.5
    assert exits == ["torchrun", 1]
    assert capsys.readouterr().err == f"d3d train: {SILENT}\n"


def test_a_peer_that_says_goodbye_may_end(exits, pair):
    here, there = pair
    watching = watch(here)
    there.send(b"..!")
    there.close()
    watching.thread.join()
    watching.end(goodbye=True)
    assert not exits
    assert not watching.lost.is_set()


def test_both_ends_stay_while_both_live(exits, pair):
    here, there = pair
    watching = [watch(here), watch(there)]
    time.sleep(1.2)
    for one in watching:
        one.end(goodbye=True)
    assert not exits
    assert not any(one.lost.is_set() for one in watching)


class Connected(Team):
    """A process of a team of two hosts on this machine, whose broadcasts go through a list."""

    messages: ClassVar[list] = []
    is_there: ClassVar[threading.Event] = threading.Event()

    def broadcast(self, value):
        if self.is_main:
            self.messages[:] = [value]
            self.is_there.set()
        assert self.is_there.wait(10)
        return self.messages[0]


def join(rank, work):
    with watch_peers(Connected(rank, 2, 1)):
        work()


def test_an_error_that_the_other_s_end_caused_is_replaced_by_its_name(exits, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setattr(peers, "GRACE", 30.0)
    Connected.is_there.clear()

    def fail():
        raise RuntimeError("Connection closed by peer")

    def fail_first():
        raise KeyError("of the other")

    def run_other():
        with suppress(KeyError):
            join(1, fail_first)

    other = threading.Thread(target=run_other)
    other.start()
    with pytest.raises(PeerLostError, match=r"process 1 on .* has ended, and its output may say why"):
        join(0, fail)
    other.join()
    assert not exits


def test_an_error_of_its_own_stays(exits, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    Connected.is_there.clear()
    other = threading.Thread(target=join, args=(1, lambda: None))
    other.start()

    def fail():
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        join(0, fail)
    other.join()
    assert not exits


def test_a_stranger_is_turned_away(exits):
    with socket.create_server(("localhost", 0)) as server:

        def connect(greeting):
            with socket.create_connection(server.getsockname()) as connection:
                connection.sendall(greeting)
                done.wait(10)

        done = threading.Event()
        threads = [
            threading.Thread(target=connect, args=(greeting,))
            for greeting in (b"GET / HTTP/1.1\n", b"wrong 1 hostb\n", b"\xff\n", b"token 3 hostc\n")
        ]
        for thread in threads:
            thread.start()
        accepted = peers._accept(server, "token", 1)
        done.set()
        for thread in threads:
            thread.join()
    assert [peer.name for peer in accepted.values()] == ["process 3 on hostc"]
    for connection in accepted:
        connection.close()


def test_one_host_needs_no_watch():
    before = threading.active_count()
    with watch_peers(Team(0, 2, 2)):
        assert threading.active_count() == before
