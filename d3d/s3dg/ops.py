"""S3D-G's operations: convolution with ReLU, batch norm with ReLU, gating, pooling, and the stem's taps.

Activations are (B, T, H, W, C). On a GPU the Triton kernels compute them; elsewhere, and in float64, PyTorch does. Only
PyTorch's operations have second derivatives.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

try:
    from d3d.s3dg import gating, kernels, pooling
except ImportError:  # no Triton on this platform
    gating = kernels = pooling = None

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The kernels index within a clip in 32 bits, and cuDNN's convolution with ReLU within a batch.
INT32_LIMIT = 2**31


def kernels_support(x: Tensor) -> bool:
    """Whether the kernels accept x: on a GPU, not empty, in float32 or half precision."""
    return kernels is not None and x.is_cuda and x.dtype in KERNEL_DTYPES and x.numel() > 0


def can_fuse_conv_relu(x: Tensor) -> bool:
    """Whether one cuDNN kernel may compute convolution, bias and ReLU of x: not under torch.compile."""
    if torch.compiler.is_compiling() or not x.is_cuda or not kernels_support(x):
        return False
    return torch.backends.cudnn.enabled and torch.version.hip is None


def same_pad(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Computes TensorFlow's SAME padding before and after an axis; after it is one more if the total is odd."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pads clips (B, C, T, H, W) with the zeros of SAME padding."""
    pads = [same_pad(*axis) for axis in zip(x.shape[2:], kernel, stride, strict=True)]
    return F.pad(x, [n for axis in reversed(pads) for n in axis])


def linear(x: Tensor, weight: Tensor, relu_bias: Tensor | None = None) -> Tensor:
    """Computes a linear layer, with `relu_bias` also relu(result + relu_bias), which is one kernel without gradient.

    Args:
        x: (..., C).
        weight: (K, C).
        relu_bias: (K,); None: no bias and no ReLU.

    Returns:
        (..., K).
    """
    if relu_bias is None:
        return F.linear(x, weight)
    if torch.is_grad_enabled():
        return norm_relu(F.linear(x, weight), [relu_bias])[0]
    dtype = compute_dtype(x)
    y = torch._addmm_activation(relu_bias.to(dtype), x.flatten(0, -2).to(dtype), weight.t().to(dtype))
    return y.unflatten(0, x.shape[:-1])


