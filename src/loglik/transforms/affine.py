"""The fixed affine maps: Scale by known constants, Standardise by the training data's mean and deviation."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.transforms.base import Transform, zeros

__all__ = ["Scale", "Standardise"]

NORMAL_QUARTILES = 1.349  # the distance between a standard normal's quartiles


class Scale(Transform):
    r"""$z = a x + b$ in every dimension; $\log\det = D \log \lvert a \rvert$."""

    def __init__(self, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        if scale == 0:
            raise ValueError("scale must not be 0: the map would not be invertible")
        self.scale, self.shift = scale, shift

    def encode(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        dims = math.prod(x.shape[1:])
        return self.scale * x + self.shift, zeros(x) + dims * math.log(abs(self.scale))

    def decode(
        self, z: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        return (z - self.shift) / self.scale


class Standardise(Transform):
    r"""$z_d = (x_d - m_d) / s_d$ with the mean and standard deviation of each dimension of the training data.

    $\log\det = -\sum_d \log s_d$, counted, so a log-density stays in the data's own units. A column that is
    constant keeps $s_d = 1$. Where the deviation is more than 5 times what the quartiles say, a few outliers made it,
    and the median and the quartiles stand in for mean and deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(event_shape))
        self.register_buffer("std", torch.ones(event_shape))

    def initialise(self, x: Float[Tensor, "N ..."]) -> None:
        wide = x.double()
        std = wide.std(0, unbiased=False)
        floor = 1e-6 * wide.abs().amax(0)
        low, middle, high = (_quantile(wide, q) for q in (0.25, 0.5, 0.75))
        robust = (high - low) / NORMAL_QUARTILES
        outliers = (robust > 1e-6 * middle.abs()) & (std > 5 * robust)
        self.mean.copy_(torch.where(outliers, middle, wide.mean(0)))
        self.std.copy_(torch.where(outliers, robust, torch.where(std > floor, std, torch.ones_like(std))))

    def encode(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        return (x - self.mean) / self.std, zeros(x) - self.std.log().sum()

    def decode(
        self, z: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        return z * self.std + self.mean


def _quantile(x: Tensor, q: float) -> Tensor:
    """Of each dimension over the rows; torch.quantile takes 16 million numbers at most."""
    return x.kthvalue(min(len(x), 1 + int(q * len(x))), dim=0).values
