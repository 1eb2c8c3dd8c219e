"""Flow decoders: how well optical flow can be read off a network's endpoints, frozen or trained for it.

    metrics, pictures = decode(model, sets.fit, sets.test, "rgb", dense="Mixed_4f", epochs=20)
    metrics["Mixed_4f/target_epe"]                        # px a frame, on the target

One small decoder, built of the network's own blocks, reads each endpoint; all are trained in one pass over the clips.
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
from d3d.s3dg.network import S3DG, Conv3dAs2d, ConvBlock, SeparableConv

HIDDEN = 32
# Of Adam at its peak; half a cosine takes it to zero.
RATE = 2e-3
# Frames of a clip whose decoded flow is kept as a picture.
PICTURE_FRAMES = 4


class FlowDecoder(nn.Module):
    """An endpoint's map (B, C, T', H', W') to flow on its grid (B, 2, T', H', W'), in pixels a frame.

    With a stride (t, h, w) it gives dense flow (B, 2, t·T', h·H', w·W') too, from the same features.
    """

    def __init__(self, channels: int, stride: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.stride = stride
        self.body = nn.Sequential(ConvBlock(Conv3dAs2d(channels, HIDDEN, (1, 1, 1))), SeparableConv(HIDDEN, HIDDEN))
        self.out = nn.Conv3d(HIDDEN, 2 * (1 + math.prod(stride or (0,))), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        found = self.out(self.body(x)).float()
        grid, rest = found[:, :2], found[:, 2:]
        if self.stride is None:
            return grid, None
        fine = rest.unflatten(1, (2, *self.stride)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return grid, fine.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class Truth(NamedTuple):
    """True flow (N, 2, t, h, w) averaged to a grid, and the target's share (N, t, h, w) of each cell."""

    flow: Tensor
    share: Tensor


def averaged(flow: Tensor, mask: Tensor, grid: Sequence[int]) -> Truth:
    """Flow (N, 2, T, H, W) and a mask (N, T, H, W) averaged to the cells of a grid (t, h, w)."""
    pool = nn.AdaptiveAvgPool3d(tuple(grid))
    parts = [
        (pool(f.float()), pool(m.float()[:, None])[:, 0]) for f, m in zip(flow.split(64), mask.split(64), strict=True)
    ]
    return Truth(*(torch.cat(part) for part in zip(*parts, strict=True)))


class _Trainer:
    """A step at a time: decoders on all endpoints, and the network where it is tuned; captured on a GPU."""

    def __init__(self, model: S3DG, clips: Clips, stream: str, *, dense: str, tune: bool, batch_size: int) -> None:
        self.model, self.clips, self.stream, self.tune, self.size = model, clips, stream, tune, batch_size
        self.device = clips.labels.device
        info = model.endpoint_info
        self.decoders = nn.ModuleDict(
            {name: FlowDecoder(info[name].channels, info[name].stride if name == dense else None) for name in ENDPOINTS}
        ).to(self.device)
        trained = [*self.decoders.parameters(), *(model.parameters() if tune else ())]
        self.params = [p for p in trained if p.requires_grad]
        self.rate = torch.zeros((), device=self.device)
        on_gpu = self.device.type == "cuda"
        self.optimiser = torch.optim.Adam(self.params, lr=self.rate if on_gpu else 0.0, capturable=on_gpu)
        self.rows = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        self.loss = torch.zeros((), device=self.device)
        self.truths: dict[tuple[int, ...], Truth] = {}
        self.graph: torch.cuda.CUDAGraph | None = None
        self.taken = 0

    def step(self, rows: np.ndarray, rate: float) -> None:
        self.rows.copy_(torch.from_numpy(rows))
        self.rate.fill_(rate)
        self.model.train(self.tune)
        self.taken += 1
        if self.device.type != "cuda":
            self.optimiser.param_groups[0]["lr"] = rate
            self._step()
        elif self.taken < 3:  # what a capture needs to have seen
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step()
            torch.cuda.current_stream().wait_stream(side)
        else:
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self._step()
            self.graph.replay()

    def _step(self) -> None:
        for p in self.params:
            if p.grad is not None:
                p.grad.zero_()
        total = torch.zeros((), device=self.device)
        for _, grid, fine in self.read(self.clips, self.rows):
            truth = self.truth(self.clips, grid.shape[2:])
            total = total + _loss(grid, truth.flow[self.rows], truth.share[self.rows])
            if fine is not None:
                flow, mask = self.clips.true_flow[self.rows].float(), self.clips.mask[self.rows].float()
                total = total + _loss(fine, flow, mask)
        total.backward()
        self.optimiser.step()
        self.loss.copy_(total.detach())

    def read(self, clips: Clips, rows: Tensor | slice) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """Endpoint by endpoint, the flow decoded of some clips: on its grid, and dense where asked."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            with torch.set_grad_enabled(self.tune and torch.is_grad_enabled()):
                maps = self.model.endpoints(clips.inputs(self.stream, rows), ENDPOINTS)
            for name, x in maps.items():
                yield name, *self.decoders[name](x)

    def truth(self, clips: Clips, grid: Sequence[int]) -> Truth:
        key = (id(clips), *grid)
        if key not in self.truths:
            self.truths[key] = averaged(clips.true_flow, clips.mask, grid)
        return self.truths[key]


def _loss(found: Tensor, flow: Tensor, share: Tensor) -> Tensor:
    """Mean end-point error of all cells and of the target's."""
    error = endpoint_error(found, flow)
    return error.mean() + (error * share).sum() / share.sum().clamp_min(1e-6)


def decode(
    model: S3DG,
    fit: Clips,
    test: Clips,
    stream: str,
    *,
    dense: str,
    epochs: int,
    batch_size: int = 128,
    tune: bool = False,
    pictures: int = 0,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Trains decoders on every endpoint by the clips of `fit`, tells their errors on those of `test`, in px a frame.

    `<endpoint>/epe` over all cells of its grid, `<endpoint>/target_epe` weighed by the target's share of each, beside
    what answering no motion would err, `<endpoint>/target_epe_still`; for the endpoint `dense`, `dense/epe` and
    `dense/target_epe` pixel by pixel. tune: train the network along, which changes `model`; else its weights and
    statistics stay. The first `pictures` clips' dense flow comes as arrays `dense` (N, 2, K, H, W), float16, at the
    frames `frames` (K,). Both sets need true flow.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trainer = _Trainer(model, fit, stream, dense=dense, tune=tune, batch_size=min(batch_size, len(fit)))
    grids = {
        tuple(-(-n // s) for n, s in zip(fit.size, model.endpoint_info[name].stride, strict=True)) for name in ENDPOINTS
    }
    for clips in (fit, test):
        for grid in grids:
            trainer.truth(clips, grid)
    rng = np.random.default_rng(seed)
    steps = len(fit) // trainer.size
    for epoch in range(epochs):
        order = rng.permutation(len(fit))
        for i in range(steps):
            done = (epoch * steps + i) / (epochs * steps)
            trainer.step(order[i * trainer.size :][: trainer.size], RATE * 0.5 * (1 + math.cos(math.pi * done)))
    if not math.isfinite(trainer.loss.item()):
        raise FloatingPointError(f"the flow decoders' loss became {trainer.loss.item()} after {trainer.taken} steps")
    return _errors(trainer, test), _pictures(trainer, test, pictures, dense) if pictures else {}


@torch.no_grad()
def _errors(trainer: _Trainer, clips: Clips) -> dict[str, float]:
    trainer.model.eval()
    trainer.decoders.eval()
    sums: dict[str, Tensor] = {}

    def add(name: str, found: Tensor, flow: Tensor, share: Tensor) -> None:
        error = endpoint_error(found, flow)
        still = flow.norm(dim=1)
        whole = error.new_tensor(error.numel())
        told = torch.stack([error.sum(), whole, (error * share).sum(), share.sum(), (still * share).sum()]).double()
        sums[name] = sums.get(name, 0) + told

    for rows in torch.arange(len(clips), device=trainer.device).split(4 * trainer.size):
        for name, grid, fine in trainer.read(clips, rows):
            truth = trainer.truth(clips, grid.shape[2:])
            add(name, grid, truth.flow[rows], truth.share[rows])
            if fine is not None:
                add("dense", fine, clips.true_flow[rows].float(), clips.mask[rows].float())
    metrics = {}
    for name, told in sums.items():
        error, cells, on_target, share, still = told.tolist()
        metrics |= {f"{name}/epe": error / cells, f"{name}/target_epe": on_target / share}
        metrics[f"{name}/target_epe_still"] = still / share
    return metrics


@torch.no_grad()
def _pictures(trainer: _Trainer, clips: Clips, count: int, dense: str) -> dict[str, np.ndarray]:
    rows = torch.arange(count, device=trainer.device)
    frames = np.linspace(0, clips.size[0] - 2, PICTURE_FRAMES).round().astype(int)
    fine = next(fine for name, _, fine in trainer.read(clips, rows) if name == dense)
    return {"dense": fine[:, :, torch.from_numpy(frames).to(fine.device)].half().cpu().numpy(), "frames": frames}
