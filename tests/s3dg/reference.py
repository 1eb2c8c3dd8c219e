"""A plain S3D-G as TF-slim defines it, to test the package's against: 3-D convolutions and pools with SAME padding.

Slow and short. Tensors have TF-slim's names; weights and clips are chosen so that a mistake changes the result.
"""

import numpy as np
import torch
from torch.nn import functional as F

from d3d.s3dg.network import MIXED, POOL_BEFORE, POOLS, S3DG
from d3d.s3dg.weights import tf_names


def padded(x, kernel, stride, value=0.0):
    pads = []
    for n, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads, value=value)


def conv(x, weight, stride=(1, 1, 1)):
    return F.conv3d(padded(x, weight.shape[2:], stride), weight, stride=stride)


def pool(x, kernel, stride):
    return F.max_pool3d(padded(x, kernel, stride, float("-inf")), kernel, stride)


def block(v, name, x, stride=(1, 1, 1), training=False):
    x = conv(x, v[f"{name}/weights"], stride)
    mean, var = v[f"{name}/BatchNorm/moving_mean"], v[f"{name}/BatchNorm/moving_variance"]
    if training:
        mean, var = x.mean((0, 2, 3, 4)), x.var((0, 2, 3, 4), unbiased=False)
    mean, var, beta = (p[:, None, None, None] for p in (mean, var, v[f"{name}/BatchNorm/beta"]))
    return F.relu((x - mean) / (var + 1e-3).sqrt() + beta)


def separable(v, name, x, training):
    x = conv(block(v, name, x, training=training), v[f"{name}/temporal/weights"])
    return F.relu(x + v[f"{name}/temporal/biases"][:, None, None, None])


def gated(v, name, x):
    weight = v[f"{name}/self_gating/transformer_W/weights"]
    return x * torch.sigmoid(x.mean((2, 3, 4)) @ weight.T)[:, :, None, None, None]


def network(v, x, *, training=False):
    """Computes logits and every endpoint of clips x (B, C, T, H, W); v as `variables` returns it."""
    endpoints = {"Conv2d_1a_7x7": block(v, "Conv2d_1a_7x7", x, (2, 2, 2), training)}
    x = endpoints["MaxPool_2a_3x3"] = pool(endpoints["Conv2d_1a_7x7"], *POOLS["MaxPool_2a_3x3"])
    x = endpoints["Conv2d_2b_1x1"] = block(v, "Conv2d_2b_1x1", x, training=training)
    x = endpoints["Conv2d_2c_3x3"] = gated(v, "Conv2d_2c_3x3", separable(v, "Conv2d_2c_3x3", x, training))
    for name in MIXED:
        if name in POOL_BEFORE:
            x = endpoints[POOL_BEFORE[name]] = pool(x, *POOLS[POOL_BEFORE[name]])
        a, b, c, d = (f"{name}/Branch_{i}/Conv2d_" for i in range(4))
        b0 = gated(v, f"{a}0a_1x1", block(v, f"{a}0a_1x1", x, training=training))
        b1, b2 = (separable(v, f"{n}0b_3x3", block(v, f"{n}0a_1x1", x, training=training), training) for n in (b, c))
        b3 = block(v, f"{d}0b_1x1", pool(x, (3, 3, 3), (1, 1, 1)), training=training)
        b1, b2, b3 = gated(v, f"{b}0b_3x3", b1), gated(v, f"{c}0b_3x3", b2), gated(v, f"{d}0b_1x1", b3)
        x = endpoints[name] = torch.cat([b0, b1, b2, b3], 1)
    window = tuple(min(k, n) for k, n in zip((2, 7, 7), x.shape[2:], strict=True))
    x = F.conv3d(F.avg_pool3d(x, window, 1), v["Logits/Conv2d_0c_1x1/weights"], v["Logits/Conv2d_0c_1x1/biases"])
    return x.mean((2, 3, 4)), endpoints


def randomize(model: S3DG, seed: int = 0) -> S3DG:
    """Draws weights and statistics that keep activations of order one, so that every layer matters for the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            draw = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + draw.abs())
            elif name.endswith(("bias", "running_mean")):
                tensor.copy_(draw / 4)
            elif tensor.ndim > 1:
                tensor.copy_(draw * (4 / tensor[0].numel()) ** 0.5)
    return model


def smooth_clips(*shape: int, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    """Draws clips (B, C, T, H, W) in [0, 1] that vary over large patches: the network would average noise out."""
    coarse = torch.rand(*shape[:2], 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, shape[2:], mode="trilinear", align_corners=True).to(dtype)


def variables(model: S3DG) -> dict[str, torch.Tensor]:
    """Maps TF-slim's names to the network's tensors: kernels (out, in, t, h, w), gates (out, in)."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {tf: tensors[name] for name, tf in tf_names(model).items()}


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(1e-20)).item()


def tf_variables(model, scope: str = "InceptionV1/") -> dict[str, np.ndarray]:
    """The network's tensors as TF-slim stores them, by name: kernels (t, h, w, in, out)."""
    variables = {}
    for name, tf in tf_names(model).items():
        tensor = model.state_dict()[name]
        tensor = tensor[..., None, None, None] if "transformer_W" in name else tensor
        variables[scope + tf] = (tensor.permute(2, 3, 4, 1, 0) if tensor.ndim == 5 else tensor).numpy()
    return variables
