"""S3D-G: separable 3D convolutions with feature gating (Xie et al. 2018), as both streams of D3D use it.

    model = s3dg(num_classes=400)
    logits = model(clips)                                # (B, 3, T, H, W) -> (B, 400)
    features = model.endpoints(clips, ["Mixed_4f"])      # {"Mixed_4f": (B, 832, T/4, H/16, W/16)}

Modules carry the names of TF-slim's variables, so that a checkpoint maps onto them by name alone.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class Endpoint(NamedTuple):
    """What an endpoint returns: its channels, and its stride over (T, H, W) in input pixels."""

    channels: int
    stride: tuple[int, int, int]


def same_padding(size: Iterable[int], kernel: Iterable[int], stride: Iterable[int]) -> list[int]:
    """TensorFlow's SAME padding in `F.pad`'s order (W before, W after, H before, …)."""
    pads: list[int] = []
    for n, k, s in zip(size, kernel, stride, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        pads = [total // 2, total - total // 2, *pads]
    return pads


class Conv3d(nn.Conv3d):
    """A convolution with SAME padding, which is asymmetric where a stride meets an even size."""

    def forward(self, x: Tensor) -> Tensor:
        pads = same_padding(x.shape[2:], self.kernel_size, self.stride)
        return super().forward(F.pad(x, pads) if any(pads) else x)


class MaxPool3d(nn.MaxPool3d):
    """A max pool with SAME padding; its input is never negative, so that zeros pad like minus infinity."""

    def forward(self, x: Tensor) -> Tensor:
        pads = same_padding(x.shape[2:], self.kernel_size, self.stride)
        return super().forward(F.pad(x, pads) if any(pads) else x)


class ConvBlock(nn.Module):
    """Convolution, batch norm without scale, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv3d(inputs, outputs, kernel, stride, bias=False)
        # TF-slim's decay of 0.999 needs tens of thousands of steps; inference does not depend on it.
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.1)
        self.bn.weight.requires_grad_(False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class SeparableConv(nn.Module):
    """A 1xkxk block, then a 3x1x1 convolution with bias, ReLU and no batch norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.spatial = ConvBlock(inputs, outputs, (1, 3, 3))
        self.temporal = Conv3d(outputs, outputs, (3, 1, 1))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.temporal(self.spatial(x)))


class SelfGating(nn.Module):
    """x · sigmoid(W · mean of x over T, H, W): each channel is weighed by the whole clip (Xie et al. 2018, sec. 5)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.transformer_W = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.transformer_W(x.mean((2, 3, 4))))
        return x * gate[:, :, None, None, None]


class Mixed(nn.Module):
    """An Inception block of four gated branches, concatenated in order."""

    def __init__(self, inputs: int, branches: tuple) -> None:
        super().__init__()
        b0, (b1a, b1b), (b2a, b2b), b3 = branches
        point = (1, 1, 1)
        self.Branch_0 = nn.Sequential(ConvBlock(inputs, b0, point), SelfGating(b0))
        self.Branch_1 = nn.Sequential(ConvBlock(inputs, b1a, point), SeparableConv(b1a, b1b), SelfGating(b1b))
        self.Branch_2 = nn.Sequential(ConvBlock(inputs, b2a, point), SeparableConv(b2a, b2b), SelfGating(b2b))
        self.Branch_3 = nn.Sequential(MaxPool3d((3, 3, 3), point), ConvBlock(inputs, b3, point), SelfGating(b3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.Branch_0(x), self.Branch_1(x), self.Branch_2(x), self.Branch_3(x)], 1)


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

        add("Conv2d_1a_7x7", ConvBlock(in_channels, channels, (3, 7, 7), 2))
        add_pool("MaxPool_2a_3x3")
        add("Conv2d_2b_1x1", ConvBlock(channels, depth(64), (1, 1, 1)))
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

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, SeparableConv):
                nn.init.zeros_(module.temporal.weight)
                module.temporal.weight.data[:, :, 1, 0, 0] = torch.eye(module.temporal.out_channels)

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
        """Logits (B, K) of clips (B, C, T, H, W)."""
        self._check(x)
        for stage in self.features.values():
            x = stage(x)
        window = tuple(min(k, n) for k, n in zip((2, 7, 7), x.shape[2:], strict=True))
        # The head averages overlapping windows and then their logits over time, which is not a global mean.
        return self.Conv2d_0c_1x1(self.dropout(F.avg_pool3d(x, window, 1))).mean((2, 3, 4))

    def _check(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise ValueError(f"clips must be (B, {self.in_channels}, T, H, W), these are {tuple(x.shape)}")


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
