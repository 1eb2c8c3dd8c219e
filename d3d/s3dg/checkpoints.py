"""Checkpoints: a network's weights and a description of it in one safetensors file, verified by a checksum.

save_checkpoint(path, model, stream="rgb", classes=classes)
model, info = load_checkpoint(path)
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

NETWORK_FORMAT = "d3d-2"
CHANNELS = {"rgb": 3, "flow": 2}  # input channels of each stream


class CheckpointError(ValueError):
    """The file is truncated or damaged, or not of this package or run; the message names it."""


@dataclass(frozen=True)
class CheckpointInfo:
    """Describes the network in a checkpoint.

    Attributes:
        stream: "rgb" or "flow".
        classes: Class names in the order of the logits.
        width: Multiplier of every channel count.
        in_channels: Channels of the input.
        input: Parameters of the clips it was trained on; empty for imported weights.
    """

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
    """Writes a network and its description to a safetensors file, atomically.

    Args:
        path: File to write.
        model: Network to save.
        stream: "rgb" or "flow".
        classes: Class names in the order of the logits.
        input: Parameters of the clips it was trained on; None: unknown.

    Raises:
        OSError: The file cannot be written; the message names it.
    """
    info = {"stream": stream, "classes": list(classes), "width": model.width}
    info |= {"in_channels": model.in_channels, "input": dict(input or {})}
    write_atomic({Path(path): to_safetensors(NETWORK_FORMAT, model.state_dict(), info)})


def read_info(path: str | Path) -> CheckpointInfo:
    """Reads a checkpoint's description; raises the same errors as `load_checkpoint`."""
    return _read(Path(path))[0]


def load_checkpoint(
    path: str | Path, *, classes: tuple[str, ...] | None = None, device: torch.device | str = "cpu"
) -> tuple[S3DG, CheckpointInfo]:
    """Loads a network in eval mode.

    Args:
        path: File written by `save_checkpoint`.
        classes: Class names that the checkpoint must have, in order; None: any.
        device: Device to move the network to.

    Returns:
        The network and its description.

    Raises:
        FileNotFoundError: There is no file at `path`.
        CheckpointError: The file is not a checkpoint of this package, is truncated or damaged, or has other classes.
    """
    path = Path(path)
    info, state = _read(path)
    if classes is not None and info.classes != tuple(classes):
        raise CheckpointError(
            f"{path} was trained on {len(info.classes)} classes ({_preview(info.classes)}), the data set has "
            f"{len(classes)} ({_preview(classes)}): give a checkpoint trained on the same classes"
        )
    model = s3dg(len(info.classes), in_channels=info.in_channels, width=info.width)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise CheckpointError(f"{path} does not fit the network it describes: {reason}") from None
    return model.eval().to(device), info


def _read(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train that network first; its notebook writes it there")
    fields, state = read_safetensors(path, NETWORK_FORMAT)
    return CheckpointInfo(**fields | {"classes": tuple(fields["classes"])}), state


def _preview(names: tuple[str, ...]) -> str:
    return ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])])


def to_safetensors(format_name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Serializes tensors and JSON metadata, with the format's name and a SHA-256 of both, as a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": format_name, **metadata}
    # One key only: safetensors writes several in any order, and equal networks must be equal files.
    return save(tensors, {"about": json.dumps(metadata | {"sha256": _digest(tensors, metadata)})})


def read_safetensors(path: Path, format_name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads and verifies a file made by `to_safetensors`.

    Returns:
        The metadata and the tensors.

    Raises:
        CheckpointError: The file is truncated, damaged or of another format.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from None
    try:
        metadata = dict(json.loads(header.get("about", "{}")))
    except (ValueError, TypeError):
        metadata = {}
    if metadata.get("format") != format_name:
        raise CheckpointError(
            f"{path} is not a checkpoint of this package: its metadata does not give format {format_name!r}"
        )
    sha256 = metadata.pop("sha256", None)
    if sha256 != _digest(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    del metadata["format"]
    return metadata, tensors


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
