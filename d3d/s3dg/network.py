"""S3D-G: separable 3D convolutions with feature gating (Xie et al. 2018), as both streams of D3D use it.

    model = s3dg(num_classes=400)
    logits = model(clips)                                # (B, 3, T, H, W) -> (B, 400)
    features = model.endpoints(clips, ["Mixed_4f"])      # {"Mixed_4f": (B, 832, T/4, H/16, W/16)}

Activations are (B, C, T, H, W) with the channels innermost in memory, so that convolutions over space or time alone
run on 2-D kernels without a copy. For inference `fold` the batch norms; where launching kernels takes longer than they
do, capture the network in a CUDA graph (`torch.cuda.make_graphed_callables`).
"""

import copy
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3d.s3dg import ops

# Channels of the branches of each Mixed block: 1x1, (1x1, 3x3), (1x1, 3x3), pooled 1x1.
MIXED = {
    "Mixed_3b": (64, (96, 128), (16, 32), 32),
    "Mixed_3c": (128, (128, 192), (32, 96), 64),
    "Mixed_4b": (192, (96, 208), (16, 48), 64),
    "Mixed_4c": (160, (112, 224), (24, 64), 64),
    "Mixed_4d": (128, (128, 256), (24, 64), 64),
    "Mixed_4e": (112, (144, 288), (32, 64), 64),
    "Mixed_4f": (256, (160, 320), (32, 128), 128),
    "Mixed_5b": (256, (160, 320), (32, 128), 128),
    "Mixed_5c": (384, (192, 384), (48, 128), 128),
}
BEFORE = {"Mixed_3b": "MaxPool_3a_3x3", "Mixed_4b": "MaxPool_4a_3x3", "Mixed_5b": "MaxPool_5a_2x2"}
POOLS = {
    "MaxPool_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "MaxPool_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}

# The head averages overlapping windows of at most this size and then their logits, which is not a global mean.
HEAD = (2, 7, 7)


class Endpoint(NamedTuple):
    """What an endpoint returns: its channels, and its stride over (T, H, W) in input pixels."""

    channels: int
    stride: tuple[int, int, int]


