"""The lease of a run's folder: one process at a time trains the run, also where several hosts share the folder.

with Lease(folder, report) as lease:      # LeaseError names a process that holds the folder and is alive
    lease.check()                         # before each write: LeaseError if another process has taken the folder over

The holder's file lease-<number> says who it is. A thread of the holder changes the file's time every BEAT seconds; who
wants the folder watches that time and takes over once it has not changed for EXPIRY seconds of the watcher's own clock,
so that the clocks of the hosts need not agree. To take over is to link the next number, which only one process can do.
The holder before, should it only have been stopped, finds its file gone before it writes again. Changing a time needs
no space on the disk, and a lock of the file system (flock) is not needed, since many shared ones have none.
"""

import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from d3d.messages import printable
from d3d.study.attached import has_ended

BEAT, EXPIRY, POLL = 5.0, 30.0, 1.0  # seconds
NAME = re.compile(r"lease-(\d{6})", re.ASCII)
MAX_BYTES = 4096


class LeaseError(RuntimeError):
    """Another process holds the folder of a run, or has taken it over; the message names it."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as its file says.

    Attributes:
        token: of this lease alone.
        host: name of its host.
        machine: identifies the running kernel and the set of process ids: within it, a process id says who is alive.
        pid: its process id.
        born: when the process started, as the kernel counts, since process ids are used again.
        since: when it took the lease, by the clock of its host.
    """

    token: str
    host: str = "an unknown host"
    machine: str = ""
    pid: int = 0
    born: str = ""
    since: str = "an unknown time"

    def __str__(self) -> str:
        return f"process {self.pid} on {printable(self.host)}, since {printable(self.since)}"

    @property
    def is_dead(self) -> bool:
        """Whether the process is known to have ended; one on another host never is."""
        if not self.machine or self.machine != _machine():
            return False
        return has_ended(self.pid) or _born(self.pid) != self.born


