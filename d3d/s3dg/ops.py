"""What S3D-G does around its convolutions: ReLU with norm or bias, gating, pooling, and the stem's taps.

Activations are (B, T, H, W, C). On a GPU the kernels of `s3dg_kernels` and `s3dg_pooling` compute them; elsewhere, and
in float64, PyTorch does. Gradients of gradients exist only there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

try:
    from d3d.s3dg import kernels, pooling
except ImportError:  # no Triton on this platform
    kernels = pooling = None

KINDS = (torch.float32, torch.bfloat16, torch.float16)
# Within a clip the kernels count in 32 bits, and so does cuDNN's fused convolution within a batch.
MOST = 2**31


def fused(x: Tensor) -> bool:
    """Whether the kernels take this tensor."""
    return kernels is not None and x.is_cuda and x.dtype in KINDS and x.numel() > 0


def convolves_with_relu(x: Tensor) -> bool:
    """Whether convolution, bias and ReLU of this tensor can be one kernel: without gradient, by cuDNN, not compiled."""
    eager = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return eager and fused(x) and torch.backends.cudnn.enabled and torch.version.hip is None


def same_before(size: int, kernel: int, stride: int) -> int:
    """How much TensorFlow's SAME padding puts before an axis; where the total is odd, one more comes after."""
    return max((-(-size // stride) - 1) * stride + kernel - size, 0) // 2


def linear(x: Tensor, weight: Tensor, relu_bias: Tensor | None = None) -> Tensor:
    """x (..., C) times weight (K, C); with `relu_bias` relu of that plus it, by one kernel and without gradient."""
    if relu_bias is None:
        return F.linear(x, weight)
    kind = _kind(x)
    y = torch._addmm_activation(relu_bias.to(kind), x.flatten(0, -2).to(kind), weight.t().to(kind))
    return y.unflatten(0, x.shape[:-1])


def conv2d(
    x: Tensor,
    weight: Tensor,
    relu_bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """A convolution of images (N, C, H, W); with `relu_bias` as `linear`, on a GPU."""
    if relu_bias is None:
        return F.conv2d(x, weight, None, stride, padding)
    if x.numel() >= MOST:
        y = F.conv2d(x, weight, None, stride, padding).permute(0, 2, 3, 1).contiguous()
        return kernels.norm_relu(y, relu_bias, None, None, 0.0).permute(0, 3, 1, 2)
    kind = _kind(x)
    return torch.cudnn_convolution_relu(x.to(kind), weight.to(kind), relu_bias.to(kind), stride, padding, (1, 1), 1)


def _kind(x: Tensor) -> torch.dtype:
    """The type that a convolution of x computes in."""
    device = x.device.type
    if x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(device) if device != "meta" and torch.is_autocast_enabled(device) else x.dtype


def norm_relu(
    x: Tensor,
    bias: Tensor,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 0.0,
    batch: bool = False,
) -> Tensor:
    """relu((x - mean) / sqrt(var + eps) + bias), or without mean and var relu(x + bias). Needs `fused(x)`.

    `batch` says that the statistics are those of x itself, through which gradients then flow.
    """
    if torch.is_grad_enabled():
        return _NormRelu.apply(x, bias, mean, var, eps, batch)
    return kernels.norm_relu(x, bias, mean, var, eps)


class _NormRelu(Function):
    @staticmethod
    def forward(ctx, x, bias, mean, var, eps, batch):
        ctx.save_for_backward(x, bias, mean, var)
        ctx.eps, ctx.batch = eps, batch
        return kernels.norm_relu(x, bias, mean, var, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        dx, dbias = kernels.norm_relu_backward(dy.contiguous(), *ctx.saved_tensors, ctx.eps, ctx.batch)
        return dx, dbias, None, None, None, None


@torch.no_grad()
def batch_stats(x: Tensor, running_mean: Tensor, running_var: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of x; moves the running ones towards them by `factor`. Needs `fused(x)`."""
    return kernels.batch_stats(x, running_mean, running_var, factor)


def gate(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Each x · sigmoid(W · mean of x over T, H, W), joined along the channels; weights (C, C)."""
    if fused(xs[0]):
        return _Gate.apply(*xs, *weights) if torch.is_grad_enabled() else kernels.gate(xs, weights)[0]
    gates = [torch.sigmoid(F.linear(x.mean((1, 2, 3)), w)) for x, w in zip(xs, weights, strict=True)]
    return torch.cat([x * g[:, None, None, None] for x, g in zip(xs, gates, strict=True)], -1)


class _Gate(Function):
    @staticmethod
    def forward(ctx, *tensors):
        n = len(tensors) // 2
        out, means, gates = kernels.gate(tensors[:n], tensors[n:])
        ctx.save_for_backward(*tensors, means, gates)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        *tensors, means, gates = ctx.saved_tensors
        n = len(tensors) // 2
        return tuple(kernels.gate_backward(dout.contiguous(), tensors[:n], tensors[n:], means, gates))


def max_pool(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Max pool with SAME padding, which is asymmetric where a stride meets an even size.

    Kernel and stride are given for time and for space.
    """
    (kt, k), (st, s) = kernel, stride
    if kt == 1 < x.shape[1]:  # over space alone every frame is a clip
        return max_pool(x.flatten(0, 1).unsqueeze(1), kernel, stride).squeeze(1).unflatten(0, x.shape[:2])
    size = [-(-n // step) for n, step in zip(x.shape[1:4], (st, s, s), strict=True)]
    before = [same_before(*axis) for axis in zip(x.shape[1:4], (kt, k, k), (st, s, s), strict=True)]
    if fused(x) and x[0].numel() < MOST:
        if torch.is_grad_enabled() and x.requires_grad:
            return _MaxPool.apply(x, kernel, stride, size, before)
        return pooling.max_pool(x, kernel, stride, size, before, False)[0]
    # Space, then time. Where the padding is uneven ceil_mode adds the one that is missing after.
    y = F.max_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), k, s, tuple(before[1:]), ceil_mode=True)
    y = y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    if kt == 1:
        return y
    y = F.max_pool2d(y.flatten(2, 3).permute(0, 3, 1, 2), (kt, 1), (st, 1), (before[0], 0), ceil_mode=True)
    return y.permute(0, 2, 3, 1).unflatten(2, size[1:])


class _MaxPool(Function):
    @staticmethod
    def forward(ctx, x, kernel, stride, size, before):
        y, which = pooling.max_pool(x, kernel, stride, size, before, True)
        ctx.save_for_backward(which)
        ctx.given = x.shape[1:4], kernel, stride, before
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (which,) = ctx.saved_tensors
        return pooling.max_pool_backward(dy.contiguous(), which, *ctx.given), None, None, None, None


def stem_taps(x: Tensor) -> Tensor:
    """What the stem's 3x7x7 kernel of stride 2 sees, its taps over time and height as channels.

    x (B, C, T, H, W) -> (B, T', H', W + 5 padded, 21 C and zeros up to a multiple of 8), in the type that the stem
    computes in: a 1x7 convolution of stride 2 over it, unpadded, is the stem.
    """
    t, h, w = (-(-n // 2) for n in x.shape[2:])
    before = [same_before(n, k, 2) for n, k in zip(x.shape[2:], (3, 7, 7), strict=True)]
    if fused(x) and x[0].numel() < MOST:
        size = (t, h, 2 * w + 5)
        reach = sum((n - 1) * stride for n, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
        x = x if reach < MOST else x.contiguous()
        if torch.is_grad_enabled() and x.requires_grad:
            return _StemTaps.apply(x, _kind(x), size, before)
        return pooling.stem_taps(x, _kind(x), size, before)
    whole = (2 * t + 1, 2 * h + 5, 2 * w + 5)
    after = [total - b - n for total, b, n in zip(whole, before, x.shape[2:], strict=True)]
    x = F.pad(x.to(_kind(x)), [before[2], after[2], before[1], after[1], before[0], after[0]])
    x = x.unfold(2, 3, 2).unfold(3, 7, 2)  # B, C, T', H', W, 3, 7
    x = x.permute(0, 2, 3, 4, 1, 5, 6).flatten(4)
    return F.pad(x, (0, -x.shape[-1] % 8))


class _StemTaps(Function):
    @staticmethod
    def forward(ctx, x, kind, size, before):
        ctx.shape, ctx.kind, ctx.before = x.shape, x.dtype, before
        return pooling.stem_taps(x, kind, size, before)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        # Wanted by attribution alone: each tap's gradient goes back to the pixels it saw.
        b, c, *size = ctx.shape
        t, h, columns = dy.shape[1:4]
        dx = dy.new_zeros(b, c, 2 * t + 1, 2 * h + 5, columns, dtype=torch.float32)
        taps = dy[..., : 21 * c].unflatten(-1, (c, 3, 7)).permute(5, 6, 0, 4, 1, 2, 3)
        for i in range(3):
            for j in range(7):
                dx[:, :, i : i + 2 * t : 2, j : j + 2 * h : 2] += taps[i, j]
        inside = (slice(start, start + n) for start, n in zip(ctx.before, size, strict=True))
        return dx[:, :, *inside].to(ctx.kind), None, None, None
