"""Imports the authors' checkpoints: TF-slim's variables, by name, into this package's networks and files.

    d3d convert model.ckpt model.safetensors

Reading a TensorFlow checkpoint needs tensorflow (`pip install 'd3d[tensorflow]'`); an .npz does not.
"""

import argparse
import glob
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from d3d.messages import one_line
from d3d.npz import ArrayHeader, NpzFile
from d3d.s3dg.checkpoints import CHANNELS, CheckpointInfo, load_checkpoint, save_checkpoint
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


@dataclass(frozen=True)
class _Variables:
    """The variables of a file, by name: types and shapes are known, values are read one by one."""

    headers: dict[str, ArrayHeader]
    read: Callable[[str], np.ndarray]


def load_tf(source: str | Path) -> S3DG:
    """Loads a TensorFlow checkpoint as a network in eval mode.

    Width, number of classes and input channels are inferred from the shapes, and no value is read before all shapes are
    those of a network. Variables that are not the network's (step counts, optimiser slots, moving averages of weights)
    are not read, but reported on stderr.

    Args:
        source: Prefix of a TensorFlow checkpoint, or an .npz with TF-slim's names.

    Returns:
        The network.

    Raises:
        FileNotFoundError: There is no checkpoint at `source`.
        ValueError: The file cannot be read, or a variable is missing, has another type or shape, or is not finite; the
            message names it.
    """
    source = Path(source)
    with _open_variables(source) as variables:
        scope = _find_scope(source, variables.headers)
        scoped = {n.removeprefix(scope): header for n, header in variables.headers.items() if n.startswith(scope)}
        for name in (STEM, HEAD):
            if len(scoped[name].shape) != 5:
                raise ValueError(f"{source}: {scope}{name} has shape {scoped[name].shape}, not (t, h, w, in, out)")
        size = (scoped[HEAD].shape[-1], scoped[STEM].shape[3], _infer_width(source, scoped))
        names = _check_headers(source, scope, scoped, size)
        model = _build(source, size)
        state = model.state_dict()
        for key, name in names.items():
            state[key] = _to_tensor(f"{source}: {scope}{name}", variables.read(scope + name), state[key].ndim)
    model.load_state_dict(state)
    if ignored := sorted(set(variables.headers) - {scope + name for name in names.values()}):
        preview = _preview(ignored, 5) + (", …" if ignored[5:] else "")
        number = len(ignored)
        print(f"{one_line(source)}: ignored {number} variables that are not the network's: {preview}", file=sys.stderr)
    return model.eval()


def load_network(source: str | Path) -> tuple[S3DG, CheckpointInfo]:
    """Loads a network from any file that this package reads, in eval mode.

    Args:
        source: A .safetensors file of this package, or what `load_tf` takes.

    Returns:
        The network and its description.

    Raises:
        FileNotFoundError, ValueError: From `load_checkpoint` or `import_tf`.
    """
    return load_checkpoint(source) if Path(source).suffix == ".safetensors" else import_tf(source)


def import_tf(source: str | Path) -> tuple[S3DG, CheckpointInfo]:
    """Loads a TensorFlow checkpoint with `load_tf` and describes it; its classes are called by their numbers.

    Raises:
        FileNotFoundError, ValueError: From `load_tf`, or if the input has neither the channels of RGB nor of flow.
    """
    model = load_tf(source)
    if model.in_channels not in STREAM_OF_CHANNELS:
        raise ValueError(f"{source} takes {model.in_channels} channels: streams take 3 (RGB) or 2 (flow)")
    classes = tuple(str(i) for i in range(model.num_classes))
    return model, CheckpointInfo(STREAM_OF_CHANNELS[model.in_channels], classes, model.width, model.in_channels)


def files_of(source: str | Path) -> list[Path]:
    """Returns the files that `load_network` reads, in order: one, or the index and the data of a checkpoint."""
    source = Path(source)
    if source.suffix in (".safetensors", ".npz"):
        return [source]
    return sorted(source.parent.glob(f"{glob.escape(source.name)}.*"))


@contextmanager
def _open_variables(source: Path) -> Iterator[_Variables]:
    if source.suffix == ".npz":
        with NpzFile(source) as file:
            yield _Variables({name: file.header(name) for name in file.names}, file.read)
        return
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
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        headers = {n: ArrayHeader(np.dtype(types[n].as_numpy_dtype), tuple(shape)) for n, shape in shapes.items()}
        yield _Variables(headers, reader.get_tensor)
    except tf.errors.OpError as error:
        raise ValueError(f"{source} is not a complete TensorFlow checkpoint: {one_line(error.message, 200)}") from None


