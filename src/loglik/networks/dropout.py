"""Dropout whose fraction falls with the number of training rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ByteDropout", "FadingDropout", "fade_dropout"]

INT64 = -(2**63)

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


class ByteDropout(nn.Dropout):
    """Dropout with a rate that is rounded to 1/256 on a CPU: one draw of 64 bits serves eight units.

    >>> ByteDropout(0.1).eval()(torch.ones(2))
    tensor([1., 1.])
    """

    def forward(self, input: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        dropped = round(256 * self.p)
        if not self.training or not 0 < dropped < 256 or input.device.type != "cpu":
            return super().forward(input)
        drawn = torch.empty(-(-input.numel() // 8), dtype=torch.int64).random_(INT64, None)
        kept = drawn.view(torch.uint8)[: input.numel()].view(input.shape) >= dropped
        return input * kept.to(input.dtype).mul_(256 / (256 - dropped))
