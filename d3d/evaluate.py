"""Predictions on a whole split, their fusion over networks, and accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from d3d.clips import Clips, ClipSet


@dataclass(frozen=True, kw_only=True)
class FuseConfig:
    """Where the networks to fuse are; the field is the parameter of notebooks/experiments/fuse.ipynb."""

    results: str = "results/local"


@torch.no_grad()
def predict(model: nn.Module, clips: ClipSet, stream: str, *, batch_size: int = 64) -> np.ndarray:
    """Logits (N, K), float32, of every clip of a split in its order; nan where it could not be read.

    Of a clip with several views they are the log of the mean softmax. The model is left in inference mode.
    """
    model.eval()
    steps = [(rows, ()) for rows in np.split(np.arange(len(clips)), range(batch_size, len(clips), batch_size))]
    found: list[list[np.ndarray]] = [[] for _ in range(len(clips))]
    classes = 0
    for batch in clips.batches(steps, (stream,)):
        for part in range(0, len(batch.index), batch_size):
            logits = infer(model, batch.inputs[stream][part : part + batch_size]).cpu().numpy()
            classes = logits.shape[1]
            for row, values in zip(batch.index[part : part + batch_size].tolist(), logits, strict=True):
                found[row].append(values)
    whole = [np.full(classes, np.nan) if not v else v[0] if len(v) == 1 else fuse(v) for v in found]
    return np.stack(whole).astype(np.float32)


@torch.no_grad()
def infer(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits (B, K), float32, of inputs (B, C, T, H, W) on their device, in bfloat16 on a GPU."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.device.type == "cuda"):
        return model(inputs).float()


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


def fuse(members: Sequence[np.ndarray]) -> np.ndarray:
    """Log of the mean softmax (N, K) of several networks' logits (N, K): the study's fusion of two streams.

    Raises ValueError where the networks did not score the same clips and classes.
    """
    shapes = {m.shape for m in members}
    if len(shapes) != 1:
        raise ValueError(f"only logits of the same clips and classes can be fused, these are {sorted(shapes)}")
    shifted = np.stack(members).astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    softmax = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    return np.log(softmax.mean(0))


def score_fusion(members: Sequence[Mapping[str, np.ndarray]]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and arrays of networks fused on every test split, from the arrays beside their records.

    `<split>/top1_gain` is what the fused network has over its best member.

    Raises ValueError where the networks did not score the same clips.
    """
    first = members[0]
    splits = [name.removeprefix("logits/") for name in first if name.startswith("logits/")]
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    for split in splits:
        labels, groups = first[f"labels/{split}"], first[f"groups/{split}"]
        if any(not np.array_equal(m[f"labels/{split}"], labels) for m in members):
            raise ValueError(f"the networks to fuse did not score the same clips of {split!r}")
        logits = fuse([m[f"logits/{split}"] for m in members])
        metrics |= {f"{split}/{name}": value for name, value in accuracy(logits, labels, groups).items()}
        best = max(accuracy(m[f"logits/{split}"], labels, groups)["top1"] for m in members)
        metrics[f"{split}/top1_gain"] = metrics[f"{split}/top1"] - best
        arrays |= {f"logits/{split}": logits.astype(np.float32), f"labels/{split}": labels, f"groups/{split}": groups}
    return metrics, arrays
