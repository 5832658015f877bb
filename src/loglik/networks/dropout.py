"""Dropout that fades as there are more training examples."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FadingDropout", "expect_rows"]

FEW = 1000  # up to so many training examples all of the dropout is wanted


class FadingDropout(nn.Module):
    r"""Dropout of a fraction $p \min(1, 1000 / N)$ of the units for N training examples, once N is known.

    What keeps a network from learning a few hundred rows by heart costs likelihood on tens of thousands.
    """

    p: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.most = p
        self.register_buffer("p", torch.tensor(p))

    def forward(self, h: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if not self.training or self.most == 0:
            return h
        return h * (torch.rand_like(h) >= self.p) / (1 - self.p)


def expect_rows(network: nn.Module, rows: int) -> None:
    """Tell a network's fading dropouts how many training examples there are."""
    for module in network.modules():
        if isinstance(module, FadingDropout):
            module.p.fill_(module.most * min(1.0, FEW / rows))
