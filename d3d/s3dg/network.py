"""S3D-G: separable 3D convolutions with feature gating (Xie et al. 2018), the network of both streams of D3D.

    model = s3dg(num_classes=400)
    logits = model(clips)                                # (B, 3, T, H, W) -> (B, 400)
    features = model.endpoints(clips, ["Mixed_4f"])      # {"Mixed_4f": (B, 832, T/4, H/16, W/16)}

Activations are (B, C, T, H, W) in channels-last memory format. For inference, `fold` the batch norms and capture the
network in CUDA graphs; for training, capture the gradients (`d3d.s3dg.graphs`).
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d3d.s3dg.blocks import (
    Conv3dAs2d,
    ConvBlock,
    GatedConv,
    Mixed,
    SameMaxPool3d,
    SelfGating,
    SeparableConv,
    Stem,
    can_pool,
    channels_last,
)

# Output channels of each branch of the Mixed blocks: 1x1, (1x1, 3x3), (1x1, 3x3), 1x1 after a pool.
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
POOL_BEFORE = {"Mixed_3b": "MaxPool_3a_3x3", "Mixed_4b": "MaxPool_4a_3x3", "Mixed_5b": "MaxPool_5a_2x2"}
# Kernel and stride over (T, H, W).
POOLS = {
    "MaxPool_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "MaxPool_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}

# The head averages features over windows of at most this size at stride 1, then averages the logits.
HEAD_WINDOW = (2, 7, 7)
# Far beyond any network in use: a larger number is a slip of the pen or a damaged file.
MAX_CLASSES, MAX_IN_CHANNELS, MAX_WIDTH = 100_000, 1000, 8


class EndpointInfo(NamedTuple):
    """Channels of an endpoint, and its stride over (T, H, W) in frames and pixels of the input."""

    channels: int
    stride: tuple[int, int, int]


class S3DG(nn.Module):
    """S3D-G; build it with `s3dg`.

    Attributes:
        num_classes: Number of logits.
        in_channels: Channels of the input.
        width: Multiplier of every channel count.
        features: The stages, by endpoint name, in order.
        endpoint_info: Channels and stride of each endpoint.
    """

    def __init__(self, num_classes: int, in_channels: int, width: float, dropout: float) -> None:
        super().__init__()
        self.num_classes, self.in_channels, self.width = num_classes, in_channels, width

        def scaled(channels: int) -> int:
            return max(int(channels * width), 16)

        channels, stride = scaled(64), (2, 2, 2)
        stages: dict[str, nn.Module] = {}
        self.endpoint_info: dict[str, EndpointInfo] = {}

        def add(name: str, module: nn.Module) -> None:
            stages[name], self.endpoint_info[name] = module, EndpointInfo(channels, stride)

        def add_pool(name: str) -> None:
            nonlocal stride
            kernel, pool_stride = POOLS[name]
            stride = tuple(a * b for a, b in zip(stride, pool_stride, strict=True))
            add(name, SameMaxPool3d(kernel, pool_stride))

        add("Conv2d_1a_7x7", ConvBlock(Stem(in_channels, channels)))
        add_pool("MaxPool_2a_3x3")
        add("Conv2d_2b_1x1", ConvBlock(Conv3dAs2d(channels, scaled(64), (1, 1, 1))))
        previous, channels = channels, scaled(192)
        add("Conv2d_2c_3x3", GatedConv(previous, channels))
        for name, (b0, (b1a, b1b), (b2a, b2b), b3) in MIXED.items():
            if name in POOL_BEFORE:
                add_pool(POOL_BEFORE[name])
            branches = (scaled(b0), (scaled(b1a), scaled(b1b)), (scaled(b2a), scaled(b2b)), scaled(b3))
            previous, channels = channels, scaled(b0) + scaled(b1b) + scaled(b2b) + scaled(b3)
            add(name, Mixed(previous, branches))
        self.features = nn.ModuleDict(stages)
        self.dropout = nn.Dropout(dropout)
        self.Conv2d_0c_1x1 = nn.Conv3d(channels, num_classes, 1)
        if not self.Conv2d_0c_1x1.weight.is_meta:  # where drawing nothing takes as long as drawing
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
        """Computes the named activations, and no stage after the last of them.

        Args:
            x: Clips (B, C, T, H, W).
            names: Names of endpoints, keys of `endpoint_info`.

        Returns:
            Activation (B, C', T', H', W') of each name, in the network's order.

        Raises:
            ValueError: A name is not an endpoint, or the clips are not floating point (B, in_channels, T, H, W).
        """
        requested = list(names)
        if unknown := [name for name in requested if name not in self.features]:
            raise ValueError(f"no endpoint {unknown[0]!r}: the endpoints are {', '.join(self.features)}")
        self._check_clips(x)
        activations: dict[str, Tensor] = {}
        for name, stage in self.features.items():
            if len(activations) == len(set(requested)):
                break
            x = stage(x)
            if name in requested:
                activations[name] = x
        return activations

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits.

        Args:
            x: Clips (B, C, T, H, W), floating point; T, H and W at least 1.

        Returns:
            Logits (B, num_classes).

        Raises:
            ValueError: The clips are not floating point (B, in_channels, T, H, W), or the network is training on one
                clip so small that a batch norm sees one value per channel.
        """
        return self.classify(self.dropout(self.pooled(x)))

    def pooled(self, x: Tensor) -> Tensor:
        """Average-pools Mixed_5c of clips (B, C, T, H, W) to (B, C', T', H', W'), the input of `classify`.

        Raises the same errors as `forward`.
        """
        return self.pooled_and_endpoints(x, ())[0]

    def pooled_and_endpoints(self, x: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes `pooled` and, in the same pass, the activations of endpoints, keys of `endpoint_info`, by name.

        Raises the same errors as `forward`.
        """
        self._check_clips(x)
        if len(x) * math.prod(self._final_size(x.shape[2:])) == 1 and any(
            type(m) is nn.BatchNorm3d and m.training for m in self.modules()
        ):
            raise ValueError(f"batch norm cannot train on one clip of size {tuple(x.shape[2:])}: give two or more")
        pooled_already = None
        activations: dict[str, Tensor] = {}
        for (name, stage), (_, following) in pairwise([*self.features.items(), ("", None)]):
            if stage is not pooled_already:
                pooled_already = following if name not in names and can_pool(stage, following, x) else None
                x = stage(x, pool=following) if pooled_already else stage(x)
            if name in names:
                activations[name] = x
        t, h, w = (min(k, n) for k, n in zip(HEAD_WINDOW, x.shape[2:], strict=True))
        x = channels_last(x)
        x = F.avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), (h, w), 1).unflatten(0, x.shape[:2])  # B, T, C, H, W
        x = (x[:, : x.shape[1] - t + 1] + x[:, t - 1 :]) / 2
        return x.transpose(1, 2), activations

    def pooled_shape(self, size: Iterable[int]) -> tuple[int, ...]:
        """Computes the shape (C, T', H', W') of `pooled` for one clip of size (T, H, W)."""
        windows = (max(1, n - k + 1) for k, n in zip(HEAD_WINDOW, self._final_size(size), strict=True))
        return (self.endpoint_info["Mixed_5c"].channels, *windows)

    def classify(self, pooled: Tensor) -> Tensor:
        """Computes logits (B, num_classes) from the output of `pooled`."""
        return self.Conv2d_0c_1x1(pooled).mean((2, 3, 4))

    def _final_size(self, size: Iterable[int]) -> list[int]:
        """Computes T', H' and W' of Mixed_5c for clips of size (T, H, W)."""
        return [-(-n // s) for n, s in zip(size, self.endpoint_info["Mixed_5c"].stride, strict=True)]

    def _check_clips(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != self.in_channels or not x.is_floating_point():
            raise ValueError(
                f"clips must be floating point (B, {self.in_channels}, T, H, W), not {x.dtype} {tuple(x.shape)}"
            )
        if 0 in x.shape[2:]:
            raise ValueError(f"clips must have T, H and W of at least 1, not {tuple(x.shape[2:])}")


def s3dg(
    num_classes: int = 400, *, in_channels: int = 3, width: float = 1.0, dropout: float = 0.2, seed: int = 0
) -> S3DG:
    """Builds S3D-G with TF-slim's initialisation.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the input: 3 for RGB, 2 for flow.
        width: Multiplier of every channel count; the minimum is 16 channels.
        dropout: Probability of dropout before the classifier.
        seed: Seed of the weights; the global random state is not changed.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: num_classes or in_channels is below 1, width is not positive, or one of them is above its maximum.
    """
    for name, value, most in (("num_classes", num_classes, MAX_CLASSES), ("in_channels", in_channels, MAX_IN_CHANNELS)):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be at least 1 and at most {most}, not {value}")
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"width must be positive and at most {MAX_WIDTH}, not {width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return S3DG(num_classes, in_channels, width, dropout)
