"""Checkpoints: a network's weights and a description of it in one safetensors file, verified by a checksum.

save_checkpoint(path, model, stream="rgb", classes=classes)
model, info = load_checkpoint(path)
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from d3d.files import write_atomic
from d3d.messages import one_line
from d3d.s3dg.network import S3DG, s3dg

NETWORK_FORMAT = "d3d-2"
CHANNELS = {"rgb": 3, "flow": 2}  # input channels of each stream
# The header holds names, shapes and metadata: a hundred kilobytes in practice.
MAX_HEADER = 8 * 2**20
TYPES = {torch.float32: "F32", torch.int64: "I64"}  # safetensors' names of the types that a network has

Layout = dict[str, tuple[str, tuple[int, ...]]]  # type and shape of each tensor, by name


class CheckpointError(ValueError):
    """The file is truncated or damaged, or not of this package or run; the message, of one line, names it."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


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
        CheckpointError: A weight is not finite, or `classes` are not as many as the logits.
    """
    path, state = Path(path), model.state_dict()
    if len(classes) != model.num_classes:
        raise CheckpointError(f"{path} is not written: the network has {model.num_classes} classes, not {len(classes)}")
    _check_finite(path, state)
    info = {"stream": stream, "classes": list(classes), "width": model.width}
    info |= {"in_channels": model.in_channels, "input": dict(input or {})}
    write_atomic({path: to_safetensors(NETWORK_FORMAT, state, info)})


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
        CheckpointError: The file is not a checkpoint of this package, is truncated or damaged, has weights that are not
            finite or do not fit the network it describes, or has other classes.
    """
    path = Path(path)
    info, state = _read(path)
    if classes is not None and info.classes != tuple(classes):
        raise CheckpointError(
            f"{path} was trained on {len(info.classes)} classes ({_preview(info.classes)}), the data set has "
            f"{len(classes)} ({_preview(classes)}): give a checkpoint trained on the same classes"
        )
    model = _describe_network(path, info)
    # Not `to_empty`, which imports sympy: a second.
    empty = {n: torch.empty_strided(x.size(), x.stride(), dtype=x.dtype) for n, x in model.state_dict().items()}
    model.load_state_dict({name: tensor.copy_(state[name]) for name, tensor in empty.items()}, assign=True)
    return model.eval().to(device), info


def _read(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Reads a checkpoint: no tensor is read before its size is that of the network that the file describes."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the path of a checkpoint, a .safetensors file")
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {one_line(path)}: train that network first; its notebook writes it there"
        )
    metadata, state = read_safetensors(path, NETWORK_FORMAT, lambda *header: _check_layout(path, *header))
    _check_finite(path, state)
    return _parse_info(path, metadata), state


def _parse_info(path: Path, metadata: Mapping[str, Any]) -> CheckpointInfo:
    """Checks the description in a file's metadata."""
    names = [f.name for f in fields(CheckpointInfo)]
    described = {"input": {}, **metadata}
    if differing := set(described) ^ set(names):
        name = min(differing)
        state = "lacks" if name in names else "has an unknown field"
        raise CheckpointError(f"{path} does not describe a network: its metadata {state} {one_line(repr(name), 80)}")
    stream, classes, width, in_channels, input = (described[name] for name in names)
    right = {
        "stream": (isinstance(stream, str) and stream in CHANNELS, "rgb or flow"),
        "classes": (isinstance(classes, list) and all(isinstance(c, str) and c for c in classes), "a list of names"),
        "width": (isinstance(width, int | float) and not isinstance(width, bool), "a number"),
        "in_channels": (type(in_channels) is int and in_channels == CHANNELS.get(str(stream)), "that of the stream"),
        "input": (isinstance(input, dict), "a mapping"),
    }
    for name, (is_right, what) in right.items():
        if not is_right:
            value = one_line(repr(described[name]), 80)
            raise CheckpointError(f"{path} does not describe a network: {name} must be {what}, not {value}")
    return CheckpointInfo(stream, tuple(classes), width, in_channels, input)


def _describe_network(path: Path, info: CheckpointInfo) -> S3DG:
    """Builds the network of a description on the meta device, where tensors have shapes but no memory."""
    try:
        with torch.device("meta"):
            return s3dg(len(info.classes), in_channels=info.in_channels, width=info.width)
    except ValueError as error:
        raise CheckpointError(f"{path} does not describe a network: {error}") from None


def _check_layout(path: Path, metadata: Mapping[str, Any], layout: Layout) -> None:
    state = _describe_network(path, _parse_info(path, metadata)).state_dict()
    expected = {name: (TYPES[x.dtype], tuple(x.shape)) for name, x in state.items()}
    for name in expected | layout:
        if expected.get(name) != layout.get(name):
            has, needs = (
                "no such tensor" if entry is None else f"{entry[0]} {one_line(entry[1], 80)}"
                for entry in (layout.get(name), expected.get(name))
            )
            raise CheckpointError(
                f"{path} does not fit the network it describes: {one_line(name, 80)} is {has} in the file, {needs} in "
                "the network"
            )


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path} is not usable: {name} is not finite; train again with a lower learning_rate")


def _preview(names: tuple[str, ...]) -> str:
    return ", ".join([*(one_line(name, 40) for name in names[:3]), *(["…"] if len(names) > 3 else [])])


def to_safetensors(format_name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Serializes tensors and JSON metadata, with the format's name and a SHA-256 of both, as a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": format_name, **metadata}
    # One key only: safetensors writes several in any order, and equal networks must be equal files.
    return save(tensors, {"about": json.dumps(metadata | {"sha256": _digest(tensors, metadata)})})


def read_safetensors(
    path: Path, format_name: str, check: Callable[[dict[str, Any], Layout], None] = lambda metadata, layout: None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads and verifies a file made by `to_safetensors`.

    Args:
        path: File to read.
        format_name: The format that it must have.
        check: Receives the metadata and the type and shape of each tensor before any tensor is read; may raise.

    Returns:
        The metadata and the tensors.

    Raises:
        CheckpointError: The file is truncated, damaged or of another format.
    """
    try:
        _check_header_size(path)
        with safe_open(path, "np") as file:  # which reserves no memory for the tensors
            header = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            layout = {name: (x.get_dtype(), tuple(x.get_shape())) for name, x in slices.items()}
        metadata = _parse_metadata(header.get("about", "{}"))
        if metadata.get("format") != format_name:
            raise CheckpointError(
                f"{path} is not a checkpoint of this package: its metadata does not give format {format_name!r}"
            )
        checked = {name: value for name, value in metadata.items() if name not in ("format", "sha256")}
        check(checked, layout)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in layout}
        if metadata.get("sha256") != _digest(tensors, {"format": format_name, **checked}):
            raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    # A RuntimeError: the file does not fit into the address space, or the metadata are nested too deep.
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {one_line(error, 200)}") from None
    return checked, tensors


def _check_header_size(path: Path) -> None:
    """Compares the length of the header, which a file begins with, with the file before the header is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER):
        raise CheckpointError(
            f"{path} is not a complete safetensors file: it has {size} bytes, but its header would need {8 + length}"
        )


def _parse_metadata(text: str) -> dict[str, Any]:
    """Parses a JSON object; returns an empty one for anything else."""
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
