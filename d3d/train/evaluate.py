"""Predictions for a whole split, and the fusion of several networks' predictions."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3d.data.clips import Clips, ClipSet
from d3d.s3dg.graphs import capture
from d3d.s3dg.network import S3DG

# Input values per channel (frames x height x width, over all clips) in one forward pass on a GPU.
PIXELS_PER_PASS = 2**25
# From this number of passes on, a CUDA graph saves more time than its capture takes.
MIN_PASSES = 4
# Number of example clips in a run's arrays, of frames per clip, and of pixels per side.
MAX_EXAMPLES, EXAMPLE_FRAMES, EXAMPLE_SIDE = 6, 4, 96


@torch.no_grad()
def infer_logits(model: S3DG, inputs: Tensor) -> Tensor:
    """Returns logits, float32 (B, K), of inputs (B, C, T, H, W); computes in bfloat16 on a GPU."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        return model(inputs).float()


@torch.no_grad()
def infer_features(model: S3DG, inputs: Tensor) -> Tensor:
    """Returns pooled features, float32 (B, C): the input of the classifier, averaged over time and space."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        return model.pooled(inputs).float().mean((2, 3, 4))


@torch.no_grad()
def infer_activations(model: S3DG, inputs: Tensor, layer: str) -> Tensor:
    """Returns the activations of an endpoint, float32 (B, C, T', H', W')."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        return model.endpoints(inputs, (layer,))[layer].float()


@torch.no_grad()
def predict(
    model: S3DG,
    clips: ClipSet,
    stream: str,
    *,
    rows: np.ndarray | None = None,
    forward: Callable[[S3DG, Tensor], Tensor] = infer_logits,
    seeds: tuple[int, ...] = (),
    done: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Computes the outputs of a network for the clips of a split, and leaves the network in inference mode.

    Args:
        model: the network.
        clips: the split.
        stream: the input of the network, rgb or flow.
        rows: (N,), rows of the split's table; None: all, in order.
        forward: maps the network and inputs (B, C, T, H, W) to outputs (B, K).
        seeds: seeds of one random view per clip; empty: test views.
        done: receives the rows of each batch (B,) and their outputs (B, K) as soon as they are computed.

    Returns:
        float32 (N, K): nan for a clip that could not be read, the log of the mean softmax for a clip of several views.
    """
    model.eval()
    rows = np.arange(len(clips)) if rows is None else rows
    # A GPU needs many small clips to be kept busy.
    on_gpu, fitting = clips.labels.device.type == "cuda", PIXELS_PER_PASS // math.prod(clips.size)
    size = max(8, fitting) if on_gpu else min(64, max(1, fitting))
    outputs_of: dict[int, np.ndarray] = {}
    width = 0
    step = size if seeds else max(1, size // clips.test_views)
    steps = [(chunk, seeds) for chunk in np.split(rows, range(step, len(rows), step))]
    network = capture(model) if len(steps) >= MIN_PASSES else model
    for batch in clips.batches(steps, (stream,)):
        views: dict[int, list[np.ndarray]] = {}
        for start in range(0, len(batch.index), size):
            outputs = forward(network, batch.inputs[stream][start : start + size]).cpu().numpy()
            width = outputs.shape[1]
            for row, output in zip(batch.index[start : start + size].tolist(), outputs, strict=True):
                views.setdefault(row, []).append(output)
        of_batch = {row: (v[0] if len(v) == 1 else fuse_logits(v)).astype(np.float32) for row, v in views.items()}
        if done and of_batch:
            done(np.array(list(of_batch)), np.stack(list(of_batch.values())))
        outputs_of |= of_batch
    unread = np.full(width, np.nan, np.float32)
    return np.array([outputs_of.get(row, unread) for row in rows.tolist()], np.float32).reshape(len(rows), width)


def example_arrays(clips: ClipSet, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Reads a few frames of a few clips of a split, both evenly spaced, in a small size for a notebook to show.

    Args:
        clips: the split.
        rows: (N,), ascending, rows of the clips to choose from.

    Returns:
        `examples/frames`, uint8 (E, F, h, w, 3), RGB frames of at most 96 pixels per side, and `examples/index` (E,),
        the indices of their clips in `rows`.
    """
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, MAX_EXAMPLES).round().astype(int))]
    (batch,) = clips.batches([(chosen, ())], ("rgb",))
    # The first view of each clip.
    read, first = np.unique(batch.index.cpu().numpy(), return_index=True)
    clip = batch.inputs["rgb"][torch.from_numpy(first).to(batch.index.device)]
    times = np.unique(np.linspace(0, clip.shape[2] - 1, EXAMPLE_FRAMES).round().astype(int))
    frames = clip[:, :, times].transpose(1, 2)
    scale = min(1.0, EXAMPLE_SIDE / max(frames.shape[3:]))
    size = [round(scale * side) for side in frames.shape[3:]]
    small = F.interpolate(frames.flatten(0, 1), size=size, mode="area").unflatten(0, frames.shape[:2])
    images = (small * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    return {"examples/frames": images, "examples/index": np.searchsorted(rows, read)}


def calibrate(model: nn.Module, clips: Clips, stream: str, *, batch_size: int = 64) -> nn.Module:
    """Sets the running statistics of every batch norm to those of these clips; leaves the model in inference mode.

    Otherwise the activations of an untrained network nearly vanish, which makes it an unfair control.
    """
    indices = torch.arange(len(clips)).chunk(max(1, len(clips) // batch_size))
    return set_statistics(model, (clips.inputs(stream, index.to(clips.labels.device)) for index in indices))


@torch.no_grad()
def set_statistics(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Sets the running statistics of every batch norm to the averages over batches; leaves it in inference mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    model.train()
    for batch in batches:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def fuse_logits(members: Sequence[np.ndarray], *, by: str = "softmax") -> np.ndarray:
    """Fuses the logits of several networks.

    Args:
        members: the logits (..., K) of each network.
        by: "softmax" returns the log of the mean softmax, as the study fuses two streams; "logits" the mean logits.

    Returns:
        (..., K).

    Raises:
        ValueError: if the shapes differ.
    """
    shapes = {m.shape for m in members}
    if len(shapes) != 1:
        raise ValueError(f"only logits of the same clips and classes can be fused, these are {sorted(shapes)}")
    if by == "logits":
        return np.mean(members, axis=0, dtype=np.float64)
    shifted = np.stack(members).astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    softmax = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    return np.log(softmax.mean(0))