class Lease:
    """The right to write into the folder of a run, from entering the context until leaving it.

    Args:
        folder: the folder, created if it does not exist; deleted on leaving if it is empty.
        report: receives a line before it waits for another process.

    Raises:
        LeaseError: on entering, if another process still holds the folder after EXPIRY seconds.
        OSError: on entering, if the folder cannot be written.
    """

    def __init__(self, folder: str | Path, report: Callable[[str], None] = print) -> None:
        self.folder, self.report = Path(folder), report
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        pid = os.getpid()
        self.holder = Holder(secrets.token_hex(8), socket.gethostname(), _machine(), pid, _born(pid), now)
        self.number, self.lost, self.beaten = 0, False, 0.0
        self._ended = threading.Event()

    @property
    def path(self) -> Path:
        """The file of this lease."""
        return self.folder / f"lease-{self.number:06d}"

    def __enter__(self) -> "Lease":
        started = changed = time.monotonic()
        seen, waits, beats = None, False, False
        while not self._take(seen if seen and self._may_take(seen, changed) else None):
            now = time.monotonic()
            state = _read(self.folder)
            if state is not None and state != seen:
                beats = seen is not None and state[:2] == (seen[0], seen[1])
                seen, changed = state, now
            if state is None or self._may_take(state, changed):
                continue
            if beats and now - changed < 2 * BEAT and now - started >= EXPIRY:
                raise LeaseError(
                    f"{printable(self.folder)} belongs to another run of the same command, {state[1]}: let it finish, "
                    "or choose another folder by `results`"
                )
            if not waits:
                waits = True
                self.report(f"{printable(self.folder)} is held by {state[1]}: waiting up to {EXPIRY:g} s for it to end")
            time.sleep(POLL)
        self.beaten = _clock()
        threading.Thread(target=self._beat_until_end, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with suppress(OSError, LeaseError):
            self.check()
            self.path.unlink()
            self.folder.rmdir()

    def check(self) -> None:
        """Raises LeaseError if another process has taken the folder over; call it before each write.

        If the folder cannot be read, the lease counts as held until it expires.
        """
        try:
            is_held = not self.lost and _holder(self.path) == self.holder and not self._next.exists()
        except FileNotFoundError:
            is_held = False
        except OSError:
            is_held = _clock() - self.beaten < EXPIRY
        if not is_held:
            self.lost = True
            successor = _read(self.folder)
            by = f" by {successor[1]}" if successor else ""
            raise LeaseError(
                f"{printable(self.folder)} was taken over{by}, after this process had stood still for {EXPIRY:g} s, or "
                "it was deleted: this process writes nothing more"
            )

    def raise_if_lost(self) -> None:
        """As `check`, but reads the folder only if the last beat is old, as after the process was stopped."""
        if self.lost or _clock() - self.beaten > 2 * BEAT:
            self.check()

    def delete_folder(self) -> None:
        """Deletes the folder with everything in it, the lease last; raises LeaseError as `check`, and OSError."""
        self.check()
        for path in self.folder.iterdir():
            if path != self.path:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._ended.set()
        self.path.unlink()
        with suppress(OSError):  # another process waits for the folder, and has written its name there
            self.folder.rmdir()

    @property
    def _next(self) -> Path:
        return self.folder / f"lease-{self.number + 1:06d}"

    def _may_take(self, state: tuple[int, Holder, int], changed: float) -> bool:
        return state[1].is_dead or time.monotonic() - changed >= EXPIRY

    def _take(self, expired: tuple[int, Holder, int] | None) -> bool:
        """Links the first number, or the one after an expired lease; whether this process was the one to do so."""
        if _read(self.folder) != expired:  # this process may have stood still since it looked
            return False
        self.number = expired[0] + 1 if expired else 1
        self.folder.mkdir(parents=True, exist_ok=True)
        written = self.folder / f".lease.{self.holder.token}"
        try:
            written.write_text(json.dumps(asdict(self.holder)))
            os.link(written, self.path)  # fails if there is such a file
            numbers = _leases(self.folder)
            if numbers[-1][0] != self.number:  # others have taken it over in turn meanwhile
                self.path.unlink()
                return False
            for _, path in numbers[:-1]:
                path.unlink(missing_ok=True)
        except (FileExistsError, FileNotFoundError):  # another process was first, or has deleted the folder
            return False
        except OSError as error:
            reason = f"{printable(self.folder)} cannot be taken for this run: {error.strerror}"
            raise OSError(error.errno, reason) from None
        finally:
            with suppress(OSError):
                written.unlink()
        return True

    def _beat_until_end(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self.check()
                os.utime(self.path)
                self.beaten = _clock()
            except (LeaseError, FileNotFoundError):
                return
            except OSError:  # tried again; meanwhile the lease grows old
                pass


def _leases(folder: Path) -> list[tuple[int, Path]]:
    """The numbers and files of leases in a folder, in order."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted((int(match[1]), folder / name) for name in names if (match := NAME.fullmatch(name)))


def _read(folder: Path) -> tuple[int, Holder, int] | None:
    """The number, the holder and the time of the last beat of a folder's latest lease; None without one."""
    for number, path in reversed(_leases(folder)):
        # A shared file system may answer from memory, unless the file is opened.
        with suppress(FileNotFoundError), open(path, "rb") as file:
            return number, _parse(file.read(MAX_BYTES)), os.fstat(file.fileno()).st_mtime_ns
    return None


def _holder(path: Path) -> Holder:
    with open(path, "rb") as file:
        return _parse(file.read(MAX_BYTES))


def _parse(content: bytes) -> Holder:
    """The holder that a file names; an unknown one, which is alive while the file's time changes, if it is no lease."""
    try:
        values = json.loads(content)
        return Holder(**{name: kind(values[name]) for name, kind in Holder.__annotations__.items()})
    except (ValueError, KeyError, TypeError, RecursionError):
        return Holder(token=content[:100].hex())


def _clock() -> float:
    """Seconds of a clock that also counts while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _machine() -> str:
    """Identifies the running kernel and the set of process ids; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty if there is none, or the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
