r"""The Transform interface: an invertible map with its log-determinant.

`encode` maps data towards noise, and `decode` is its inverse. For $z = \text{encode}(x)$ the log-determinant is
$\log \lvert \det \partial z / \partial x \rvert$, so $\log p(x) = \log p(z) + \text{log\_det}$.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.density import Bound

__all__ = ["Transform", "sum_missing", "zeros"]


class Transform(nn.Module, ABC):
    """An invertible map; `bound` is `LOWER` if `encode` is random, as in a dequantization.

    Attributes:
        columnwise: the map changes each dimension by itself and keeps their order. It maps NaN, a missing value, to
            NaN, whose log-determinant is 0.
    """

    columnwise: bool = False

    @property
    def bound(self) -> Bound:
        return Bound.EXACT

    @abstractmethod
    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Shaped[Tensor, "B ..."], Float[Tensor, " B"]]:
        """Map data to noise: (z, log_det)."""

    @abstractmethod
    def decode(
        self, z: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B ..."]:
        """Map noise to data, the inverse of `encode`."""

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the event shape of x from that of z."""
        return shape

    def decoded_discrete(self, discrete: bool) -> bool:
        """Return whether p(x) is a probability, from whether p(z) is one."""
        return discrete

    def check(self, x: Shaped[Tensor, "B ..."]) -> None:
        """Raise ValueError for codes that `encode` is not defined on; `encode` checks too, as a density does."""
        return None

    def initialise(self, x: Shaped[Tensor, "N ..."]) -> None:
        """Set constants and initial parameters from training data, before the first step."""
        return None


def sum_missing(values: Float[Tensor, "..."], x: Shaped[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """Return for each row of x the sum of the values of the dimensions in which x is NaN, a missing value.

    A columnwise transform takes it from the log-determinant of all dimensions.
    """
    if not x.is_floating_point():
        return zeros(x)
    return torch.where(x.isnan(), values, 0.0).flatten(1).sum(1)


def zeros(x: Tensor) -> Float[Tensor, " B"]:
    """Return the log-determinant of a volume-preserving map."""
    return torch.zeros(len(x), device=x.device, dtype=x.dtype if x.is_floating_point() else torch.float32)
