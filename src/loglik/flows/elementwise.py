"""Elementwise: a learned monotone map for each dimension."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.flows.maps import Map
from loglik.regions import region
from loglik.transforms.transform import Transform

__all__ = ["Elementwise"]


class Elementwise(Transform):
    r"""Map $z_d = f(x_d; \theta_d)$ with free parameters, plus an optional function of the context.

    Args:
        dims: D.
        map: the family of f, with P parameters.
        network: from the context (B, E) to (B, D · P), which is added to the free parameters; None for no context.

    The training data's marginal distributions initialise the free parameters (`Map.start`).
    """

    def __init__(self, dims: int, map: Map, *, network: nn.Module | None = None) -> None:
        super().__init__()
        self.map, self.network = map, network
        self.raw = nn.Parameter(torch.zeros(dims, map.parameters))

    def initialise(self, x: Float[Tensor, "N D"]) -> None:
        with torch.no_grad():
            self.raw.copy_(self.map.start(x.T))

    def _parameters_for(self, x: Tensor, context: Tensor | None) -> Float[Tensor, "D P B"]:
        raw = self.raw.unsqueeze(2).expand(-1, -1, len(x))
        if self.network is None:
            return raw
        return raw + self.network(context).T.reshape(raw.shape)

    @region
    def encode(
        self, x: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        z, log_slope = self.map.encode(x.T, self._parameters_for(x, context))
        return z.T, log_slope.sum(0)

    def decode(self, z: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None = None) -> Float[Tensor, "B D"]:
        return self.map.decode(z.T, self._parameters_for(z, context))[0].T
