"""Flow decoders: how well optical flow can be decoded from the endpoints of a frozen or a fine-tuned network.

    metrics, arrays = train_flow_decoders(model, train_clips, test_clips, "rgb", dense_endpoint="Mixed_4f", epochs=20)
    metrics["Mixed_4f/target_epe"]                        # end-point error (EPE) on the target sprite, pixels per frame

Each endpoint gets one small decoder made of the network's own blocks; all decoders are trained at once, so that a step
needs one forward pass of the network.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from d3d.data.clips import Clips
from d3d.flow.fields import endpoint_error
from d3d.probing.linear import ENDPOINTS
from d3d.s3dg.blocks import Conv3dAs2d, ConvBlock, SeparableConv
from d3d.s3dg.graphs import Graphs
from d3d.s3dg.network import S3DG

HIDDEN_CHANNELS = 32
PEAK_LR = 2e-3  # of Adam, with cosine decay to zero
RETURNED_FRAMES = 4  # frames per clip for which dense flow is returned


class FlowDecoder(nn.Module):
    """Decodes flow, in pixels per frame, from the feature map of one endpoint.

    Args:
        channels: number of channels of the feature map.
        stride: (s_t, s_h, s_w) of the endpoint; if given, dense flow is decoded too, from the same hidden features.
    """

    def __init__(self, channels: int, stride: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.stride = stride
        self.body = nn.Sequential(
            ConvBlock(Conv3dAs2d(channels, HIDDEN_CHANNELS, (1, 1, 1))), SeparableConv(HIDDEN_CHANNELS, HIDDEN_CHANNELS)
        )
        self.out = nn.Conv3d(HIDDEN_CHANNELS, 2 * (1 + math.prod(stride or (0,))), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns coarse flow, one vector per position of the feature map, and dense flow, one per pixel of the clip.

        Args:
            x: (B, C, T', H', W').

        Returns:
            (B, 2, T', H', W'), and (B, 2, s_t·T', s_h·H', s_w·W') or, without a stride, None.
        """
        output = self.out(self.body(x)).float()
        coarse_flow = output[:, :2]
        if self.stride is None:
            return coarse_flow, None
        # Depth to space: the stride's axes move behind the axes that they refine.
        dense_flow = output[:, 2:].unflatten(1, (2, *self.stride)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return coarse_flow, dense_flow.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class CoarseTruth(NamedTuple):
    """True flow and target mask, averaged to the cells of a feature map.

    Attributes:
        flow: (N, 2, t, h, w), pixels per frame.
        target_fraction: (N, t, h, w), fraction of each cell that the target sprite covers.
    """

    flow: Tensor
    target_fraction: Tensor


def average_to_grid(flow: Tensor, mask: Tensor, grid_size: Sequence[int]) -> CoarseTruth:
    """Averages flow (N, 2, T, H, W) and a mask (N, T, H, W) to the cells of a grid of size (t, h, w)."""
    pool = nn.AdaptiveAvgPool3d(tuple(grid_size))
    batches = [
        (pool(f.float()), pool(m.float()[:, None])[:, 0]) for f, m in zip(flow.split(64), mask.split(64), strict=True)
    ]
    return CoarseTruth(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))


