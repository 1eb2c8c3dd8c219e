"""The layers of S3D-G: convolutions over space or time alone, batch norm with ReLU, pools, gates, Inception blocks.

Activations are (B, C, T, H, W) in channels-last memory format, so that convolutions over space or time alone run as 2-D
convolutions without a copy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3d.s3dg import ops


def channels_last(x: Tensor) -> Tensor:
    """Views (B, C, T, H, W) as (B, T, H, W, C); copies only if channels are not innermost in memory."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


def channels_first(x: Tensor) -> Tensor:
    """Views (B, T, H, W, C) as (B, C, T, H, W)."""
    return x.permute(0, 4, 1, 2, 3)


class Conv3dAs2d(nn.Conv3d):
    """A 1x1x1, 1xkxk or kx1x1 convolution with stride 1 and SAME padding, computed as a 2-D convolution.

    With `relu_bias` (C,), `forward` returns relu(convolution + relu_bias).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel, padding="same", bias=False)

    def forward(self, x: Tensor, relu_bias: Tensor | None = None) -> Tensor:
        x = channels_last(x)
        match self.kernel_size:
            case (1, 1, 1):
                return channels_first(ops.linear(x, self.weight.flatten(1), relu_bias))
            case (1, k, _):  # each frame is an image
                images, padding = x.flatten(0, 1).permute(0, 3, 1, 2), (k // 2, k // 2)
                y = ops.conv2d(images, self.weight.squeeze(2), relu_bias, padding=padding)
                return channels_first(y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2]))
            case (k, 1, 1):  # each clip is an image of T x HW
                images, padding = x.flatten(2, 3).permute(0, 3, 1, 2), (k // 2, 0)
                y = ops.conv2d(images, self.weight.squeeze(3), relu_bias, padding=padding)
                return channels_first(y.permute(0, 2, 3, 1).unflatten(2, x.shape[2:4]))


class Stem(nn.Conv3d):
    """The 3x7x7 convolution with stride 2.

    The kernels gather the 3x7 taps over time and height into channels (`ops.stem_taps`), for a convolution with 1x7
    over the width. On a CPU the convolution as it is takes a third of the time.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (3, 7, 7), 2, bias=False)

    def forward(self, x: Tensor, relu_bias: Tensor | None = None) -> Tensor:
        if not ops.kernels_support(x):
            padded = ops.pad_same(x, self.kernel_size, self.stride).contiguous(memory_format=torch.channels_last_3d)
            return F.conv3d(padded, self.weight, None, self.stride)
        taps = ops.stem_taps(x)
        weight = self.weight.flatten(1, 3)
        weight = F.pad(weight, (0, 0, 0, taps.shape[-1] - weight.shape[1]))[:, :, None]
        y = ops.conv2d(taps.flatten(0, 1).permute(0, 3, 1, 2), weight, relu_bias, stride=(1, 2))
        return channels_first(y.permute(0, 2, 3, 1).unflatten(0, taps.shape[:2]))


class Bias(nn.Module):
    """Adds a bias per channel, instead of a batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.to(x.dtype)[:, None, None, None]


class ConvBlock(nn.Module):
    """Convolution, then batch norm without scale (or, with norm=False, a bias), then ReLU."""

    def __init__(self, conv: nn.Conv3d, *, norm: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.norm = Bias(conv.out_channels)
        if norm:
            # Not TF-slim's decay of 0.999, which needs tens of thousands of steps to converge.
            self.norm = nn.BatchNorm3d(conv.out_channels, eps=1e-3, momentum=0.1)
            self.norm.weight.requires_grad_(False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if not ops.kernels_support(x) or not self.can_fuse():
            return self.relu(self.norm(self.conv(x)))
        if isinstance(self.norm, Bias):
            if ops.can_fuse_conv_relu(x):
                return self.conv(x, self.norm.bias)
            return channels_first(ops.norm_relu(channels_last(self.conv(x)), [self.norm.bias])[0])
        return channels_first(_norm_relu(channels_last(self.conv(x)), [self.norm])[0])

    def can_fuse(self) -> bool:
        """Whether one kernel may compute norm and ReLU: no submodule was swapped or has hooks, the scale is frozen."""
        if type(self.relu) is not nn.ReLU or any(map(_has_hooks, (self.conv, self.norm, self.relu))):
            return False
        if type(self.norm) is nn.BatchNorm3d:
            norm = self.norm
            return not norm.weight.requires_grad and norm.track_running_stats and norm.running_mean is not None
        return type(self.norm) is Bias


def _norm_relu(x: Tensor, norms: Sequence[nn.BatchNorm3d]) -> Sequence[Tensor]:
    """Computes batch norm and ReLU of x (B, T, H, W, ΣC), whose channels are those of one or several norms."""
    norm = norms[0]
    if norm.training:
        if x.numel() == x.shape[-1]:
            raise ValueError("batch norm cannot train on one value per channel: give larger or more clips")
        momentum = 1 / (norm.num_batches_tracked.item() + 1) if norm.momentum is None else norm.momentum
        running = zip(*((n.running_mean, n.running_var, n.num_batches_tracked) for n in norms), strict=True)
        mean, var = ops.batch_stats(x, *map(list, running), momentum)
    else:
        running = zip(*((n.running_mean, n.running_var) for n in norms), strict=True)
        mean, var = (torch.cat(values) if len(values) > 1 else values[0] for values in running)
    return ops.norm_relu(x, [n.bias for n in norms], mean, var, norm.eps, norm.training)


def _has_hooks(module: nn.Module) -> bool:
    """Whether calling the module would run a forward or backward hook."""
    if torch.nn.modules.module._has_any_global_hook():
        return True
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


class SameMaxPool3d(nn.Module):
    """Max pool with SAME padding."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(ops.max_pool(channels_last(x), self.kernel_size[:2], self.stride[:2]))


