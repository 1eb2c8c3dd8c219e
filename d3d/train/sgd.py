"""SGD with momentum, whose learning rate may change between replays of a CUDA graph."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d3d.study.parameters import OptimiserConfig


class Sgd:
    """SGD with momentum and weight decay as in torch.optim.SGD.

    Here the learning rate is a tensor, which may change between replays of a CUDA graph; torch.optim takes a second to
    import.

    Args:
        model: the network; parameters with requires_grad=False are skipped.
        config: gives momentum and weight decay.
        device: device of the parameters.

    Attributes:
        learning_rate: scalar tensor, read by `update`.
    """

    def __init__(self, model: nn.Module, config: OptimiserConfig, device: torch.device) -> None:
        self.model, self.config = model, config
        self.named_params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.params = list(self.named_params.values())
        self.momenta = [torch.zeros_like(p) for p in self.params]
        self.learning_rate = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor]) -> None:
        """Performs one optimiser step; adds the weight decay to the gradients in place.

        Args:
            gradients: one for each of `params`.
        """
        torch._foreach_add_(gradients, self.params, alpha=self.config.weight_decay)
        torch._foreach_mul_(self.momenta, self.config.momentum)
        torch._foreach_add_(self.momenta, gradients)
        torch._foreach_sub_(self.params, torch._foreach_mul(self.momenta, self.learning_rate))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns everything that training changes, by name: the model's state dict and the momenta."""
        momenta = {f"momentum.{name}": m for name, m in zip(self.named_params, self.momenta, strict=True)}
        return {f"model.{name}": value for name, value in self.model.state_dict().items()} | momenta

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Loads what `state_dict` returned."""
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for name, momentum in zip(self.named_params, self.momenta, strict=True):
            momentum.copy_(tensors[f"momentum.{name}"])
