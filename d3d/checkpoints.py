"""Networks on disk with the facts needed to use them again, and how far a run has come: whole, or refused by name.

save_checkpoint(path, model, stream="rgb", classes=classes)
states = States(folder, fixed={"seed": 3})
states.save(step, tensors, about)                # the last two are kept
found = states.latest()                          # the newest that is whole; None where there is none
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from d3d import study
from d3d.clips import Clips
from d3d.evaluate import calibrate
from d3d.records import write_atomic
from d3d.s3dg import S3DG, s3dg
from d3d.sprite_classes import CLASSES

NETWORK, STATE = "d3d-2", "d3d-state-1"  # formats
KEPT = 2
CODE = "code"  # the fact that tells which modules a run is made by


class CheckpointError(ValueError):
    """A file that is cut, damaged, foreign or of another run; the message names it."""


@dataclass(frozen=True)
class About:
    """What a checkpoint's network is: its stream, its classes in order, its width, and what it was shown in training
    (nothing is known of imported weights)."""

    stream: str
    classes: tuple[str, ...]
    width: float
    in_channels: int
    input: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: str | Path,
    model: S3DG,
    *,
    stream: str,
    classes: tuple[str, ...],
    input: Mapping[str, Any] | None = None,
) -> None:
    """Writes the network as safetensors. Raises OSError naming the path where the disk does not take it."""
    about = {"stream": stream, "classes": list(classes), "width": model.width}
    about |= {"in_channels": model.in_channels, "input": dict(input or {})}
    write_atomic({Path(path): _packed(NETWORK, model.state_dict(), about)})


def read_about(path: str | Path) -> About:
    """What a checkpoint's network is. Raises as `load_checkpoint` does."""
    return _network(Path(path))[0]


def load_checkpoint(
    path: str | Path, *, classes: tuple[str, ...] | None = None, device: torch.device | str = "cpu"
) -> tuple[S3DG, About]:
    """The network, in inference mode, and what it is.

    Raises FileNotFoundError, or CheckpointError where the file is no checkpoint of this package, is cut or damaged, or
    was trained on other classes than `classes`.
    """
    path = Path(path)
    about, state = _network(path)
    if classes is not None and about.classes != tuple(classes):
        raise CheckpointError(
            f"{path} was trained on {len(about.classes)} classes ({_few(about.classes)}), the data set has "
            f"{len(classes)} ({_few(classes)}): give a checkpoint trained on the same classes"
        )
    model = s3dg(len(about.classes), in_channels=about.in_channels, width=about.width)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise CheckpointError(f"{path} does not fit the network it describes: {reason}") from None
    return model.eval().to(device), about


def arm_network(results: str | Path, arm: str, seed: int, *, width: float, fit: Clips) -> tuple[S3DG, str] | None:
    """The network of an arm to look into, on the device of the clips `fit`, and its stream; None where its weights are
    not below `results`.

    random: untrained, of this width, its batch norms calibrated on `fit`. tuned: the weights that it starts from.
    """
    classes, device = tuple(c.name for c in CLASSES), fit.labels.device
    if arm == "random":
        return calibrate(s3dg(len(classes), width=width, seed=seed).to(device), fit, "rgb"), "rgb"
    path = study.weights(results, study.STARTS_FROM.get(arm, arm), seed)
    if not Path(path).is_file():
        print(f"{arm}: no weights at {path}, left out")
        return None
    model, about = load_checkpoint(path, classes=classes, device=device)
    return model, about.stream


def _network(path: Path) -> tuple[About, dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train that network first, its notebook writes it there")
    fields, state = _unpacked(path, NETWORK)
    return About(**fields | {"classes": tuple(fields["classes"])}), state


def _few(names: tuple[str, ...]) -> str:
    return ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])])


def _packed(form: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """A safetensors file whose one key of metadata (several would come in any order) holds the content's SHA-256."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"format": form, **about}
    return save(tensors, {"about": json.dumps(about | {"sha256": _digest(tensors, about)})})


def _unpacked(path: Path, form: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}") from None
    try:
        about = dict(json.loads(meta.get("about", "{}")))
    except (ValueError, TypeError):
        about = {}
    if about.get("format") != form:
        raise CheckpointError(f"{path} is no checkpoint of this package, which would say format {form!r}")
    sha256 = about.pop("sha256", None)
    if sha256 != _digest(tensors, about):
        raise CheckpointError(f"{path} is damaged: its content is not what its check sum says")
    del about["format"]
    return about, tensors


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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
        write_atomic({path: _packed(STATE, tensors, about)})
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
                about, tensors = _unpacked(path, STATE)
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
