"""Dropout whose fraction falls with the number of training rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FadingDropout", "fade_dropout"]

FULL_DROPOUT_ROWS = 1000  # up to this many training rows, dropout is not reduced


class FadingDropout(nn.Module):
    r"""Dropout of a fraction $p \min(1, 1000 / N)$ of the units for N training rows, set by `fade_dropout`.

    Dropout prevents overfitting to a few hundred rows, but costs likelihood with tens of thousands.

    Args:
        p: the fraction for up to 1000 rows.
    """

    p: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.max_p = p
        self.register_buffer("p", torch.tensor(p))

    def forward(self, h: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if not self.training or self.max_p == 0:
            return h
        return h * (torch.rand_like(h) >= self.p) / (1 - self.p)


def fade_dropout(network: nn.Module, rows: int) -> None:
    """Set the fraction of each `FadingDropout` in a network from the number of training rows."""
    for module in network.modules():
        if isinstance(module, FadingDropout):
            module.p.fill_(module.max_p * min(1.0, FULL_DROPOUT_ROWS / rows))
