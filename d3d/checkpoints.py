"""Weights on disk with the facts needed to use them again: atomic to write, checked when read."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from d3d.records import write_atomic
from d3d.s3dg import S3DG, s3dg

FORMAT = "d3d-1"


@dataclass(frozen=True)
class About:
    """What a checkpoint's network is: its stream, its classes in order, its width."""

    stream: str
    classes: tuple[str, ...]
    width: float
    in_channels: int


def save_checkpoint(path: str | Path, model: S3DG, *, stream: str, classes: tuple[str, ...]) -> None:
    """Writes the network as safetensors. Raises OSError naming the path where the disk does not take it."""
    about = {"format": FORMAT, "stream": stream, "classes": list(classes)}
    about |= {"width": model.width, "in_channels": model.in_channels}
    # One key: safetensors writes several in any order, and equal networks should be equal files.
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomic({Path(path): save(tensors, {"about": json.dumps(about)})})


def read_about(path: str | Path) -> About:
    """What a checkpoint's network is, without its weights. Raises as `load_checkpoint` does."""
    return _read(Path(path), weights=False)[0]


def load_checkpoint(
    path: str | Path, *, classes: tuple[str, ...] | None = None, device: torch.device | str = "cpu"
) -> tuple[S3DG, About]:
    """The network, in inference mode, and what it is.

    Raises FileNotFoundError, or ValueError where the file is no checkpoint of this package, is cut, or was trained
    on other classes than `classes`.
    """
    path = Path(path)
    about, state = _read(path, weights=True)
    if classes is not None and about.classes != tuple(classes):
        raise ValueError(
            f"{path} was trained on {len(about.classes)} classes ({_few(about.classes)}), the data set has "
            f"{len(classes)} ({_few(classes)}): give a checkpoint trained on the same classes"
        )
    model = s3dg(len(about.classes), in_channels=about.in_channels, width=about.width)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"{path} does not fit the network it describes: {reason}") from None
    return model.eval().to(device), about


def _read(path: Path, *, weights: bool) -> tuple[About, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train that network first, its notebook writes it there")
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()} if weights else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None
    fields = json.loads(meta.get("about", "{}"))
    if fields.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is no checkpoint of this package, which would say format {FORMAT!r}")
    return About(**fields | {"classes": tuple(fields["classes"])}), state


def _few(names: tuple[str, ...]) -> str:
    return ", ".join([*names[:3], *(["…"] if len(names) > 3 else [])])