def _find_scope(source: Path, headers: Mapping[str, ArrayHeader]) -> str:
    """Finds the prefix of TF-slim's names, such as InceptionV1/."""
    scopes = sorted(name.removesuffix(STEM) for name in headers if f"/{name}".endswith(f"/{STEM}"))
    if len(scopes) == 1 and f"{scopes[0]}{HEAD}" in headers:
        return scopes[0]
    if len(scopes) > 1:
        raise ValueError(f"{source} has several networks ({_preview(scopes, 5)}): give a checkpoint of one")
    missing = f"{one_line(scopes[0], 80)}{HEAD}" if scopes else f"…/{STEM}"
    raise ValueError(f"{source} is not an S3D-G: it has no variable {missing}, but {_preview(sorted(headers), 3)}, …")


def _preview(names: Sequence[str], count: int) -> str:
    return ", ".join(one_line(name, 80) for name in names[:count])


def _infer_width(source: Path, scoped: Mapping[str, ArrayHeader]) -> float:
    """Infers the shortest decimal that scales the channels of width 1 to those of the file (16 is the minimum)."""
    with torch.device("meta"):
        full = S3DG(1, 3, 1.0, 0.0)
    shapes = {tf: full.state_dict()[key].shape for key, tf in tf_names(full).items() if key.endswith("conv.weight")}
    low, high = 0.0, math.inf
    for name, shape in shapes.items():
        if name in scoped and len(scoped[name].shape) == 5:
            channels = scoped[name].shape[-1]
            low = max(low, channels / shape[0] if channels > 16 else 0.0)
            high = min(high, (channels + 1) / shape[0])
    for digits in range(7):
        width = max(math.ceil(round(low * 10**digits, 6)), 1) / 10**digits
        if low <= width < high:
            return width
    raise ValueError(f"{source} has channel counts that no width of S3D-G gives")


def _build(source: Path, size: tuple[int, int, float]) -> S3DG:
    """Builds a network from the number of classes, the input channels and the width."""
    num_classes, in_channels, width = size
    try:
        return s3dg(num_classes, in_channels=in_channels, width=width)
    except ValueError as error:
        raise ValueError(f"{source} is not an S3D-G: {error}") from None


def _check_headers(
    source: Path, scope: str, scoped: Mapping[str, ArrayHeader], size: tuple[int, int, float]
) -> dict[str, str]:
    """Checks that a file has all variables of a network, as numbers of the right shapes; returns `tf_names`."""
    with torch.device("meta"):
        model = _build(source, size)
    names, state = tf_names(model), model.state_dict()
    if missing := [name for name in names.values() if name not in scoped]:
        raise ValueError(
            f"{source} lacks {scope}{missing[0]}"
            + (f" and {len(missing) - 1} more" if missing[1:] else "")
            + ": it is not a complete S3D-G"
        )
    for key, name in names.items():
        dtype, shape = scoped[name]
        if dtype.kind not in "fiu":
            raise ValueError(f"{source}: {scope}{name} has type {one_line(dtype, 80)}, not numbers")
        if _torch_shape(shape, state[key].ndim) != state[key].shape:
            raise ValueError(
                f"{source}: {scope}{name} has shape {shape}, this network needs {tuple(state[key].shape)} in PyTorch's "
                "order"
            )
    return names


def _torch_shape(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The shape of a tensor of `ndim` dimensions that holds a kernel (t, h, w, in, out) or a vector."""
    if len(shape) != 5:
        return shape
    *kernel, in_channels, out_channels = shape
    # TF-slim's gates are 1x1x1 convolutions, ours matrices.
    return (out_channels, in_channels, *(() if ndim == 2 and kernel == [1, 1, 1] else kernel))


def _to_tensor(name: str, array: np.ndarray, ndim: int) -> Tensor:
    """Converts a kernel (t, h, w, in, out) or a vector to PyTorch's order, in float32."""
    with np.errstate(over="ignore"):
        tensor = torch.from_numpy(np.asarray(array, np.float32))
    if not tensor.isfinite().all():
        raise ValueError(f"{name} has values that are not finite in float32: give the weights of a trained network")
    shape = _torch_shape(array.shape, ndim)
    return (tensor.permute(4, 3, 0, 1, 2) if tensor.ndim == 5 else tensor).reshape(shape)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="d3d convert", description="Converts an S3D-G of TF-slim to safetensors.")
    parser.add_argument("source", help="prefix of a TensorFlow checkpoint, or an .npz file of its variables")
    parser.add_argument("out", help="safetensors file to write")
    args = parser.parse_args(argv)
    try:
        _check_out(Path(args.source), Path(args.out))
        model, info = import_tf(args.source)
        save_checkpoint(args.out, model, stream=info.stream, classes=info.classes)
    except (OSError, ValueError) as error:
        sys.exit(one_line(error))
    print(
        f"{one_line(args.out)}: S3D-G, {model.num_classes} classes, {model.in_channels} input channels, width "
        f"{model.width}"
    )


def _check_out(source: Path, out: Path) -> None:
    """Checks before a long conversion that its file can have this name."""
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give the name of the safetensors file to write")
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{out} is the file to convert: give another name to the safetensors file")
