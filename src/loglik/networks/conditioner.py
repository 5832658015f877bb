"""The network of a coupling: an MLP whose outputs have the memory layout that the maps read."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.cpu.linear import linear_outputs_first
from loglik.networks.dropout import FadingDropout
from loglik.networks.mlp import MLP

__all__ = ["Conditioner"]


class Conditioner(MLP):
    """An `MLP` whose output tensor is stored outputs first, events last; its values are those of `MLP`.

    A coupling's maps then run along contiguous memory, without a copy of the largest tensor of a training step. All
    linear maps start as PyTorch's do, and dropout falls with the number of training rows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: tuple[int, ...] = (256, 256),
        *,
        context: int = 0,
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__(inputs, outputs, hidden, context=context, dropout=dropout, activation=activation)
        for number, layer in enumerate(self.body):
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
            if isinstance(layer, nn.Dropout):
                self.body[number] = FadingDropout(layer.p)

    def forward(self, x: Float[Tensor, "B ..."], context: Float[Tensor, "B E"] | None = None) -> Float[Tensor, "B O"]:
        h = x.flatten(1) if context is None else torch.cat([x.flatten(1), context], dim=1)
        for layer in self.body:
            h = linear_outputs_first(h, layer.weight, layer.bias).T if isinstance(layer, nn.Linear) else layer(h)
        return linear_outputs_first(h, self.output.weight, self.output.bias).T
