"""Notices within half a minute that another host of the team is lost, even one that is cut off without a word.

with watch_peers(team):      # in all processes; raises PeerLostError, or ends this process with its sentence

Collectives would wait for ten minutes, and NCCL would then abort the process. So every process but the first keeps a
connection to the first, over which both send a byte every BEAT seconds. On one host torchrun notices by itself.
"""

import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from torch import distributed

from d3d.messages import printable
from d3d.train.team import Team

BEAT, LOST = 5.0, 30.0  # seconds
# Seconds for the process to end with an error of its own, before it is ended.
GRACE = 5.0
ALIVE, GOODBYE = b".", b"!"


class PeerLostError(RuntimeError):
    """A process of the team, or its whole host, is gone; the message names it."""


@dataclass
class Peer:
    """The other end of a connection.

    Attributes:
        name: rank and host, for messages.
        heard: when it last sent something, by this process's clock.
    """

    name: str
    heard: float


class Watch:
    """A thread that watches this process's connections.

    Args:
        peers: each connection with its other end.
    """

    def __init__(self, peers: dict[socket.socket, Peer]) -> None:
        self.peers, self.reason = peers, ""
        self.lost, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def end(self, *, goodbye: bool) -> None:
        """Stops watching and closes the connections, which tells the others that this process has failed.

        Args:
            goodbye: whether it has not.
        """
        self.ended.set()
        self.thread.join()
        for connection in self.peers:
            with suppress(OSError):
                if goodbye:
                    connection.send(GOODBYE)
            connection.close()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection in self.peers:
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ)
            next_beat = 0.0
            while not self.ended.is_set() and not self.lost.is_set() and selector.get_map():
                now = time.monotonic()
                if now >= next_beat:
                    next_beat = now + BEAT
                    self._send_beats([key.fileobj for key in selector.get_map().values()])
                for key, _ in selector.select(min(0.5, next_beat - now)):
                    self._receive(key.fileobj, selector)
                for key in list(selector.get_map().values()):
                    peer = self.peers[key.fileobj]
                    if time.monotonic() - peer.heard > LOST:
                        self._lose(f"{peer.name} is lost: it has sent nothing for {LOST:g} s")
        if self.lost.is_set() and not self.ended.wait(GRACE):
            with suppress(OSError):
                print(f"d3d train: {self.reason}", file=sys.stderr, flush=True)
            end_torchrun()
            os._exit(1)

    def _send_beats(self, connections: list[socket.socket]) -> None:
        for connection in connections:
            with suppress(OSError):  # what was sent before may wait for a host that is cut off
                connection.send(ALIVE)

    def _receive(self, connection: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            data = connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if GOODBYE in data:
            selector.unregister(connection)
        elif data:
            self.peers[connection].heard = time.monotonic()
        else:
            self._lose(f"{self.peers[connection].name} has ended, and its output may say why")

    def _lose(self, what: str) -> None:
        self.reason = f"{what}; run the same command again on every host to resume"
        self.lost.set()


def end_torchrun() -> None:
    """Kills the torchrun that started this process, and with it the run's other processes on this host.

    Without the other host it could wait for its rendezvous forever, in a call that notices no SIGTERM.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with suppress(OSError):
            os.kill(os.getppid(), signal.SIGKILL)


@contextmanager
def watch_peers(team: Team) -> Iterator[None]:
    """Watches the other hosts' processes during the block; does nothing in a team of one host.

    Raises:
        PeerLostError: instead of an error of a collective that another process's end has caused.
        OSError: if the processes cannot reach each other.
    """
    if team.size == team.local_size:
        yield
        return
    watch, finished = Watch(_connect(team)), False
    try:
        yield
        finished = True
    except RuntimeError as error:
        of_collective = type(error) is RuntimeError or isinstance(error, distributed.DistError)
        if of_collective and watch.lost.wait(GRACE):
            raise PeerLostError(watch.reason) from error
        raise
    finally:
        watch.end(goodbye=finished)


def _connect(team: Team) -> dict[socket.socket, Peer]:
    """Connects the first process with each of the others; returns this process's connections."""
    host = socket.gethostname()
    if not team.is_main:
        port, token, main_host = team.broadcast(None)
        address = os.environ["MASTER_ADDR"]
        try:
            connection = socket.create_connection((address, port), timeout=LOST)
            connection.sendall(f"{token} {team.rank} {host}\n".encode())
        except OSError as error:
            reason = f"port {port} of {printable(address)} cannot be reached from {host}: {error.strerror or error}"
            raise OSError(error.errno, f"{reason}; hosts of one run need all ports of each other") from None
        return {connection: Peer(f"process 0 on {printable(main_host)}", time.monotonic())}
    dual_stack = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=dual_stack, backlog=team.size) as server:
        token = secrets.token_hex(16)
        team.broadcast((server.getsockname()[1], token, host))
        return _accept(server, token, team.size - 1)


def _accept(server: socket.socket, token: str, count: int) -> dict[socket.socket, Peer]:
    peers: dict[socket.socket, Peer] = {}
    server.settimeout(LOST)
    while len(peers) < count:
        try:
            connection, _ = server.accept()
            connection.settimeout(LOST)
            with connection.makefile("rb") as greeting:
                sent_token, rank, host = greeting.readline(1000).decode(errors="replace").split()
        except ValueError:
            connection.close()
            continue
        except OSError as error:
            raise OSError(error.errno, f"{count - len(peers)} of {count} processes did not connect") from None
        if secrets.compare_digest(sent_token, token):
            peers[connection] = Peer(f"process {printable(rank)} on {printable(host)}", time.monotonic())
        else:
            connection.close()
    return peers