class _DecoderTrainer:
    """Trains one decoder per endpoint, and the network too if `fine_tune`; on a GPU by a CUDA graph."""

    def __init__(
        self, model: S3DG, clips: Clips, stream: str, *, dense_endpoint: str, fine_tune: bool, batch_size: int
    ) -> None:
        self.model, self.clips, self.stream = model, clips, stream
        self.fine_tune, self.batch_size = fine_tune, batch_size
        self.device = clips.labels.device
        info = model.endpoint_info
        self.decoders = nn.ModuleDict(
            {
                name: FlowDecoder(info[name].channels, info[name].stride if name == dense_endpoint else None)
                for name in ENDPOINTS
            }
        ).to(self.device)
        params = [*self.decoders.parameters(), *(model.parameters() if fine_tune else ())]
        self.params = [p for p in params if p.requires_grad]
        self.lr = torch.zeros((), device=self.device)
        on_gpu = self.device.type == "cuda"
        self.optimiser = torch.optim.Adam(self.params, lr=self.lr if on_gpu else 0.0, capturable=on_gpu)
        self.loss = torch.zeros((), device=self.device)
        self.coarse_truths: dict[tuple[int, ...], CoarseTruth] = {}
        self.graphs = Graphs()

    def step(self, rows: np.ndarray, lr: float) -> None:
        """Takes one training step on the clips at the indices `rows` (batch_size,)."""
        self.lr.fill_(lr)
        self.model.train(self.fine_tune)
        if self.device.type == "cuda":
            self.graphs.run(self._step, torch.from_numpy(rows), device=self.device, copy_outputs=False)
        else:
            self.optimiser.param_groups[0]["lr"] = lr
            self._step(torch.from_numpy(rows))

    def _step(self, rows: Tensor) -> tuple[()]:
        for p in self.params:
            if p.grad is not None:
                p.grad.zero_()
        total = torch.zeros((), device=self.device)
        for _, coarse_flow, dense_flow in self.decode(self.clips, rows):
            truth = self.coarse_truth(self.clips, coarse_flow.shape[2:])
            total = total + _flow_loss(coarse_flow, truth.flow[rows], truth.target_fraction[rows])
            if dense_flow is not None:
                true_flow, mask = self.clips.true_flow[rows].float(), self.clips.mask[rows].float()
                total = total + _flow_loss(dense_flow, true_flow, mask)
        total.backward()
        self.optimiser.step()
        self.loss.copy_(total.detach())
        return ()

    def decode(self, clips: Clips, rows: Tensor | slice) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """Yields (endpoint, coarse flow, dense flow or None) for every endpoint; `rows` are indices of clips."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            with torch.set_grad_enabled(self.fine_tune and torch.is_grad_enabled()):
                feature_maps = self.model.endpoints(clips.inputs(self.stream, rows), ENDPOINTS)
            for name, x in feature_maps.items():
                yield name, *self.decoders[name](x)

    def coarse_truth(self, clips: Clips, grid_size: Sequence[int]) -> CoarseTruth:
        """Returns `average_to_grid` of the clips' true flow and mask, cached."""
        key = (id(clips), *grid_size)
        if key not in self.coarse_truths:
            self.coarse_truths[key] = average_to_grid(clips.true_flow, clips.mask, grid_size)
        return self.coarse_truths[key]


def _flow_loss(flow: Tensor, true_flow: Tensor, target_fraction: Tensor) -> Tensor:
    """Mean EPE over all cells, plus its mean weighted by `target_fraction`."""
    error = endpoint_error(flow, true_flow)
    return error.mean() + (error * target_fraction).sum() / target_fraction.sum().clamp_min(1e-6)


