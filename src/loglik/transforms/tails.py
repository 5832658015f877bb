"""SoftTails: a logarithm for far values, so that a flow's networks do not receive numbers in the millions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.transforms.transform import Transform

__all__ = ["SoftTails"]


class SoftTails(Transform):
    r"""The identity within $\pm c$, and $z = \operatorname{sign}(x) c (1 + \log(\lvert x \rvert / c))$ beyond.

    The slope is continuous, $\min(1, c / \lvert x \rvert)$. Under a normal base the density then has the tails of a
    log-normal distribution instead of $e^{-x^2 / 2}$: an outlier at $10^6$ costs about a thousand nats, not $10^{12}$.

    Args:
        start: c.

    Raises:
        ValueError: a start of at most 0.
    """

    columnwise = True

    def __init__(self, start: float = 4.0) -> None:
        super().__init__()
        if start <= 0:
            raise ValueError(f"start must be above 0, got {start}")
        self.start = start

    def encode(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        beyond = (x.abs().clamp_min(self.start) / self.start).log()
        z = torch.where(beyond > 0, x.sign() * self.start * (1 + beyond), x)
        return z, -beyond.masked_fill(x.isnan(), 0).flatten(1).sum(1)

    def decode(
        self, z: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        beyond = (z.abs() / self.start - 1).clamp(0, 85)  # e^85 is near the largest float32
        return torch.where(beyond > 0, z.sign() * self.start * beyond.exp(), z)
