r"""The Transform interface: an invertible map with its log-determinant.

`encode` takes data towards noise, `decode` is its inverse. For $z = \text{encode}(x)$ the log-determinant is
$\log \lvert \det \partial z / \partial x \rvert$, so $\log p(x) = \log p(z) + \text{log\_det}$.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.density import Bound

__all__ = ["Transform", "zeros"]


class Transform(nn.Module, ABC):
    """An invertible map. Where `encode` is random (a dequantization) its bound is `LOWER`."""

    @property
    def bound(self) -> Bound:
        return Bound.EXACT

    @abstractmethod
    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Shaped[Tensor, "B ..."], Float[Tensor, " B"]]:
        """Data to noise: (z, log_det), log_det of shape (B,)."""

    @abstractmethod
    def decode(
        self, z: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B ..."]:
        """Noise to data, the inverse of `encode`."""

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The event shape of x for an event shape of z."""
        return shape

    def decoded_discrete(self, discrete: bool) -> bool:
        """Whether p(x) is a probability where that of z is, `discrete`, or is not."""
        return discrete

    def initialise(self, x: Shaped[Tensor, "N ..."]) -> None:
        """Set what depends on data from training data, before the first step."""
        return None


def zeros(x: Tensor) -> Float[Tensor, " B"]:
    """The log-determinant of a map that keeps volume."""
    return torch.zeros(len(x), device=x.device, dtype=x.dtype if x.is_floating_point() else torch.float32)
