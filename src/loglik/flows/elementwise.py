"""Elementwise spline: every dimension through its own learned monotone map."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.flows.spline import parameters_per_dim, rational_quadratic_spline
from loglik.transforms.base import Transform

__all__ = ["ElementwiseSpline"]


class ElementwiseSpline(Transform):
    r"""$z_d = \text{spline}(x_d; \theta_d)$ with free parameters, or with parameters read off the context.

    Args:
        dims: D.
        bins, interval: K bins on [-interval, interval]; outside, the map is the identity.
        network: from the context (B, E) to (B, D · (3K - 1)), added to the free parameters; None for none.
    """

    def __init__(self, dims: int, *, bins: int = 8, interval: float = 4.0, network: nn.Module | None = None) -> None:
        super().__init__()
        self.bins, self.interval, self.network = bins, interval, network
        self.raw = nn.Parameter(torch.zeros(dims, parameters_per_dim(bins)))

    def _spline(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = self.raw.expand(len(x), -1, -1)
        if self.network is not None:
            raw = raw + self.network(context).view(raw.shape)
        y, log_slope = rational_quadratic_spline(x, raw, bins=self.bins, bound=self.interval, inverse=inverse)
        return y, log_slope.sum(1)

    def encode(
        self, x: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        return self._spline(x, context, inverse=False)

    def decode(self, z: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None = None) -> Float[Tensor, "B D"]:
        return self._spline(z, context, inverse=True)[0]
