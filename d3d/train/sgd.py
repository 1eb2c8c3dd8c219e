"""SGD with momentum over gradients that lie in one tensor."""

import numpy as np
import torch
from torch import Tensor, nn

from d3d.study.parameters import OptimiserConfig

# Gradients start where the widest load can read them.
ALIGNED = 64


class Sgd:
    """Momentum and weight decay as in torch.optim.SGD, which takes a second to import and keeps its learning rate as a
    float.

    extra: how many values follow the gradients in the same tensor, so that one sum over processes is enough.
    """

    def __init__(self, model: nn.Module, config: OptimiserConfig, device: torch.device, *, extra: int) -> None:
        self.model, self.config = model, config
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.params = list(self.named.values())
        self.momenta = [torch.zeros_like(p) for p in self.params]
        self.learning_rate = torch.zeros((), device=device)
        starts = np.cumsum([0, *(-(-p.numel() // ALIGNED) * ALIGNED for p in self.params)])
        self.flat = torch.zeros(int(starts[-1]) + extra, device=device)
        for start, p in zip(starts.tolist(), self.params, strict=False):
            p.grad = self.flat.as_strided(p.shape, p.stride(), start)
        self.grads = [p.grad for p in self.params]
        self.extra = self.flat[-extra:]

    @torch.no_grad()
    def update(self) -> None:
        """One step along the gradients."""
        torch._foreach_add_(self.grads, self.params, alpha=self.config.weight_decay)
        torch._foreach_mul_(self.momenta, self.config.momentum)
        torch._foreach_add_(self.momenta, self.grads)
        torch._foreach_sub_(self.params, torch._foreach_mul(self.momenta, self.learning_rate))

    def state(self) -> dict[str, Tensor]:
        """All that training changes, for `restore`."""
        momenta = {f"momentum.{name}": m for name, m in zip(self.named, self.momenta, strict=True)}
        return {f"model.{name}": value for name, value in self.model.state_dict().items()} | momenta

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Resumes from what `state` gave."""
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for name, momentum in zip(self.named, self.momenta, strict=True):
            momentum.copy_(tensors[f"momentum.{name}"])
