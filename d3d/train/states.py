"""States of a run on disk, from which it resumes: written atomically, and checked when they are read.

states = States(folder, fixed={"seed": 3})
states.save(step, tensors, metadata)             # keeps the last two
state = states.latest()                          # the newest undamaged one, or None
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

FORMAT = "d3d-state-1"
MAX_STATES = 2
CODE = "code"  # the name of the fact that is the hash of the code


@dataclass(frozen=True)
class State:
    """A run after some steps.

    Attributes:
        step: how many steps were done.
        tensors: what `Sgd.state` returned.
        metadata: what was saved with them, as JSON.
    """

    step: int
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


class States:
    """The last states of one run, in a folder that this process locks; waits if another process has locked it.

    Args:
        folder: where the states are, created if it does not exist.
        fixed: facts that must be the same for a run to resume, such as its parameters.
        report: receives one line for everything unusual.

    Raises:
        OSError: if the folder cannot be written.
    """

    def __init__(self, folder: str | Path, fixed: Mapping[str, Any], report: Callable[[str], None] = print) -> None:
        self.folder, self.report = Path(folder), report
        self.fixed = json.loads(json.dumps(dict(fixed)))
        self._lock_fd = self._lock()
        for unfinished in self.folder.glob(".*"):  # half-written when a process was killed
            unfinished.unlink()

    def _lock(self) -> int:
        """Locks the folder, and starts over if the process that had locked it deleted it meanwhile."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.report(f"another process is training this run ({self.folder}): waiting for it to end")
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)

    def paths(self) -> list[Path]:
        """The files of the states, newest first."""
        return sorted(self.folder.glob("step*.safetensors"), reverse=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
        """Writes a state, then deletes all but the last two; raises OSError if it cannot be written."""
        path = self.folder / f"step{step:09d}.safetensors"
        about = {"step": step, "fixed": self.fixed, "about": dict(metadata)}
        write_atomic({path: to_safetensors(FORMAT, tensors, about)})
        for old in self.paths()[MAX_STATES:]:
            old.unlink()
        return path

    def latest(self) -> State | None:
        """Reads the newest undamaged state; None if there is none, or if other code saved it.

        Damaged states and those of other code are reported and renamed.

        Raises:
            CheckpointError: if all states are damaged, or if the state's facts differ from this run's; the message
                names the facts.
        """
        damaged = []
        for path in self.paths():
            try:
                about, tensors = read_safetensors(path, FORMAT)
            except CheckpointError as error:
                damaged.append((path, error))
                continue
            saved = about["fixed"]
            if saved.get(CODE) != self.fixed.get(CODE):
                self._set_aside(path)
                return None
            if differing := [name for name in self.fixed | saved if saved.get(name) != self.fixed.get(name)]:
                raise CheckpointError(
                    f"{path} was saved with "
                    + ", ".join(f"{name} {saved.get(name)!r}" for name in differing)
                    + "; this run has "
                    + ", ".join(f"{name} {self.fixed.get(name)!r}" for name in differing)
                    + f": change that back to resume, or delete {self.folder} to start over"
                )
            for newer, error in damaged:
                self.report(f"{error}; resuming from the state before it")
                newer.rename(newer.with_name(f"damaged-{newer.name}"))
            return State(about["step"], tensors, about["about"])
        if damaged:
            raise CheckpointError(
                f"{damaged[0][0]} is damaged, like all states in {self.folder}: delete the folder to start over"
            )
        return None

    def _set_aside(self, path: Path) -> None:
        """Renames the states, from which other code cannot resume; they stay until the run is finished."""
        for old in self.paths():
            old.rename(old.with_name(f"other-code-{old.name}"))
        self.report(f"{path} was saved by other code: it is renamed other-code-{path.name}, and training starts over")

    def describe_latest(self) -> str:
        """Says for a message where the newest state is."""
        return next((f"the last good state is {path}" for path in self.paths()), "no state was saved before")

    def delete_states(self) -> None:
        """Deletes the states but keeps the folder and its lock."""
        for path in self.paths():
            path.unlink()

    def delete_folder(self) -> None:
        """Deletes the folder, once the run is finished."""
        shutil.rmtree(self.folder)
