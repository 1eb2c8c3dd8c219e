"""Imports the authors' checkpoints: TF-slim's variables, by name, into this package's networks and files.

    d3d convert model.ckpt model.safetensors

Reading a TensorFlow checkpoint needs tensorflow (`pip install 'd3d[tensorflow]'`); an .npz does not.
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

STREAM_OF_CHANNELS = {channels: stream for stream, channels in CHANNELS.items()}
STEM, HEAD = "Conv2d_1a_7x7/weights", "Logits/Conv2d_0c_1x1/weights"
# TF-slim's names of the convolutions in each branch, by index in the branch; a pool has none.
BRANCH_CONVS = {
    "Branch_0": ("Conv2d_0a_1x1",),
    "Branch_1": ("Conv2d_0a_1x1", "Conv2d_0b_3x3"),
    "Branch_2": ("Conv2d_0a_1x1", "Conv2d_0b_3x3"),
    "Branch_3": (None, "Conv2d_0b_1x1"),
}
# TF-slim's names of a block's tensors.
TENSORS = {
    "conv.weight": "weights",
    "norm.bias": "BatchNorm/beta",
    "norm.running_mean": "BatchNorm/moving_mean",
    "norm.running_var": "BatchNorm/moving_variance",
    "temporal.conv.weight": "temporal/weights",
    "temporal.norm.bias": "temporal/biases",
}


def tf_names(model: S3DG) -> dict[str, str]:
    """Maps each state-dict key to TF-slim's variable name below its scope, except keys that TF-slim lacks."""
    names = {}
    for key in model.state_dict():
        if not key.endswith(("norm.weight", "num_batches_tracked")):
            names[key] = _tf_name(*key.removeprefix("features.").split("."))
    return names


def _tf_name(stage: str, *path: str) -> str:
    if stage == "Conv2d_0c_1x1":
        return f"Logits/{stage}/" + {"weight": "weights", "bias": "biases"}[path[0]]
    if path[-2] == "transformer_W":
        branch = f"Branch_{path[-1]}"
        gated = f"{stage}/{branch}/{BRANCH_CONVS[branch][-1]}" if stage in MIXED else stage
        return f"{gated}/self_gating/transformer_W/weights"
    if stage in MIXED:
        branch, *path = path
        index = int(path.pop(0)) if len(BRANCH_CONVS[branch]) > 1 else 0
        stage = f"{stage}/{branch}/{BRANCH_CONVS[branch][index]}"
    elif stage == "Conv2d_2c_3x3":
        path = path[1:]
    return f"{stage}/{TENSORS['.'.join(path).removeprefix('spatial.')]}"


def load_tf(source: str | Path) -> S3DG:
    """Loads a TensorFlow checkpoint as a network in eval mode.

    Width, number of classes and input channels are inferred from the shapes. Variables that are not the network's (step
    counts, optimiser slots, moving averages of weights) are ignored and reported on stderr.

    Args:
        source: Prefix of a TensorFlow checkpoint, or an .npz with TF-slim's names.

    Returns:
        The network.

    Raises:
        FileNotFoundError: There is no checkpoint at `source`.
        ValueError: The file cannot be read, or a variable is missing or has another shape; the message names it.
    """
    variables = _read_variables(Path(source))
    scope = _find_scope(source, variables)
    scoped = {name.removeprefix(scope): array for name, array in variables.items() if name.startswith(scope)}
    for name in (STEM, HEAD):
        if scoped[name].ndim != 5:
            raise ValueError(f"{source}: {scope}{name} has shape {scoped[name].shape}, not (t, h, w, in, out)")
    num_classes, in_channels = scoped[HEAD].shape[-1], scoped[STEM].shape[3]
    model = s3dg(num_classes, in_channels=in_channels, width=_infer_width(source, scoped))
    names, state = tf_names(model), model.state_dict()
    if missing := [name for name in names.values() if name not in scoped]:
        raise ValueError(
            f"{source} lacks {scope}{missing[0]}"
            + (f" and {len(missing) - 1} more" if missing[1:] else "")
            + ": it is not a complete S3D-G"
        )
    for key, name in names.items():
        state[key] = _to_tensor(f"{source}: {scope}{name}", scoped[name], state[key])
    model.load_state_dict(state)
    if ignored := sorted(set(variables) - {scope + name for name in names.values()}):
        preview = ", ".join(ignored[:5]) + (", …" if ignored[5:] else "")
        print(f"{source}: ignored {len(ignored)} variables that are not the network's: {preview}", file=sys.stderr)
    return model.eval()


