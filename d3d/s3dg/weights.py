"""The authors' checkpoints: TF-slim's variables by name, into this package's networks and files.

    d3d convert model.ckpt model.safetensors

A TensorFlow checkpoint is read by tensorflow (`pip install 'd3d[tensorflow]'`), an .npz of the same names without it.
"""

import argparse
import math
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from d3d.s3dg.checkpoints import CHANNELS, save_checkpoint
from d3d.s3dg.network import MIXED, S3DG, s3dg

NAMES = {channels: stream for stream, channels in CHANNELS.items()}
STEM, HEAD = "Conv2d_1a_7x7/weights", "Logits/Conv2d_0c_1x1/weights"
# Where in a block the variables of its branches' convolutions are.
CONVOLUTIONS = {
    "Branch_0": ("Conv2d_0a_1x1",),
    "Branch_1": ("Conv2d_0a_1x1", "Conv2d_0b_3x3"),
    "Branch_2": ("Conv2d_0a_1x1", "Conv2d_0b_3x3"),
    "Branch_3": (None, "Conv2d_0b_1x1"),
}
LEAVES = {
    "conv.weight": "weights",
    "norm.bias": "BatchNorm/beta",
    "norm.running_mean": "BatchNorm/moving_mean",
    "norm.running_var": "BatchNorm/moving_variance",
    "temporal.conv.weight": "temporal/weights",
    "temporal.norm.bias": "temporal/biases",
}


def tf_names(model: S3DG) -> dict[str, str]:
    """TF-slim's name, below its scope, of every tensor of a network's state that TF-slim has."""
    names = {}
    for name in model.state_dict():
        if not name.endswith(("norm.weight", "num_batches_tracked")):
            names[name] = _tf_name(*name.removeprefix("features.").split("."))
    return names


def _tf_name(stage: str, *rest: str) -> str:
    if stage == "Conv2d_0c_1x1":
        return f"Logits/{stage}/" + {"weight": "weights", "bias": "biases"}[rest[0]]
    if rest[-2] == "transformer_W":
        branch = f"Branch_{rest[-1]}"
        where = f"{stage}/{branch}/{CONVOLUTIONS[branch][-1]}" if stage in MIXED else stage
        return f"{where}/self_gating/transformer_W/weights"
    if stage in MIXED:
        branch, *rest = rest
        place = int(rest.pop(0)) if len(CONVOLUTIONS[branch]) > 1 else 0
        stage = f"{stage}/{branch}/{CONVOLUTIONS[branch][place]}"
    elif stage == "Conv2d_2c_3x3":
        rest = rest[1:]
    return f"{stage}/{LEAVES['.'.join(rest).removeprefix('spatial.')]}"


def load_tf(source: str | Path) -> S3DG:
    """The network of a TensorFlow checkpoint (its prefix) or of an .npz with TF-slim's names, in inference mode.

    Width, classes and input channels follow from the shapes. What is not part of the network (step counts, slots of an
    optimiser, moving averages of weights) is left out, and said on stderr. Raises FileNotFoundError or ValueError
    naming what is missing, unreadable or of another shape.
    """
    variables = _read(Path(source))
    scope = _scope(source, variables)
    ours = {name.removeprefix(scope): array for name, array in variables.items() if name.startswith(scope)}
    for name in (STEM, HEAD):
        if ours[name].ndim != 5:
            raise ValueError(f"{source}: {scope}{name} has shape {ours[name].shape}, not (t, h, w, in, out)")
    classes, in_channels = ours[HEAD].shape[-1], ours[STEM].shape[3]
    model = s3dg(classes, in_channels=in_channels, width=_width(source, ours))
    names, state = tf_names(model), model.state_dict()
    if missing := [name for name in names.values() if name not in ours]:
        raise ValueError(
            f"{source} lacks {scope}{missing[0]}"
            + (f" and {len(missing) - 1} more" if missing[1:] else "")
            + ": it is not a whole S3D-G"
        )
    for name, tf in names.items():
        state[name] = _tensor(f"{source}: {scope}{tf}", ours[tf], state[name])
    model.load_state_dict(state)
    if ignored := sorted(set(variables) - {scope + name for name in names.values()}):
        shown = ", ".join(ignored[:5]) + (", …" if ignored[5:] else "")
        print(f"{source}: {len(ignored)} variables are not the network's and are left out: {shown}", file=sys.stderr)
    return model.eval()