def _last(x: Tensor) -> Tensor:
    """(B, C, T, H, W) seen as (B, T, H, W, C); copied only where channels are not innermost already."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


def _first(x: Tensor) -> Tensor:
    """(B, T, H, W, C) seen as (B, C, T, H, W)."""
    return x.permute(0, 4, 1, 2, 3)


class Conv3d(nn.Conv3d):
    """A convolution of stride 1 with SAME padding over one point, over space or over time, by 2-D kernels."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(inputs, outputs, kernel, padding="same", bias=False)

    def forward(self, x: Tensor, relu_bias: Tensor | None = None) -> Tensor:
        x = _last(x)
        match self.kernel_size:
            case (1, 1, 1):
                return _first(ops.linear(x, self.weight[:, :, 0, 0, 0], relu_bias))
            case (1, k, _):  # frames as images
                images, padding = x.flatten(0, 1).permute(0, 3, 1, 2), (k // 2, k // 2)
                y = ops.conv2d(images, self.weight[:, :, 0], relu_bias, padding=padding)
                return _first(y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2]))
            case (k, 1, 1):  # time courses as images
                images, padding = x.flatten(2, 3).permute(0, 3, 1, 2), (k // 2, 0)
                y = ops.conv2d(images, self.weight[..., 0], relu_bias, padding=padding)
                return _first(y.permute(0, 2, 3, 1).unflatten(2, x.shape[2:4]))


class Stem(nn.Conv3d):
    """The 3x7x7 convolution of stride 2, as a 1x7 convolution over channels that hold the other taps."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (3, 7, 7), 2, bias=False)

    def forward(self, x: Tensor, relu_bias: Tensor | None = None) -> Tensor:
        taps = ops.stem_taps(x)
        weight = self.weight.flatten(1, 3)
        weight = F.pad(weight, (0, 0, 0, taps.shape[-1] - weight.shape[1]))[:, :, None]
        y = ops.conv2d(taps.flatten(0, 1).permute(0, 3, 1, 2), weight, relu_bias, stride=(1, 2))
        return _first(y.permute(0, 2, 3, 1).unflatten(0, taps.shape[:2]))


class Bias(nn.Module):
    """What follows a convolution without batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.to(x.dtype)[:, None, None, None]


class ConvBlock(nn.Module):
    """Convolution, batch norm without scale or a bias, ReLU."""

    def __init__(self, conv: nn.Conv3d, *, norm: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.norm = Bias(conv.out_channels)
        if norm:
            # TF-slim's decay of 0.999 needs tens of thousands of steps; inference does not depend on it.
            self.norm = nn.BatchNorm3d(conv.out_channels, eps=1e-3, momentum=0.1)
            self.norm.weight.requires_grad_(False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if not ops.fused(x) or not self._as_built():
            return self.relu(self.norm(self.conv(x)))
        if isinstance(self.norm, Bias) and ops.convolves_with_relu(x):
            return self.conv(x, self.norm.bias)
        return _first(self._norm_relu(_last(self.conv(x))))

    def _as_built(self) -> bool:
        """Whether nobody exchanged, watches or trains a part that one kernel would leave out."""
        if type(self.relu) is not nn.ReLU or any(map(_watched, (self.conv, self.norm, self.relu))):
            return False
        if type(self.norm) is nn.BatchNorm3d:
            norm = self.norm
            return not norm.weight.requires_grad and norm.track_running_stats and norm.running_mean is not None
        return type(self.norm) is Bias

    def _norm_relu(self, x: Tensor) -> Tensor:
        norm = self.norm
        if isinstance(norm, Bias):
            return ops.norm_relu(x, norm.bias)
        mean, var = norm.running_mean, norm.running_var
        if norm.training:
            if x.numel() == x.shape[-1]:
                raise ValueError(f"batch norm cannot train on a single position of {x.shape[-1]} channels")
            norm.num_batches_tracked.add_(1)
            factor = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
            mean, var = ops.batch_stats(x, mean, var, factor)
        return ops.norm_relu(x, norm.bias, mean, var, norm.eps, norm.training)


def _watched(module: nn.Module) -> bool:
    """Whether somebody's hook waits for the module to be called."""
    if torch.nn.modules.module._has_any_global_hook():
        return True
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


class MaxPool3d(nn.Module):
    """A max pool with SAME padding."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return _first(ops.max_pool(_last(x), self.kernel_size[:2], self.stride[:2]))


class SeparableConv(nn.Sequential):
    """A 1x3x3 block with batch norm, then a 3x1x1 block with a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.spatial = ConvBlock(Conv3d(inputs, outputs, (1, 3, 3)))
        self.temporal = ConvBlock(Conv3d(outputs, outputs, (3, 1, 1)), norm=False)


class SelfGating(nn.Module):
    """x · sigmoid(W · mean of x over T, H, W): each channel is weighed by the whole clip (Xie et al. 2018, sec. 5).

    Takes several branches, gates each by itself and joins them.
    """

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.transformer_W = nn.ParameterList(torch.empty(c, c) for c in channels)

    def forward(self, *xs: Tensor) -> Tensor:
        return _first(ops.gate([_last(x) for x in xs], list(self.transformer_W)))


class Mixed(nn.Module):
    """An Inception block: four branches, gated, in order."""

    def __init__(self, inputs: int, branches: tuple) -> None:
        super().__init__()
        b0, (b1a, b1b), (b2a, b2b), b3 = branches
        point = (1, 1, 1)
        self.Branch_0 = ConvBlock(Conv3d(inputs, b0, point))
        self.Branch_1 = nn.Sequential(ConvBlock(Conv3d(inputs, b1a, point)), SeparableConv(b1a, b1b))
        self.Branch_2 = nn.Sequential(ConvBlock(Conv3d(inputs, b2a, point)), SeparableConv(b2a, b2b))
        self.Branch_3 = nn.Sequential(MaxPool3d((3, 3, 3), point), ConvBlock(Conv3d(inputs, b3, point)))
        self.self_gating = SelfGating(b0, b1b, b2b, b3)

    def forward(self, x: Tensor) -> Tensor:
        return self.self_gating(self.Branch_0(x), self.Branch_1(x), self.Branch_2(x), self.Branch_3(x))


class S3DG(nn.Module):
    """The network; build it with `s3dg`."""

    def __init__(self, num_classes: int, in_channels: int, width: float, dropout: float) -> None:
        super().__init__()
        self.num_classes, self.in_channels, self.width = num_classes, in_channels, width

        def depth(channels: int) -> int:
            return max(int(channels * width), 16)

        channels, stride = depth(64), (2, 2, 2)
        stages: dict[str, nn.Module] = {}
        self.endpoint_info: dict[str, Endpoint] = {}

        def add(name: str, module: nn.Module) -> None:
            stages[name], self.endpoint_info[name] = module, Endpoint(channels, stride)

        def add_pool(name: str) -> None:
            nonlocal stride
            kernel, pool_stride = POOLS[name]
            stride = tuple(a * b for a, b in zip(stride, pool_stride, strict=True))
            add(name, MaxPool3d(kernel, pool_stride))

        add("Conv2d_1a_7x7", ConvBlock(Stem(in_channels, channels)))
        add_pool("MaxPool_2a_3x3")
        add("Conv2d_2b_1x1", ConvBlock(Conv3d(channels, depth(64), (1, 1, 1))))
        inputs, channels = channels, depth(192)
        add("Conv2d_2c_3x3", nn.Sequential(SeparableConv(inputs, channels), SelfGating(channels)))
        for name, (b0, (b1a, b1b), (b2a, b2b), b3) in MIXED.items():
            if name in BEFORE:
                add_pool(BEFORE[name])
            branches = (depth(b0), (depth(b1a), depth(b1b)), (depth(b2a), depth(b2b)), depth(b3))
            inputs, channels = channels, depth(b0) + depth(b1b) + depth(b2b) + depth(b3)
            add(name, Mixed(inputs, branches))
        self.features = nn.ModuleDict(stages)
        self.dropout = nn.Dropout(dropout)
        self.Conv2d_0c_1x1 = nn.Conv3d(channels, num_classes, 1)
        self._initialise()
        for conv in [m for m in self.modules() if isinstance(m, nn.Conv3d) and math.prod(m.kernel_size) > 1]:
            conv.to(memory_format=torch.channels_last_3d)

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d | SelfGating):
                for weight in module.transformer_W if isinstance(module, SelfGating) else [module.weight]:
                    nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02)
        for module in self.modules():
            if isinstance(module, SeparableConv):
                module.temporal.conv.weight.zero_()[:, :, 1, 0, 0] = torch.eye(module.temporal.conv.out_channels)
        self.Conv2d_0c_1x1.bias.zero_()

    def endpoints(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """The named activations, each (B, C, T', H', W'); nothing past the last one asked for is computed.

        Raises ValueError for a name that is not an endpoint.
        """
        wanted = list(names)
        if unknown := [name for name in wanted if name not in self.features]:
            raise ValueError(f"no endpoint {unknown[0]!r}: the endpoints are {', '.join(self.features)}")
        self._check(x)
        found: dict[str, Tensor] = {}
        for name, stage in self.features.items():
            if len(found) == len(set(wanted)):
                break
            x = stage(x)
            if name in wanted:
                found[name] = x
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of clips (B, C, T, H, W), of any T, H and W from 1 on.

        Raises ValueError for other inputs, and in training for one clip whose last map is a single position.
        """
        return self.classify(self.dropout(self.pooled(x)))

    def pooled(self, x: Tensor) -> Tensor:
        """What the classifier sees of clips (B, *pooled_shape): means of windows over the last map.

        Raises ValueError as `forward` does.
        """
        self._check(x)
        if len(x) * math.prod(self._last_map(x.shape[2:])) == 1 and any(
            type(m) is nn.BatchNorm3d and m.training for m in self.modules()
        ):
            raise ValueError(f"batch norm cannot train on one clip of {tuple(x.shape[2:])} pixels: give it two or more")
        for stage in self.features.values():
            x = stage(x)
        t, h, w = (min(k, n) for k, n in zip(HEAD, x.shape[2:], strict=True))
        x = _last(x)
        x = F.avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), (h, w), 1).unflatten(0, x.shape[:2])  # B, T, C, H, W
        x = (x[:, : x.shape[1] - t + 1] + x[:, t - 1 :]) / 2
        return x.transpose(1, 2)

    def pooled_shape(self, size: Iterable[int]) -> tuple[int, ...]:
        """Channels and windows (C, T', H', W') that `pooled` makes of a clip of (T, H, W)."""
        windows = (max(1, n - k + 1) for k, n in zip(HEAD, self._last_map(size), strict=True))
        return (self.endpoint_info["Mixed_5c"].channels, *windows)

    def classify(self, pooled: Tensor) -> Tensor:
        """Logits (B, K) of what `pooled` gave."""
        return self.Conv2d_0c_1x1(pooled).mean((2, 3, 4))

    def _last_map(self, size: Iterable[int]) -> list[int]:
        return [-(-n // s) for n, s in zip(size, self.endpoint_info["Mixed_5c"].stride, strict=True)]

    def _check(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != self.in_channels or not x.is_floating_point():
            raise ValueError(
                f"clips must be floating point (B, {self.in_channels}, T, H, W), these are {x.dtype} {tuple(x.shape)}"
            )
        if 0 in x.shape[2:]:
            raise ValueError(f"clips must have at least 1 x 1 x 1 pixels, these have {tuple(x.shape[2:])}")


def s3dg(
    num_classes: int = 400, *, in_channels: int = 3, width: float = 1.0, dropout: float = 0.2, seed: int = 0
) -> S3DG:
    """S3D-G with TF-slim's initialisation.

    `width` multiplies every channel count (at least 16 stay); `in_channels` is 3 for RGB, 2 for flow;
    `seed` chooses the weights and leaves the global random state as it was.
    Raises ValueError where a value is out of range.
    """
    if num_classes < 1 or in_channels < 1:
        raise ValueError(f"num_classes and in_channels must be at least 1, not {num_classes} and {in_channels}")
    if width <= 0:
        raise ValueError(f"width must be positive, not {width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return S3DG(num_classes, in_channels, width, dropout)


@torch.no_grad()
def fold(model: S3DG) -> S3DG:
    """A copy for inference whose batch norms are part of the convolutions before them; it gives the same logits."""
    model = copy.deepcopy(model).eval()
    for block in [m for m in model.modules() if isinstance(m, ConvBlock) and isinstance(m.norm, nn.BatchNorm3d)]:
        norm = block.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        block.conv.weight.mul_(scale[:, None, None, None, None])
        block.norm = Bias(len(scale)).to(scale)
        block.norm.bias.copy_(norm.bias - norm.running_mean * scale)
    return model
