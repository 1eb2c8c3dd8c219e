"""One step of training, on one process or several: gradients, their sum, SGD with momentum.

On a GPU, clips that lie there are trained on by a CUDA graph that holds the whole step, from gathering the clips to the
update: at the study's scale launching its kernels one by one takes several times as long as they do.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from d3d.data.clips import Batch, ClipSet
from d3d.s3dg.network import S3DG
from d3d.train.config import TrainConfig
from d3d.train.losses import distance
from d3d.train.networks import Teacher
from d3d.train.team import ALONE, Team, synchronise

# What a step tells: sums over its clips, how many they were, and how many processes were asked to stop.
TERMS = ("loss", "cross_entropy", "distance", "top1", "clips", "stop")
# Gradients start where the widest load can read them.
ALIGNED = 64
# Steps that may be under way on a GPU before the oldest is waited for.
AHEAD = 8


class Told(NamedTuple):
    """What a step told: means over its clips, of losses and right answers, beside `clips` and `stop`."""

    position: int
    terms: dict[str, float]


def steps_an_epoch(clips: int, config: TrainConfig, team: Team) -> int:
    """Into how many steps an epoch of so many clips is divided: batch norm needs two a part, which may make a step a
    little larger than `batch_size`."""
    return min(-(-clips // config.batch_size), clips // (2 * config.accumulate * team.size))


class _Slot(NamedTuple):
    """Page-locked memory of one step under way: what goes to the GPU, and what comes back."""

    rows: Tensor
    keep: Tensor
    terms: Tensor
    done: torch.cuda.Event


class Step:
    """SGD with momentum on `model`, a step at a time, over all processes of the team.

    capture: train by CUDA graphs; None: where clips lie on a GPU and batch norm is not synchronised.
    """

    def __init__(
        self,
        model: S3DG,
        config: TrainConfig,
        clips: ClipSet,
        *,
        teacher: Teacher | None = None,
        team: Team = ALONE,
        capture: bool | None = None,
    ) -> None:
        if config.sync_norm and team.size > 1:
            synchronise(model)
        self.model, self.config, self.clips, self.teacher, self.team = model.train(), config, clips, teacher, team
        self.distance = distance(getattr(config, "distance", "mse"), temperature=getattr(config, "temperature", 4.0))
        self.streams = tuple(dict.fromkeys((config.stream, *(teacher.streams if teacher else ()))))
        self.device = clips.labels.device
        on_gpu = self.device.type == "cuda"
        if capture is None:
            capture = on_gpu and not clips.redrawn and not (config.sync_norm and team.size > 1)
        self.capture = capture
        # A step is told of when so many later ones have been asked for.
        self.lag = AHEAD if on_gpu else 0
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.params = list(self.named.values())
        self.momenta = [torch.zeros_like(p) for p in self.params]
        self._lay_out_gradients()
        # Averaged over processes, so that all hold the same network.
        self.averages = [b for b in model.buffers() if b.is_floating_point()]
        self.rate = torch.zeros((), device=self.device)
        self.stream = torch.cuda.Stream(self.device) if on_gpu else None
        self.slots = [self._slot() for _ in range(AHEAD)] if on_gpu else []
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self.warm: set[tuple] = set()
        self.under_way: deque[tuple[int, _Slot]] = deque()

    def _lay_out_gradients(self) -> None:
        """All gradients and the terms lie in one tensor, so that one sum over processes is enough."""
        starts = np.cumsum([0, *(-(-p.numel() // ALIGNED) * ALIGNED for p in self.params)])
        self.flat = torch.zeros(int(starts[-1]) + len(TERMS), device=self.device)
        for start, p in zip(starts.tolist(), self.params, strict=False):
            p.grad = self.flat.as_strided(p.shape, p.stride(), start)
        self.grads = [p.grad for p in self.params]
        self.terms = self.flat[-len(TERMS) :]

    def _slot(self) -> _Slot:
        step = max(
            self.config.batch_size, -(-len(self.clips) // steps_an_epoch(len(self.clips), self.config, self.team))
        )
        most = -(-step // self.team.size)
        shape = self.model.pooled_shape(self.clips.size)
        return _Slot(
            torch.empty(most, dtype=torch.int64, pin_memory=True),
            torch.empty(most, *shape, dtype=torch.bool, pin_memory=True),
            torch.empty(len(TERMS), pin_memory=True),
            torch.cuda.Event(),
        )

    def share_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """This process's part of a step's rows."""
        return np.array_split(np.asarray(rows), self.team.size)[self.team.rank]

    def __call__(
        self, position: int, rows: np.ndarray, *, rate: float, batch: Batch | None = None, stop: bool = False
    ) -> list[Told]:
        """Trains on the clips of `rows`; returns what earlier steps, and on a CPU this one, told.

        rate: the learning rate. batch: this process's clips, where they come from files; else they are taken by row.
        stop: ask all processes to stop.
        """
        mine = torch.from_numpy(self.share_of(rows)) if batch is None else batch.index
        keep, total = self._kept(position, rows), len(rows)
        if batch is not None:
            # Of files some may have been unreadable. What one process cannot train on none does.
            keep = keep[np.isin(self.share_of(rows), mine.cpu().numpy())]
            counts = torch.tensor([len(mine), len(mine) < 2 * self.config.accumulate], device=self.device)
            total, lacking = self.team.sum_(counts).tolist()
            if lacking:
                return [*self.rest(), Told(position, dict.fromkeys(TERMS, 0.0))]
        if self.stream is None:
            self._step(mine, keep, total, rate, batch, stop)
            return [_told(position, self.terms)]
        told = [self._settled()] if len(self.under_way) == AHEAD else []
        slot = self.slots[0]
        self.slots = [*self.slots[1:], slot]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            if batch is None:
                mine = slot.rows[: len(mine)].copy_(mine)
            self._step(mine, slot.keep[: len(keep)].copy_(keep), total, rate, batch, stop)
            slot.terms.copy_(self.terms, non_blocking=True)
            slot.done.record()
        torch.cuda.current_stream().wait_stream(self.stream)
        self.under_way.append((position, slot))
        return told

    def rest(self) -> list[Told]:
        """What the steps still under way told, once they are done."""
        return [self._settled() for _ in range(len(self.under_way))]

    def _settled(self) -> Told:
        position, slot = self.under_way.popleft()
        slot.done.synchronize()
        return _told(position, slot.terms)

    def _step(self, mine: Tensor, keep: Tensor, total: int, rate: float, batch: Batch | None, stop: bool) -> None:
        sizes = [len(part) for part in np.array_split(np.arange(len(mine)), self.config.accumulate)]
        self.rate.fill_(rate)
        alone = self.team.size == 1
        key = (*sizes, total)
        if self.capture and key in self.warm:
            self._replay(key, mine, keep, total)
        else:
            # The first step of a size runs launch by launch, which is what a capture needs to have seen.
            self.warm.add(key)
            batches = batch.split(sizes) if batch is not None else self._taken(self._there(mine), sizes)
            self._gradients(batches, self._there(keep), total)
            if alone:
                self._update()
        self.terms[-1] = float(stop)
        if not alone:
            self.team.sum_(self.flat)
            self._update()
            self._average()

    def _replay(self, key: tuple, rows: Tensor, keep: Tensor, total: int) -> None:
        if key not in self.graphs:
            held = self._there(rows), self._there(keep)
            graph = torch.cuda.CUDAGraph()
            pool = next((g.pool() for g, *_ in self.graphs.values()), None)
            with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                self._gradients(self._taken(held[0], key[:-1]), held[1], total)
                if self.team.size == 1:
                    self._update()
            self.graphs[key] = graph, *held
        graph, held_rows, held_keep = self.graphs[key]
        held_rows.copy_(rows, non_blocking=True)
        held_keep.copy_(keep, non_blocking=True)
        graph.replay()

    def _there(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)

    def _taken(self, rows: Tensor, sizes: Sequence[int]) -> Iterable[Batch]:
        for part in rows.split(list(sizes)):
            yield self.clips.at(part, self.streams)

    def _kept(self, position: int, rows: np.ndarray) -> Tensor:
        """What dropout leaves of this process's clips, bool (B, C, T', H', W'), by seed, step and place in it alone.

        So it is the same on any device, in any number of processes and parts, and after a pause.
        """
        config, shape = self.config, self.model.pooled_shape(self.clips.size)
        drawn = np.random.default_rng((config.seed, config.twin, position)).random((len(rows), *shape), np.float32)
        return torch.from_numpy(np.array_split(drawn, self.team.size)[self.team.rank] >= config.dropout)

    def _gradients(self, batches: Iterable[Batch], keep: Tensor, total: int) -> None:
        self.flat.zero_()
        first = 0
        weight = getattr(self.config, "lambda_", 0.0)
        for batch in batches:
            kept = keep[first : first + len(batch.labels)]
            first += len(batch.labels)
            # Within a graph the casts of weights must be made again at every replay.
            bf16 = self.device.type == "cuda"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
                pooled = self.model.pooled(batch.inputs[self.config.stream])
                logits = self.model.classify(pooled * kept / (1 - self.config.dropout)).float()
            cross_entropy = F.cross_entropy(logits, batch.labels, reduction="none")
            apart = torch.zeros_like(cross_entropy)
            if self.teacher:
                said = logits if self.distance.of == "logits" else pooled.float().mean((2, 3, 4))
                apart = self.distance.between(said, self.teacher(batch))
            loss = cross_entropy + weight * apart
            (loss.sum() / total).backward()
            right = (logits.argmax(1) == batch.labels).float()
            told = torch.stack([loss, cross_entropy, apart, right, torch.ones_like(loss), torch.zeros_like(loss)])
            self.terms += told.detach().sum(1)

    @torch.no_grad()
    def _update(self) -> None:
        # As torch.optim.SGD, whose import costs a second at every start and whose rate is no tensor on a CPU.
        config = self.config
        torch._foreach_add_(self.grads, self.params, alpha=config.weight_decay)
        torch._foreach_mul_(self.momenta, config.momentum)
        torch._foreach_add_(self.momenta, self.grads)
        torch._foreach_sub_(self.params, torch._foreach_mul(self.momenta, self.rate))

    @torch.no_grad()
    def _average(self) -> None:
        flat = self.team.sum_(torch.cat(self.averages)) / self.team.size
        torch._foreach_copy_(self.averages, list(flat.split([len(b) for b in self.averages])))

    def state(self) -> dict[str, Tensor]:
        """All that training changes, for `restore`."""
        momenta = {f"momentum.{name}": m for name, m in zip(self.named, self.momenta, strict=True)}
        return {f"model.{name}": value for name, value in self.model.state_dict().items()} | momenta

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from what `state` gave."""
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for name, momentum in zip(self.named, self.momenta, strict=True):
            momentum.copy_(tensors[f"momentum.{name}"])


def _told(position: int, values: Tensor) -> Told:
    found = dict(zip(TERMS, values.tolist(), strict=True))
    means = {k: v / found["clips"] for k, v in found.items() if k not in ("clips", "stop")}
    return Told(position, found | means)
