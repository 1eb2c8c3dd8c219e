"""Processes that train one network together, one a GPU: sums over them, and batch norm over all their clips.

with joined() as team:                # torchrun sets what is read here; a process alone is a team of one
    team.sum_(gradients)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

# A process that dies is noticed at once; this is for one that hangs.
PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Team:
    """This process's rank among `size`, `local` of which share its host, and its device."""

    rank: int = 0
    size: int = 1
    local: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process is the one that reports and writes."""
        return self.rank == 0

    def cores(self) -> int:
        """This process's share of its host's cores."""
        # Only teams that decode need it, and every process starts with this module.
        from joblib import cpu_count

        return max(1, cpu_count() // self.local)

    def sum_(self, x: Tensor) -> Tensor:
        """x summed over the team, in place and on all."""
        if self.size > 1:
            distributed.all_reduce(x)
        return x

    def share(self, value: Any) -> Any:
        """What the first process has, on all."""
        values = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values, device=torch.device(self.device))
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """What each process has, by rank, on all."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values


ALONE = Team()


@contextmanager
def joined() -> Iterator[Team]:
    """The team that torchrun started, through NCCL on GPUs and gloo on CPUs; without torchrun, a team of one."""
    cuda = torch.cuda.is_available()
    # Only torchrun sets these.
    size, local, rank, place = (
        int(os.environ.get(name, alone))
        for name, alone in (("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    if cuda and local > torch.cuda.device_count():
        raise ValueError(f"{local} processes need {local} GPUs, this machine has {torch.cuda.device_count()}")
    device = f"cuda:{place}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield Team(device=device)
        return
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    yield Team(rank, size, local, device)
    # Not after an exception: it would wait for processes that are no more.
    distributed.destroy_process_group()


def synchronise(model: nn.Module) -> nn.Module:
    """Makes every batch norm take its statistics from the clips of all processes; the model's state keeps its names."""
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if type(norm) is nn.BatchNorm3d:
                synced = SyncedNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum).to(norm.weight.device)
                synced.load_state_dict(norm.state_dict())
                synced.weight.requires_grad_(norm.weight.requires_grad)
                setattr(module, name, synced.train(norm.training))
    return model


class SyncedNorm(nn.BatchNorm3d):
    """Batch norm over the clips of all processes; PyTorch's own needs a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes, shape = (0, 2, 3, 4), (-1, 1, 1, 1)
        whole = x.float()
        count = _Sum.apply(whole.new_tensor([x.numel() / x.shape[1]]))
        mean = _Sum.apply(whole.sum(axes)) / count
        centred = whole - mean.view(shape)
        var = _Sum.apply(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        y = centred * (var + self.eps).rsqrt().view(shape)
        return (y * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """A sum over processes; the gradient of a sum that all of them use is the sum of their gradients."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, dx):
        dx = dx.clone()
        distributed.all_reduce(dx)
        return dx
