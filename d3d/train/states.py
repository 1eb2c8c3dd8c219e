"""How far a run has come, on disk: whole, or refused by name.

states = States(folder, fixed={"seed": 3})
states.save(step, tensors, about)                # the last two are kept
found = states.latest()                          # the newest that is whole; None where there is none
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from d3d.files import write_atomic
from d3d.s3dg.checkpoints import CheckpointError, read_safetensors, to_safetensors

STATE = "d3d-state-1"  # the format
KEPT = 2
CODE = "code"  # the fact that tells which modules a run is made by


@dataclass(frozen=True)
class State:
    """How far a run had come after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    about: dict[str, Any]


class States:
    """The last states of one run, in a folder that one process holds at a time.

    fixed: the facts that must be the same for a run to be gone on with. Raises OSError where the folder cannot be
    written.
    """

    def __init__(self, folder: str | Path, fixed: Mapping[str, Any], report: Callable[[str], None] = print) -> None:
        self.folder, self.report = Path(folder), report
        self.fixed = json.loads(json.dumps(dict(fixed)))
        self._held = self._lock()
        for left in self.folder.glob(".*"):  # half-written when a process was killed
            left.unlink()

    def _lock(self) -> int:
        """Waits for the folder, and again where who held it has deleted it since."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.report(f"another process is at this run ({self.folder}): waiting for it to end")
                fcntl.flock(held, fcntl.LOCK_EX)
            if os.fstat(held).st_nlink:
                return held
            os.close(held)

    def paths(self) -> list[Path]:
        """The files, the newest first."""
        return sorted(self.folder.glob("step*.safetensors"), reverse=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
        """Writes a state, then deletes all but the last two. Raises OSError where the disk does not take it."""
        path = self.folder / f"step{step:09d}.safetensors"
        about = {"step": step, "fixed": self.fixed, "about": dict(about)}
        write_atomic({path: to_safetensors(STATE, tensors, about)})
        for old in self.paths()[KEPT:]:
            old.unlink()
        return path

    def latest(self) -> State | None:
        """The newest state that is whole, on the facts of this run.

        A damaged one is reported and the one before it taken; those of other code are reported and set aside.

        Raises CheckpointError where all are damaged, or one is of a run with other facts, naming those that differ.
        """
        damaged = []
        for path in self.paths():
            try:
                about, tensors = read_safetensors(path, STATE)
            except CheckpointError as error:
                damaged.append((path, error))
                continue
            was = about["fixed"]
            if was.get(CODE) != self.fixed.get(CODE):
                self._set_aside(path)
                return None
            if other := [name for name in self.fixed | was if was.get(name) != self.fixed.get(name)]:
                raise CheckpointError(
                    f"{path} was saved with "
                    + ", ".join(f"{name} {was.get(name)!r}" for name in other)
                    + "; this run has "
                    + ", ".join(f"{name} {self.fixed.get(name)!r}" for name in other)
                    + f": give what it had to go on, or delete {self.folder} to start anew"
                )
            for newer, error in damaged:
                self.report(f"{error}; going on from the state before it")
                newer.rename(newer.with_name(f"damaged-{newer.name}"))
            return State(about["step"], tensors, about["about"])
        if damaged:
            raise CheckpointError(f"{damaged[0][0]} is damaged, as all in {self.folder}: delete it to start anew")
        return None

    def _set_aside(self, path: Path) -> None:
        """What other code computed this one cannot go on with; it is kept until the run is finished."""
        for old in self.paths():
            old.rename(old.with_name(f"other-code-{old.name}"))
        self.report(f"{path} was saved by other code: it is set aside as other-code-{path.name}, starting anew")

    def newest(self) -> str:
        """Where the last good state is, in words."""
        return next((f"the last good state is {path}" for path in self.paths()), "no state was saved before")

    def drop(self) -> None:
        """Deletes the states: another run is finished."""
        for path in self.paths():
            path.unlink()

    def clear(self) -> None:
        """Deletes the folder: the run is finished."""
        shutil.rmtree(self.folder)
