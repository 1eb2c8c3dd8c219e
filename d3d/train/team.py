"""A team, the processes that train one network together, one per GPU: collectives, and batch norm over all its clips.

with join_team() as team:             # reads torchrun's environment variables; without them, a team of one
    team.all_reduce_(gradients)       # sums them over the team
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, distributed, nn

# Timeout of collectives, after which a hung process is detected; a process that died is detected at once.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Team:
    """This process's place in a team.

    Attributes:
        rank: index of this process.
        size: number of processes.
        local_size: number of processes on this host.
        device: this process's device.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that reports and writes."""
        return self.rank == 0

    def cores_per_process(self) -> int:
        """Returns the number of CPU cores per process of this host, at least 1."""
        # Imported here because every process imports this module, but only teams that decode video need joblib.
        from joblib import cpu_count

        return max(1, cpu_count() // self.local_size)

    def decoders(self) -> int:
        """Returns the number of worker processes that decode for this process; 0: one per core."""
        # torchrun sets OMP_NUM_THREADS=1, which must not limit the number of decoding workers.
        return 0 if self.size == 1 else self.cores_per_process()

    def check_size(self, processes: int) -> None:
        """Raises ValueError if a run's parameter `processes` asks for several processes, but not for so many."""
        if processes > 1 and processes != self.size:
            raise ValueError(
                f"processes is {processes}, but the number of running processes is {self.size}: start the run with "
                f"torchrun --nproc-per-node {processes}, or leave the parameter out"
            )

    def all_reduce_(self, x: Tensor) -> Tensor:
        """Sums x over the team, in place, in every process."""
        if self.size > 1:
            distributed.all_reduce(x)
        return x

    def start_all_reduce_(self, x: Tensor) -> Callable[[], object]:
        """Starts to sum x over the team, in place, while this process goes on; returns a function that waits for it."""
        if self.size == 1:
            return lambda: None
        return distributed.all_reduce(x, async_op=True).wait

    def broadcast(self, value: Any) -> Any:
        """Returns the first process's value in every process."""
        values = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values, device=torch.device(self.device))
        return values[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, by rank, in every process."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    def share(self, find: Callable[[list[str]], dict[str, Any]], names: list[str]) -> dict[str, Any]:
        """Divides a search among the processes; all of them get what all have found.

        Args:
            find: maps names to what it finds of some of them.
            names: what to look at, such as paths; the same in every process.

        Raises:
            ValueError: if the processes have different names, as where hosts do not see the same files.
        """
        own_results = find(names[self.rank :: self.size])
        if self.size == 1:
            return own_results
        lists, parts = zip(
            *self.all_gather((crc32("\0".join(names).encode(errors="surrogateescape")), own_results)), strict=True
        )
        if len(set(lists)) > 1:
            raise ValueError(
                "the processes of this run do not see the same files: every host needs the same data set, at one path"
            )
        return {name: value for part in parts for name, value in part.items()}


SINGLE_PROCESS = Team()


@contextmanager
def join_team() -> Iterator[Team]:
    """Joins the team that torchrun started, over NCCL on GPUs and gloo on CPUs; without torchrun, yields a team of one.

    Raises:
        ValueError: if this host has more processes than GPUs.
    """
    cuda = torch.cuda.is_available()
    # Set only by torchrun.
    size, local_size, rank, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    if cuda and local_size > torch.cuda.device_count():
        raise ValueError(f"{local_size} processes need {local_size} GPUs, this machine has {torch.cuda.device_count()}")
    device = f"cuda:{local_rank}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield Team(device=device)
        return
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    yield Team(rank, size, local_size, device)
    # Not in a `finally`: after an exception it would wait for processes that are gone.
    distributed.destroy_process_group()


def use_synced_norm(model: nn.Module) -> nn.Module:
    """Replaces every batch norm by one that normalises over the clips of all processes; state-dict keys stay the same.

    Returns:
        `model`, changed in place.
    """
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if type(norm) is nn.BatchNorm3d:
                synced = SyncedBatchNorm3d(norm.num_features, eps=norm.eps, momentum=norm.momentum)
                synced = synced.to(norm.weight.device)
                synced.load_state_dict(norm.state_dict())
                synced.weight.requires_grad_(norm.weight.requires_grad)
                setattr(module, name, synced.train(norm.training))
    return model


class SyncedBatchNorm3d(nn.BatchNorm3d):
    """Batch norm over the clips of all processes, on CPUs too, unlike torch.nn.SyncBatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes, shape = (0, 2, 3, 4), (-1, 1, 1, 1)
        x32 = x.float()
        count = _AllReduceSum.apply(x32.new_tensor([x.numel() / x.shape[1]]))
        mean = _AllReduceSum.apply(x32.sum(axes)) / count
        centred = x32 - mean.view(shape)
        var = _AllReduceSum.apply(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        y = centred * (var + self.eps).rsqrt().view(shape)
        return (y * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


class _AllReduceSum(torch.autograd.Function):
    """Sums over processes, forward and backward: every process uses the sum, so their gradients add up."""

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