def _read(source: Path) -> Mapping[str, np.ndarray]:
    if source.suffix == ".npz":
        if not source.is_file():
            raise FileNotFoundError(f"no file {source}")
        try:
            with source.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{source} is no whole .npz file of arrays: {error}") from None
    if not Path(f"{source}.index").is_file():
        raise FileNotFoundError(
            f"no TensorFlow checkpoint at {source}: give its prefix, the path without .index and .data-00000-of-00001"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError:
        raise ValueError(
            f"reading {source} needs tensorflow: pip install 'd3d[tensorflow]', or give an .npz of its variables"
        ) from None
    try:
        reader = tf.train.load_checkpoint(str(source))
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except tf.errors.OpError as error:
        raise ValueError(f"{source} is no whole TensorFlow checkpoint: {error.message}") from None


def _scope(source: str | Path, variables: Mapping[str, np.ndarray]) -> str:
    """What stands before TF-slim's names, such as InceptionV1/."""
    scopes = sorted(name.removesuffix(STEM) for name in variables if f"/{name}".endswith(f"/{STEM}"))
    if len(scopes) == 1 and f"{scopes[0]}{HEAD}" in variables:
        return scopes[0]
    if len(scopes) > 1:
        raise ValueError(f"{source} holds several networks ({', '.join(scopes)}): give a checkpoint of one")
    lacking = f"{scopes[0]}{HEAD}" if scopes else f"…/{STEM}"
    raise ValueError(f"{source} is no S3D-G: it has no variable {lacking}, but {', '.join(sorted(variables)[:3])}, …")


def _width(source: str | Path, ours: Mapping[str, np.ndarray]) -> float:
    """The shortest decimal that, times the full numbers of channels, gives those found (at least 16 stay)."""
    with torch.device("meta"):
        full = S3DG(1, 3, 1.0, 0.0)
    shapes = {tf: full.state_dict()[name].shape for name, tf in tf_names(full).items() if name.endswith("conv.weight")}
    low, high = 0.0, math.inf
    for name, shape in shapes.items():
        if name in ours and ours[name].ndim == 5:
            found = ours[name].shape[-1]
            low = max(low, found / shape[0] if found > 16 else 0.0)
            high = min(high, (found + 1) / shape[0])
    for digits in range(7):
        width = max(math.ceil(round(low * 10**digits, 6)), 1) / 10**digits
        if low <= width < high:
            return width
    raise ValueError(f"{source} has numbers of channels that no width of S3D-G gives")


def _tensor(what: str, array: np.ndarray, like: Tensor) -> Tensor:
    """A kernel (t, h, w, in, out), or a vector, as PyTorch holds it."""
    tensor = torch.from_numpy(np.asarray(array, np.float32))
    if tensor.ndim == 5:
        tensor = tensor.permute(4, 3, 0, 1, 2)
        # A gate's kernel is a single point, and ours a matrix.
        tensor = tensor[..., 0, 0, 0] if like.ndim == 2 and tensor.shape[2:] == (1, 1, 1) else tensor
    if tensor.shape != like.shape:
        raise ValueError(f"{what} has shape {array.shape}, this network needs {tuple(like.shape)} in PyTorch's order")
    return tensor


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="d3d convert", description="TF-slim's S3D-G as safetensors.")
    parser.add_argument("source", help="a TensorFlow checkpoint's prefix, or an .npz of its variables")
    parser.add_argument("out", help="the safetensors file to write")
    given = parser.parse_args(argv)
    try:
        model = load_tf(given.source)
        if model.in_channels not in NAMES:
            raise ValueError(f"{given.source} takes {model.in_channels} channels: streams take 3 (RGB) or 2 (flow)")
        classes = tuple(str(i) for i in range(model.num_classes))
        save_checkpoint(given.out, model, stream=NAMES[model.in_channels], classes=classes)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{given.out}: S3D-G, {model.num_classes} classes, {model.in_channels} channels in, width {model.width}")