def train_flow_decoders(
    model: S3DG,
    train_clips: Clips,
    test_clips: Clips,
    stream: str,
    *,
    dense_endpoint: str,
    epochs: int,
    batch_size: int = 128,
    fine_tune: bool = False,
    num_returned_clips: int = 0,
    by_group: bool = False,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Trains one flow decoder per endpoint and evaluates them.

    Args:
        model: its weights and batch norm statistics change only if `fine_tune`.
        train_clips, test_clips: clips with true flow and masks of the target sprite.
        stream: input of `model`, rgb or flow.
        dense_endpoint: endpoint from which dense flow is decoded too.
        epochs: passes over `train_clips`; the last, incomplete batch of each is dropped.
        fine_tune: whether to train `model` together with the decoders.
        num_returned_clips: number of test clips, from the first, whose dense flow is returned.
        by_group: whether to measure the errors on the clips of each group of `test_clips.table` too.
        seed: seed of the decoders' weights and of the order of the clips.

    Returns:
        Metrics and arrays. Metrics are mean EPEs on `test_clips`, in pixels per frame:
            `<endpoint>/epe`: over all cells of the endpoint's grid.
            `<endpoint>/target_epe`: over all cells, weighted by the fraction of the cell that the target sprite covers.
            `<endpoint>/target_epe_still`: `target_epe` of a prediction of zero flow.
            `dense/epe`, `dense/target_epe`, `dense/target_epe_still`: of dense flow, per pixel instead of per cell.
            `<endpoint>/<group>/epe` and so on: on the clips of a group, by group.
        Arrays, none if `num_returned_clips` is 0:
            `dense`: dense flow, float16 (num_returned_clips, 2, K, H, W).
            `frames`: indices of its frames, int64 (K,).

    Raises:
        FloatingPointError: the loss is not finite at the end.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trainer = _DecoderTrainer(
            model,
            train_clips,
            stream,
            dense_endpoint=dense_endpoint,
            fine_tune=fine_tune,
            batch_size=min(batch_size, len(train_clips)),
        )
    grid_sizes = {
        tuple(-(-n // s) for n, s in zip(train_clips.size, model.endpoint_info[name].stride, strict=True))
        for name in ENDPOINTS
    }
    for clips in (train_clips, test_clips):
        for grid_size in grid_sizes:
            trainer.coarse_truth(clips, grid_size)
    rng = np.random.default_rng(seed)
    steps_per_epoch = len(train_clips) // trainer.batch_size
    for epoch in range(epochs):
        order = rng.permutation(len(train_clips))
        for i in range(steps_per_epoch):
            progress = (epoch * steps_per_epoch + i) / (epochs * steps_per_epoch)
            lr = PEAK_LR * 0.5 * (1 + math.cos(math.pi * progress))
            trainer.step(order[i * trainer.batch_size :][: trainer.batch_size], lr)
    if not math.isfinite(trainer.loss.item()):
        raise FloatingPointError(f"the flow decoders' loss was {trainer.loss.item()} at the end of their training")
    every = torch.arange(len(test_clips), device=trainer.device)
    metrics = _flow_errors(trainer, test_clips, every)
    for group in sorted(set(test_clips.groups)) if by_group else ():
        rows = every[torch.from_numpy(test_clips.groups == group).to(every.device)]
        errors = _flow_errors(trainer, test_clips, rows)
        metrics |= {name.replace("/", f"/{group}/"): value for name, value in errors.items()}
    return metrics, _dense_flow(trainer, test_clips, num_returned_clips, dense_endpoint) if num_returned_clips else {}


@torch.no_grad()
def _flow_errors(trainer: _DecoderTrainer, clips: Clips, which: Tensor) -> dict[str, float]:
    """The mean errors on the clips at the indices `which`."""
    trainer.model.eval()
    trainer.decoders.eval()
    sums: dict[str, Tensor] = {}

    def add(name: str, flow: Tensor, true_flow: Tensor, target_fraction: Tensor) -> None:
        error = endpoint_error(flow, true_flow)
        still_error = true_flow.norm(dim=1)  # of zero flow
        cells = error.new_tensor(error.numel())
        weighted = (error * target_fraction).sum(), target_fraction.sum(), (still_error * target_fraction).sum()
        sums[name] = sums.get(name, 0) + torch.stack([error.sum(), cells, *weighted]).double()

    for rows in which.split(4 * trainer.batch_size):
        for name, coarse_flow, dense_flow in trainer.decode(clips, rows):
            truth = trainer.coarse_truth(clips, coarse_flow.shape[2:])
            add(name, coarse_flow, truth.flow[rows], truth.target_fraction[rows])
            if dense_flow is not None:
                add("dense", dense_flow, clips.true_flow[rows].float(), clips.mask[rows].float())
    metrics = {}
    for name, totals in sums.items():
        error, cells, target_error, target_weight, still_error = totals.tolist()
        metrics |= {f"{name}/epe": error / cells, f"{name}/target_epe": target_error / target_weight}
        metrics[f"{name}/target_epe_still"] = still_error / target_weight
    return metrics


@torch.no_grad()
def _dense_flow(trainer: _DecoderTrainer, clips: Clips, count: int, dense_endpoint: str) -> dict[str, np.ndarray]:
    rows = torch.arange(count, device=trainer.device)
    frames = np.linspace(0, clips.size[0] - 2, RETURNED_FRAMES).round().astype(int)
    dense_flow = next(flow for name, _, flow in trainer.decode(clips, rows) if name == dense_endpoint)
    return {
        "dense": dense_flow[:, :, torch.from_numpy(frames).to(dense_flow.device)].half().cpu().numpy(),
        "frames": frames,
    }
