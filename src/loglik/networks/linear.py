"""The linear layer of every network here."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor, nn

from loglik.cpu.linear import linear

__all__ = ["Linear"]


class Linear(nn.Linear):
    r"""$y = x W^\top + b$: torch's layer, computed by `loglik.cpu.linear`."""

    def forward(self, x: Shaped[Tensor, "*B I"]) -> Shaped[Tensor, "*B O"]:
        return linear(x, self.weight, self.bias)
