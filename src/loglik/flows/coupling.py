"""Coupling: a part of the dimensions is transformed elementwise, given the rest (Dinh et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.flows.spline import parameters_per_dim, rational_quadratic_spline
from loglik.transforms.base import Transform

__all__ = ["SplineCoupling"]


class SplineCoupling(Transform):
    r"""Spline the dimensions where `mask` is true, with parameters that a network reads off the others.

    $z_A = x_A,\quad z_B = \text{spline}(x_B;\ \theta(x_A, c))$, so the Jacobian is triangular and
    $\log\det = \sum_{d \in B} \log \lvert \partial z_d / \partial x_d \rvert$.

    Args:
        mask: for each of the D dimensions, whether it is transformed.
        network: from the (B, D - m) kept numbers, and the context if there is one, to (B, m · (3K - 1)),
            where m dimensions are transformed.
        bins, interval: K bins on [-interval, interval]; outside, the map is the identity.

    Source: Durkan et al. 2019, "Neural Spline Flows".
    """

    moved: Tensor
    kept: Tensor

    def __init__(self, mask: Sequence[bool], network: nn.Module, *, bins: int = 8, interval: float = 4.0) -> None:
        super().__init__()
        chosen = torch.tensor(list(mask), dtype=torch.bool)
        if chosen.all() or not chosen.any():
            raise ValueError("a coupling needs a dimension to transform and one to condition on")
        self.bins, self.interval = bins, interval
        self.network = network
        self.register_buffer("moved", chosen.nonzero().squeeze(1), persistent=False)
        self.register_buffer("kept", (~chosen).nonzero().squeeze(1), persistent=False)

    def _couple(
        self, x: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None, *, inverse: bool
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        given = x[:, self.kept]
        raw = self.network(given) if context is None else self.network(given, context)
        y, log_slope = rational_quadratic_spline(
            x[:, self.moved],
            raw.view(len(x), len(self.moved), parameters_per_dim(self.bins)),
            bins=self.bins,
            bound=self.interval,
            inverse=inverse,
        )
        return x.index_copy(1, self.moved, y), log_slope.sum(1)

    def encode(
        self, x: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        return self._couple(x, context, inverse=False)

    def decode(self, z: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None = None) -> Float[Tensor, "B D"]:
        return self._couple(z, context, inverse=True)[0]