def conv2d(
    x: Tensor,
    weight: Tensor,
    relu_bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """Convolves images (N, C, H, W); `relu_bias` as in `linear`, only where `can_fuse_conv_relu(x)`."""
    if relu_bias is None:
        return F.conv2d(x, weight, None, stride, padding)
    if x.numel() >= INT32_LIMIT:
        y = F.conv2d(x, weight, None, stride, padding).permute(0, 2, 3, 1).contiguous()
        return norm_relu(y, [relu_bias])[0].permute(0, 3, 1, 2)
    dtype = compute_dtype(x)
    if torch.is_grad_enabled():
        return _ConvRelu.apply(x.to(dtype), weight.to(dtype), relu_bias, stride, padding)
    return torch.cudnn_convolution_relu(x.to(dtype), weight.to(dtype), relu_bias.to(dtype), stride, padding, (1, 1), 1)


class _ConvRelu(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        y = torch.cudnn_convolution_relu(x, weight, bias.to(x.dtype), stride, padding, (1, 1), 1)
        ctx.save_for_backward(x, weight, bias, y)
        ctx.conv_args = stride, padding, (1, 1), False, (0, 0), 1
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, y = ctx.saved_tensors
        dy, y = (t.permute(0, 2, 3, 1).contiguous() for t in (dy, y))
        d, dbias = kernels.relu_backward(dy, y, bias)
        needed = (*ctx.needs_input_grad[:2], False)
        d = d.permute(0, 3, 1, 2)
        dx, dweight, _ = torch.ops.aten.convolution_backward(d, x, weight, None, *ctx.conv_args, needed)
        return dx, dweight, dbias, None, None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a convolution of x computes, which autocast may choose."""
    device = x.device.type
    if x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(device) if device != "meta" and torch.is_autocast_enabled(device) else x.dtype


def norm_relu(
    x: Tensor,
    biases: Sequence[Tensor],
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 0.0,
    training: bool = False,
) -> Sequence[Tensor]:
    """Computes relu((x - mean) / sqrt(var + eps) + bias), or relu(x + bias) without mean and var.

    Needs `kernels_support(x)`.

    Args:
        x: (B, T, H, W, ΣC), the channels of one or several batch norms.
        biases: (C,) of each.
        mean, var: (ΣC,); None: not normalised.
        eps: Added to var.
        training: Whether mean and var are those of x itself, so that gradients flow through them.

    Returns:
        (B, T, H, W, C) of each batch norm.
    """
    if torch.is_grad_enabled():
        return _NormRelu.apply(x, mean, var, eps, training, *biases)
    return kernels.norm_relu(x, biases, mean, var, eps)


class _NormRelu(Function):
    @staticmethod
    def forward(ctx, x, mean, var, eps, training, *biases):
        ctx.save_for_backward(x, mean, var, *biases)
        ctx.eps, ctx.training = eps, training
        return tuple(kernels.norm_relu(x, biases, mean, var, eps))

    @staticmethod
    @once_differentiable
    def backward(ctx, *dys):
        x, mean, var, *biases = ctx.saved_tensors
        dys = [dy.contiguous() for dy in dys]
        dx, *dbiases = kernels.norm_relu_backward(dys, x, biases, mean, var, ctx.eps, ctx.training)
        return dx, None, None, None, None, *dbiases


@torch.no_grad()
def batch_stats(
    x: Tensor,
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    num_batches: Sequence[Tensor],
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """Computes the mean and biased variance (ΣC,) of x (..., ΣC), the channels of one or several batch norms.

    Updates the running statistics (C,) of each in place, and adds one to its number of batches. Needs
    `kernels_support(x)`.
    """
    return kernels.batch_stats(x, running_means, running_vars, num_batches, momentum)


def gate(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Computes x · sigmoid(W · mean of x over T, H, W) of each branch x, W (C, C); concatenates them along C."""
    if kernels_support(xs[0]):
        return _Gate.apply(*xs, *weights) if torch.is_grad_enabled() else gating.gate(xs, weights)[0]
    gates = [torch.sigmoid(F.linear(x.mean((1, 2, 3)), w)) for x, w in zip(xs, weights, strict=True)]
    return torch.cat([x * g[:, None, None, None] for x, g in zip(xs, gates, strict=True)], -1)


class _Gate(Function):
    @staticmethod
    def forward(ctx, *tensors):
        n = len(tensors) // 2
        out, means, gates = gating.gate(tensors[:n], tensors[n:])
        ctx.save_for_backward(*tensors, means, gates)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        *tensors, means, gates = ctx.saved_tensors
        n = len(tensors) // 2
        return tuple(gating.gate_backward(dout.contiguous(), tensors[:n], tensors[n:], means, gates))


def max_pool(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Computes a max pool with TensorFlow's SAME padding, which may be one larger after an axis than before it.

    Args:
        x: (B, T, H, W, C).
        kernel: (size over T, size over H and W).
        stride: (stride over T, stride over H and W).

    Returns:
        (B, T', H', W', C).
    """
    (kt, k), (st, s) = kernel, stride
    if kt == 1 < x.shape[1]:
        return _clips(max_pool(_frames(x), kernel, stride), x.shape[1])
    if kernels_support(x) and x[0].numel() < INT32_LIMIT:
        if torch.is_grad_enabled() and x.requires_grad:
            return _MaxPool.apply(x, kernel, stride)
        return pooling.max_pool([x], None, kernel, stride, *_pool_sizes(x.shape[1:4], kernel, stride), False)[0]
    # Space, then time. ceil_mode adds the extra position after an axis where the padding is uneven.
    output_size, pad_before = _pool_sizes(x.shape[1:4], kernel, stride)
    y = F.max_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), k, s, tuple(pad_before[1:]), ceil_mode=True)
    y = y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
    if kt == 1:
        return y
    y = F.max_pool2d(y.flatten(2, 3).permute(0, 3, 1, 2), (kt, 1), (st, 1), (pad_before[0], 0), ceil_mode=True)
    return y.permute(0, 2, 3, 1).unflatten(2, output_size[1:])


def _pool_sizes(size: Sequence[int], kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Computes (T', H', W') and the positions added before T, H and W."""
    axes = list(zip(size, (kernel[0], *2 * kernel[1:]), (stride[0], *2 * stride[1:]), strict=True))
    return [-(-n // s) for n, _, s in axes], [same_pad(*axis)[0] for axis in axes]


def _frames(x: Tensor) -> Tensor:
    """Views clips (B, T, H, W, C) as B · T clips of one frame: without time in a window, every frame is a clip."""
    return x.flatten(0, 1).unsqueeze(1)


def _clips(x: Tensor, frames: int) -> Tensor:
    """Views what `_frames` returned as clips again."""
    return x.squeeze(1).unflatten(0, (-1, frames))


class _MaxPool(Function):
    @staticmethod
    def forward(ctx, x, kernel, stride):
        output_size, pad_before = _pool_sizes(x.shape[1:4], kernel, stride)
        y, indices = pooling.max_pool([x], None, kernel, stride, output_size, pad_before, True)
        ctx.save_for_backward(indices)
        ctx.pool_args = x.shape[4:], x.shape[1:4], kernel, stride, pad_before
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (indices,) = ctx.saved_tensors
        return pooling.max_pool_backward(dy.contiguous(), indices, None, None, *ctx.pool_args)[0], None, None


def gate_pool(
    xs: Sequence[Tensor], weights: Sequence[Tensor], kernel: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Computes `max_pool` of `gate`: pools first, since gates are positive, and never writes the gated activations.

    Needs `can_pool_gated`.
    """
    if torch.is_grad_enabled():
        return _GatePool.apply(kernel, stride, *xs, *weights)
    return _gate_pool(xs, weights, kernel, stride, False)[0]


def can_pool_gated(x: Tensor) -> bool:
    """Whether `gate_pool` may be used for a network's activation x: with kernels, and not under torch.compile."""
    return not torch.compiler.is_compiling() and kernels_support(x) and x[0].numel() < INT32_LIMIT // 4


def _gate_pool(xs, weights, kernel, stride, return_indices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    means, gates = gating.compute_gates(xs, weights)
    frames = kernel[0] == 1
    xs = [_frames(x) for x in xs] if frames else xs
    y, indices = pooling.max_pool(
        xs, gates, kernel, stride, *_pool_sizes(xs[0].shape[1:4], kernel, stride), return_indices
    )
    return _clips(y, len(y) // len(gates)) if frames else y, indices, means, gates


class _GatePool(Function):
    @staticmethod
    def forward(ctx, kernel, stride, *tensors):
        n = len(tensors) // 2
        xs, weights = tensors[:n], tensors[n:]
        y, indices, means, gates = _gate_pool(xs, weights, kernel, stride, True)
        ctx.save_for_backward(*weights, y, indices, means, gates)
        ctx.pool_args, ctx.size = (kernel, stride), xs[0].shape[1:4]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        *weights, y, indices, means, gates = ctx.saved_tensors
        (kernel, stride), size, dy = ctx.pool_args, ctx.size, dy.contiguous()
        addends, dweights = gating.pooled_gate_gradients(dy, y, weights, means, gates, math.prod(size))
        frames = kernel[0] == 1
        size, dy = ((1, *size[1:]), _frames(dy)) if frames else (size, dy)
        _, pad_before = _pool_sizes(size, kernel, stride)
        channels = [len(w) for w in weights]
        dxs = pooling.max_pool_backward(dy, indices, gates, addends, channels, size, kernel, stride, pad_before)
        return None, None, *((_clips(dx, ctx.size[0]) for dx in dxs) if frames else dxs), *dweights


def stem_taps(x: Tensor) -> Tensor:
    """Gathers the inputs of the stem's 3x7x7 kernel over time and height into channels.

    A 1x7 convolution of the result with stride 2 over the columns, without padding, equals the stem.

    Args:
        x: Clips (B, C, T, H, W).

    Returns:
        (B, ⌈T/2⌉, ⌈H/2⌉, 2 ⌈W/2⌉ + 5, taps): 21 C taps, zero-padded to a multiple of 8, in the dtype of the stem's
        convolution.
    """
    t, h, w = (-(-n // 2) for n in x.shape[2:])
    if kernels_support(x) and x[0].numel() < INT32_LIMIT:
        output_size = (t, h, 2 * w + 5)
        pad_before = [same_pad(n, k, 2)[0] for n, k in zip(x.shape[2:], (3, 7, 7), strict=True)]
        max_offset = sum((n - 1) * stride for n, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
        x = x if max_offset < INT32_LIMIT else x.contiguous()
        if torch.is_grad_enabled() and x.requires_grad:
            return _StemTaps.apply(x, compute_dtype(x), output_size, pad_before)
        return pooling.stem_taps(x, compute_dtype(x), output_size, pad_before)
    x = pad_same(x.to(compute_dtype(x)), (3, 7, 7), (2, 2, 2))
    x = x.unfold(2, 3, 2).unfold(3, 7, 2)  # B, C, T', H', W, 3, 7
    x = x.permute(0, 2, 3, 4, 1, 5, 6).flatten(4)
    return F.pad(x, (0, -x.shape[-1] % 8))


class _StemTaps(Function):
    @staticmethod
    def forward(ctx, x, dtype, output_size, pad_before):
        ctx.shape, ctx.dtype, ctx.pad_before = x.shape, x.dtype, pad_before
        return pooling.stem_taps(x, dtype, output_size, pad_before)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        # Only attribution needs this: adds each tap's gradient to the pixels it was read from.
        b, c, *input_size = ctx.shape
        t, h, columns = dy.shape[1:4]
        dx = dy.new_zeros(b, c, 2 * t + 1, 2 * h + 5, columns, dtype=torch.float32)
        taps = dy[..., : 21 * c].unflatten(-1, (c, 3, 7)).permute(5, 6, 0, 4, 1, 2, 3)
        for i in range(3):
            for j in range(7):
                dx[:, :, i : i + 2 * t : 2, j : j + 2 * h : 2] += taps[i, j]
        unpadded = (slice(start, start + n) for start, n in zip(ctx.pad_before, input_size, strict=True))
        return dx[:, :, *unpadded].to(ctx.dtype), None, None, None