def _read_variables(source: Path) -> Mapping[str, np.ndarray]:
    if source.suffix == ".npz":
        if not source.is_file():
            raise FileNotFoundError(f"no file {source}")
        try:
            with source.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{source} is not a complete .npz file of arrays: {error}") from None
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
        raise ValueError(f"{source} is not a complete TensorFlow checkpoint: {error.message}") from None


def _find_scope(source: str | Path, variables: Mapping[str, np.ndarray]) -> str:
    """Finds the prefix of TF-slim's names, such as InceptionV1/."""
    scopes = sorted(name.removesuffix(STEM) for name in variables if f"/{name}".endswith(f"/{STEM}"))
    if len(scopes) == 1 and f"{scopes[0]}{HEAD}" in variables:
        return scopes[0]
    if len(scopes) > 1:
        raise ValueError(f"{source} has several networks ({', '.join(scopes)}): give a checkpoint of one")
    missing = f"{scopes[0]}{HEAD}" if scopes else f"…/{STEM}"
    raise ValueError(
        f"{source} is not an S3D-G: it has no variable {missing}, but {', '.join(sorted(variables)[:3])}, …"
    )


def _infer_width(source: str | Path, scoped: Mapping[str, np.ndarray]) -> float:
    """Infers the shortest decimal that scales the channels of width 1 to those of the file (16 is the minimum)."""
    with torch.device("meta"):
        full = S3DG(1, 3, 1.0, 0.0)
    shapes = {tf: full.state_dict()[key].shape for key, tf in tf_names(full).items() if key.endswith("conv.weight")}
    low, high = 0.0, math.inf
    for name, shape in shapes.items():
        if name in scoped and scoped[name].ndim == 5:
            channels = scoped[name].shape[-1]
            low = max(low, channels / shape[0] if channels > 16 else 0.0)
            high = min(high, (channels + 1) / shape[0])
    for digits in range(7):
        width = max(math.ceil(round(low * 10**digits, 6)), 1) / 10**digits
        if low <= width < high:
            return width
    raise ValueError(f"{source} has channel counts that no width of S3D-G gives")


def _to_tensor(name: str, array: np.ndarray, like: Tensor) -> Tensor:
    """Converts a kernel (t, h, w, in, out) or a vector to PyTorch's order and the shape of `like`."""
    tensor = torch.from_numpy(np.asarray(array, np.float32))
    if tensor.ndim == 5:
        tensor = tensor.permute(4, 3, 0, 1, 2)
        # TF-slim's gates are 1x1x1 convolutions, ours matrices.
        tensor = tensor[..., 0, 0, 0] if like.ndim == 2 and tensor.shape[2:] == (1, 1, 1) else tensor
    if tensor.shape != like.shape:
        raise ValueError(f"{name} has shape {array.shape}, this network needs {tuple(like.shape)} in PyTorch's order")
    return tensor


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="d3d convert", description="Converts an S3D-G of TF-slim to safetensors.")
    parser.add_argument("source", help="prefix of a TensorFlow checkpoint, or an .npz file of its variables")
    parser.add_argument("out", help="safetensors file to write")
    args = parser.parse_args(argv)
    try:
        model = load_tf(args.source)
        if model.in_channels not in STREAM_OF_CHANNELS:
            raise ValueError(f"{args.source} takes {model.in_channels} channels: streams take 3 (RGB) or 2 (flow)")
        classes = tuple(str(i) for i in range(model.num_classes))
        save_checkpoint(args.out, model, stream=STREAM_OF_CHANNELS[model.in_channels], classes=classes)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{args.out}: S3D-G, {model.num_classes} classes, {model.in_channels} input channels, width {model.width}")
