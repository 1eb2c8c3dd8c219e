"""SGD with momentum over gradients that lie in one tensor."""

import numpy as np
import torch
from torch import Tensor, nn

from d3d.study.parameters import OptimiserConfig

# Gradients start at multiples of this many values, so that the widest loads can read them.
ALIGNMENT = 64


class Sgd:
    """SGD with momentum and weight decay as in torch.optim.SGD.

    That one takes a second to import and keeps its learning rate as a float, which a CUDA graph cannot change.

    Args:
        model: the network; parameters that need no gradient are left out.
        config: gives momentum and weight decay.
        device: where the parameters are.
        extra: how many values follow the gradients in the same tensor, so that one sum over processes covers both.

    Attributes:
        buffer: float32, the gradients of all parameters, then the extra values.
        extra: the extra values, a view of `buffer`.
        learning_rate: scalar tensor, read by `update`.
    """

    def __init__(self, model: nn.Module, config: OptimiserConfig, device: torch.device, *, extra: int) -> None:
        self.model, self.config = model, config
        self.named_params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.params = list(self.named_params.values())
        self.momenta = [torch.zeros_like(p) for p in self.params]
        self.learning_rate = torch.zeros((), device=device)
        offsets = np.cumsum([0, *(-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in self.params)])
        self.buffer = torch.zeros(int(offsets[-1]) + extra, device=device)
        for offset, p in zip(offsets.tolist(), self.params, strict=False):
            p.grad = self.buffer.as_strided(p.shape, p.stride(), offset)
        self.grads = [p.grad for p in self.params]
        self.extra = self.buffer[-extra:]

    @torch.no_grad()
    def update(self) -> None:
        """Updates the parameters by one step along the gradients."""
        torch._foreach_add_(self.grads, self.params, alpha=self.config.weight_decay)
        torch._foreach_mul_(self.momenta, self.config.momentum)
        torch._foreach_add_(self.momenta, self.grads)
        torch._foreach_sub_(self.params, torch._foreach_mul(self.momenta, self.learning_rate))

    def state(self) -> dict[str, Tensor]:
        """Returns everything that training changes, by name: the model's state, and the momenta."""
        momenta = {f"momentum.{name}": m for name, m in zip(self.named_params, self.momenta, strict=True)}
        return {f"model.{name}": value for name, value in self.model.state_dict().items()} | momenta

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Loads what `state` returned."""
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for name, momentum in zip(self.named_params, self.momenta, strict=True):
            momentum.copy_(tensors[f"momentum.{name}"])
