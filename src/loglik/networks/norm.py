"""Root-mean-square norm where a network's input may be of lower precision than its weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["RMSNorm"]


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, computed in the precision of its weight: under autocast torch's own warns and is slower."""

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)
