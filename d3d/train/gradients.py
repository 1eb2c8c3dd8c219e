"""The gradients of a step and, in a team, their sum over its processes, computed while the backward pass goes on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from d3d.train.team import Team

# A sum over processes starts when this many bytes of gradients are complete.
BUCKET_BYTES = 2**23


class Gradients:
    """Gradients of a network's parameters, and what else is summed over a team in the same messages.

    Args:
        model: the network; parameters with requires_grad=False are skipped.
        team: the processes that train together.
        device: device of the parameters.
        num_extra: number of values besides the gradients that are summed over the team, `extra`.

    Attributes:
        extra: float32 (num_extra,), to be filled before `finish`.
        values: after `finish`, the gradient of each parameter, in the order of `params`.
    """

    def __init__(self, model: nn.Module, team: Team, device: torch.device, *, num_extra: int) -> None:
        self.team = team
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.extra = torch.zeros(num_extra, device=device)
        self.values: Sequence[Tensor] = ()
        self.is_last = False
        if team.size == 1:
            return
        # Averaged over processes, so that all of them have the same network.
        self.running_stats = [b for b in model.buffers() if b.is_floating_point()]
        self.buckets = [_Bucket(params, device) for params in _group(self.params)]
        self.last_bucket = _Bucket([*self.running_stats, self.extra], device)
        views = {p: view for bucket in self.buckets for p, view in zip(bucket.tensors, bucket.views, strict=True)}
        self.sums = [views[p] for p in self.params]
        for bucket in self.buckets:
            for p in bucket.tensors:
                p.register_post_accumulate_grad_hook(self._count(bucket))

    def clear(self) -> None:
        """Starts a step."""
        for p in self.params:
            p.grad = None
        self.extra.zero_()
        self.is_last, self.waits = False, []
        if self.team.size > 1:
            self.pending = list(self.buckets)
            for bucket in self.buckets:
                bucket.missing = len(bucket.tensors)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Adds the gradients of a loss; `is_last` says that no other follows in this step."""
        self.is_last = is_last
        loss.backward()

    def finish(self) -> None:
        """Sums gradients and extra values over the team and averages the running statistics of batch norms."""
        if self.team.size == 1:
            self.values = [p.grad for p in self.params]
            return
        self.last_bucket.fill([*self.running_stats, self.extra])
        self.waits.append(self.team.start_all_reduce_(self.last_bucket.flat))
        for wait in self.waits:
            wait()
        self.values = self.sums
        *means, extra = self.last_bucket.views
        torch._foreach_copy_(self.running_stats, torch._foreach_div(means, self.team.size))
        self.extra.copy_(extra)

    def _count(self, bucket: "_Bucket") -> Callable[[Tensor], None]:
        """Returns a hook that starts sums when a bucket is complete, in the same order in all processes."""

        def hook(_: Tensor) -> None:
            if not self.is_last:
                return
            bucket.missing -= 1
            while self.pending and not self.pending[0].missing:
                complete = self.pending.pop(0)
                complete.fill([p.grad for p in complete.tensors])
                self.waits.append(self.team.start_all_reduce_(complete.flat))

        return hook


class _Bucket:
    """Tensors that are summed over a team in one message, through a flat copy.

    Attributes:
        tensors: the tensors, or the parameters whose gradients they are.
        flat: float32, their values, one after another.
        views: views of `flat` in the shapes of the tensors.
        missing: number of gradients of this step that are not complete.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self.tensors, self.missing = list(tensors), 0
        sizes = [t.numel() for t in tensors]
        self.flat = torch.empty(sum(sizes), device=device)
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        self.views = [self.flat.as_strided(t.shape, t.stride(), o) for t, o in zip(tensors, offsets, strict=True)]

    @torch.no_grad()
    def fill(self, values: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.views, list(values))


def _group(params: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Groups parameters in the order in which a backward pass completes their gradients, about the last ones first."""
    groups: list[list[nn.Parameter]] = [[]]
    for p in reversed(params):
        if sum(q.numel() for q in groups[-1]) * 4 >= BUCKET_BYTES:
            groups.append([])
        groups[-1].append(p)
    return groups
