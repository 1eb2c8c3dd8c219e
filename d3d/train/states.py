"""States of a run on disk (weights, momenta, metrics so far), from which it resumes after it was killed.

They are written atomically, and checked when they are read.

with Lease(folder) as lease:                         # the folder is this process's alone
    states = States(lease, settings={"seed": 3})
    states.save(step, tensors, metadata)             # keeps the last two
    state = states.latest()                          # the newest undamaged one, or None
"""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from d3d.files import write_atomic
from d3d.s3dg.checkpoints import CheckpointError, read_safetensors, to_safetensors
from d3d.train.lease import Lease

FORMAT = "d3d-state-1"
MAX_STATES = 2
CODE = "code"  # the setting that holds the hash of the source code


@dataclass(frozen=True)
class SavedState:
    """A run after `step` steps.

    Attributes:
        step: number of completed steps.
        tensors: from `Sgd.state_dict`.
        metadata: what else was saved, as JSON.
    """

    step: int
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


class States:
    """The last states of one run, in the folder of a lease that this process holds.

    Args:
        lease: the lease of the folder where the states are.
        settings: what must be equal for a run to resume, such as its parameters.
        report: receives one line per warning.
        finished_run: `run_id` of the run whose record exists; its states, which were left when it was killed after it
            wrote the record, are deleted if this run has other settings.

    Attributes:
        run_id: of this run and those that it resumes.

    Raises:
        LeaseError: here and in every method that writes, if another process has taken the folder over.
    """

    def __init__(
        self,
        lease: Lease,
        settings: Mapping[str, Any],
        report: Callable[[str], None] = print,
        *,
        finished_run: str | None = None,
    ) -> None:
        self.lease, self.folder, self.report = lease, lease.folder, report
        self.finished_run, self.run_id = finished_run, secrets.token_hex(8)
        self.settings = json.loads(json.dumps(dict(settings)))
        lease.check()
        for unfinished in self.folder.glob(".*"):  # half-written when a process was killed
            unfinished.unlink()

    def paths(self) -> list[Path]:
        """Returns the files of the states, newest first."""
        return sorted(self.folder.glob("step*.safetensors"), reverse=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
        """Writes a state, then deletes all but the last two; raises OSError if it cannot be written."""
        path = self.folder / f"step{step:09d}.safetensors"
        header = {"step": step, "run": self.run_id, "fixed": self.settings, "about": dict(metadata)}
        content = to_safetensors(FORMAT, tensors, header)
        self.lease.check()  # right before a folder would be made again that its new holder has deleted
        write_atomic({path: content}, check=self.lease.check)
        for old in self.paths()[MAX_STATES:]:
            old.unlink()
        return path

    def latest(self) -> SavedState | None:
        """Reads the newest undamaged state; None if there is none, or if another version of the code saved it.

        Damaged states and those of another version of the code are reported and renamed.

        Raises:
            CheckpointError: if all states are damaged, or if the newest undamaged one was saved with other settings,
                which the message names.
        """
        self.lease.check()
        damaged = []
        for path in self.paths():
            try:
                header, tensors = read_safetensors(path, FORMAT)
            except CheckpointError as error:
                damaged.append((path, error))
                continue
            saved = header["fixed"]
            if self.finished_run and header.get("run") == self.finished_run and saved != self.settings:
                self._delete()
                return None
            if saved.get(CODE) != self.settings.get(CODE):
                self._set_aside(path)
                return None
            if differing := [name for name in self.settings | saved if saved.get(name) != self.settings.get(name)]:
                raise CheckpointError(
                    f"{path} was saved with "
                    + ", ".join(f"{name} {saved.get(name)!r}" for name in differing)
                    + "; this run has "
                    + ", ".join(f"{name} {self.settings.get(name)!r}" for name in differing)
                    + f": restore the saved settings to resume, or delete {self.folder} to start over"
                )
            for newer, error in damaged:
                self.report(f"{error}; resuming from the previous state")
                newer.rename(newer.with_name(f"damaged-{newer.name}"))
            self.run_id = header["run"]
            return SavedState(header["step"], tensors, header["about"])
        if damaged:
            raise CheckpointError(
                f"{damaged[0][0]} is damaged, like all states in {self.folder}: delete the folder to start over"
            )
        return None

    def _set_aside(self, path: Path) -> None:
        """Renames states that another version of the code saved; they stay until the run is finished."""
        for old in self.paths():
            old.rename(old.with_name(f"other-code-{old.name}"))
        self.report(
            f"{path} was saved by another version of the code: it is renamed other-code-{path.name}, and training "
            "starts over"
        )

    def describe_latest(self) -> str:
        """Names the newest state, for a message."""
        return next((f"the last saved state is {path}" for path in self.paths()), "no state was saved")

    def _delete(self) -> None:
        """Deletes the states but keeps the folder and its lease."""
        self.lease.check()
        for path in self.paths():
            path.unlink()

    def delete_folder(self) -> None:
        """Deletes the folder, once the run is finished."""
        self.lease.delete_folder()