class SeparableConv(nn.Sequential):
    """A 1x3x3 block with batch norm, then a 3x1x1 block with a bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.spatial = ConvBlock(Conv3dAs2d(in_channels, out_channels, (1, 3, 3)))
        self.temporal = ConvBlock(Conv3dAs2d(out_channels, out_channels, (3, 1, 1)), norm=False)


class SelfGating(nn.Module):
    """Feature gating, x · sigmoid(W · mean of x over T, H, W), of each branch; concatenates the branches along C.

    Xie et al. 2018, sec. 5. `pool` as in `Mixed`.
    """

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.transformer_W = nn.ParameterList(torch.empty(c, c) for c in channels)

    def forward(self, *xs: Tensor, pool: SameMaxPool3d | None = None) -> Tensor:
        branches, weights = [channels_last(x) for x in xs], list(self.transformer_W)
        if pool is None:
            return channels_first(ops.gate(branches, weights))
        return channels_first(ops.gate_pool(branches, weights, pool.kernel_size[:2], pool.stride[:2]))


class GatedConv(nn.Sequential):
    """A separable convolution and its gate; `pool` as in `Mixed`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(SeparableConv(in_channels, out_channels), SelfGating(out_channels))

    def forward(self, x: Tensor, pool: SameMaxPool3d | None = None) -> Tensor:
        convolution, self_gating = self
        return self_gating(convolution(x), pool=pool)


class Mixed(nn.Module):
    """Inception block: four gated branches, concatenated.

    With `pool`, `forward` returns the pool of that (where `can_pool`), and spares a pass over the activations.

    Args:
        in_channels: Channels of the input.
        branches: Output channels of 1x1x1; of 1x1x1 and a separable convolution, twice; of 1x1x1 after a pool.
    """

    def __init__(self, in_channels: int, branches: tuple) -> None:
        super().__init__()
        b0, (b1a, b1b), (b2a, b2b), b3 = branches
        point = (1, 1, 1)
        self.Branch_0 = ConvBlock(Conv3dAs2d(in_channels, b0, point))
        self.Branch_1 = nn.Sequential(ConvBlock(Conv3dAs2d(in_channels, b1a, point)), SeparableConv(b1a, b1b))
        self.Branch_2 = nn.Sequential(ConvBlock(Conv3dAs2d(in_channels, b2a, point)), SeparableConv(b2a, b2b))
        self.Branch_3 = nn.Sequential(SameMaxPool3d((3, 3, 3), point), ConvBlock(Conv3dAs2d(in_channels, b3, point)))
        self.self_gating = SelfGating(b0, b1b, b2b, b3)

    def forward(self, x: Tensor, pool: SameMaxPool3d | None = None) -> Tensor:
        if self._can_join(x):
            y0, y1, y2 = self._join(x)
            y1, y2 = self.Branch_1[1](y1), self.Branch_2[1](y2)
        else:
            y0, y1, y2 = self.Branch_0(x), self.Branch_1(x), self.Branch_2(x)
        return self.self_gating(y0, y1, y2, self.Branch_3(x), pool=pool)

    def _points(self) -> tuple[ConvBlock, ConvBlock, ConvBlock]:
        """The 1x1x1 convolutions of the input itself."""
        return self.Branch_0, self.Branch_1[0], self.Branch_2[0]

    def _can_join(self, x: Tensor) -> bool:
        """Whether one product may compute the three: they have like batch norms, and no module has hooks."""
        if torch.compiler.is_compiling() or not ops.kernels_support(x):
            return False
        points = self._points()
        if any(map(_has_hooks, (*points, self.Branch_1, self.Branch_2))) or not all(p.can_fuse() for p in points):
            return False
        if any(type(p.conv) is not Conv3dAs2d or type(p.norm) is not nn.BatchNorm3d for p in points):
            return False
        return len({(p.norm.eps, p.norm.momentum, p.norm.training) for p in points}) == 1

    def _join(self, x: Tensor) -> list[Tensor]:
        points = self._points()
        weight = torch.cat([p.conv.weight.flatten(1) for p in points])
        ys = _norm_relu(ops.linear(channels_last(x), weight), [p.norm for p in points])
        return [channels_first(y) for y in ys]


def can_pool(stage: nn.Module, pool: nn.Module | None, x: Tensor) -> bool:
    """Whether a stage may compute the pool that follows it as well, for an activation x: no module has hooks."""
    if type(stage) not in (Mixed, GatedConv) or type(pool) is not SameMaxPool3d or not ops.can_pool_gated(x):
        return False
    self_gating = stage.self_gating if isinstance(stage, Mixed) else stage[1]
    return type(self_gating) is SelfGating and not any(map(_has_hooks, (stage, self_gating, pool)))
