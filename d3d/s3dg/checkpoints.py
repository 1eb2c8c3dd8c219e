"""Networks on disk with the facts needed to use them again: whole, or refused by name.

save_checkpoint(path, model, stream="rgb", classes=classes)
model, about = load_checkpoint(path)
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from d3d.files import write_atomic
from d3d.s3dg.network import S3DG, s3dg

NETWORK = "d3d-2"  # the format
CHANNELS = {"rgb": 3, "flow": 2}  # of the streams' inputs


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
    write_atomic({Path(path): pack(NETWORK, model.state_dict(), about)})


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


def _network(path: Path) -> tuple[About, dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train that network first, its notebook writes it there")
    fields, state = unpack(path, NETWORK)
    return About(**fields | {"classes": tuple(fields["classes"])}), state


def _few(names: tuple[str, ...]) -> str:
    return ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])])


def pack(form: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """A safetensors file whose one key of metadata (several would come in any order) holds the content's SHA-256."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"format": form, **about}
    return save(tensors, {"about": json.dumps(about | {"sha256": _digest(tensors, about)})})


def unpack(path: Path, form: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
