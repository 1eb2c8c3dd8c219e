"""Predictions on a whole split, accuracy, and the fusion of several networks' predictions."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from d3d.data.clips import Clips, ClipSet
from d3d.s3dg.network import S3DG

# Pixels over time and space to score at once on a GPU.
AT_ONCE = 2**25


@torch.no_grad()
def infer(model: S3DG, inputs: Tensor) -> Tensor:
    """Logits (B, K), float32, of inputs (B, C, T, H, W) on their device, in bfloat16 on a GPU."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        return model(inputs).float()


@torch.no_grad()
def infer_features(model: S3DG, inputs: Tensor) -> Tensor:
    """Pooled features (B, C), float32, what the classifier sees of inputs averaged over its windows."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        return model.pooled(inputs).float().mean((2, 3, 4))


@torch.no_grad()
def predict(
    model: S3DG,
    clips: ClipSet,
    stream: str,
    *,
    rows: np.ndarray | None = None,
    outputs: Callable[[S3DG, Tensor], Tensor] = infer,
) -> np.ndarray:
    """Logits (N, K), float32, of every clip of a split in its order, or of some rows; nan where it could not be read.

    Of a clip with several views they are the log of the mean softmax. The model is left in inference mode.
    """
    model.eval()
    rows = np.arange(len(clips)) if rows is None else rows
    # A GPU needs many small clips to be kept busy.
    size = max(8, AT_ONCE // math.prod(clips.size)) if clips.labels.device.type == "cuda" else 64
    found: dict[int, list[np.ndarray]] = {row: [] for row in rows.tolist()}
    width = 0
    steps = [(part, ()) for part in np.split(rows, range(size, len(rows), size))]
    for batch in clips.batches(steps, (stream,)):
        for part in range(0, len(batch.index), size):
            values = outputs(model, batch.inputs[stream][part : part + size]).cpu().numpy()
            width = values.shape[1]
            for row, value in zip(batch.index[part : part + size].tolist(), values, strict=True):
                found[row].append(value)
    whole = [np.full(width, np.nan) if not v else v[0] if len(v) == 1 else fuse(v) for v in found.values()]
    return np.stack(whole).astype(np.float32) if whole else np.zeros((0, width), np.float32)


@torch.no_grad()
def calibrate(model: nn.Module, clips: Clips, stream: str, *, batch_size: int = 64) -> nn.Module:
    """Sets every batch norm to the statistics of these clips, and nothing else; the model is left in inference mode.

    Without it an untrained network passes next to nothing on, and is no fair control.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    model.train()
    for index in torch.arange(len(clips)).chunk(max(1, len(clips) // batch_size)):
        model(clips.inputs(stream, index.to(clips.labels.device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def accuracy(logits: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """`top1` in [0, 1] over all clips, and `<group>/top1` where there are several groups.

    Raises ValueError where not as many clips were scored as there are labels.
    """
    if len(logits) != len(labels):
        raise ValueError(f"{len(logits)} clips were scored but the split has {len(labels)}")
    right = logits.argmax(1) == np.asarray(labels)
    groups = np.asarray(groups)
    scores = {"top1": float(right.mean())}
    names = sorted(set(groups))
    if len(names) > 1:
        scores |= {f"{name}/top1": float(right[groups == name].mean()) for name in names}
    return scores


def fuse(members: Sequence[np.ndarray], *, by: str = "softmax") -> np.ndarray:
    """Log of the mean softmax (N, K) of several networks' logits (N, K), the study's fusion of two streams; or, by
    logits, their mean.

    Raises ValueError where the networks did not score the same clips and classes.
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
