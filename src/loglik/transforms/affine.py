"""Fixed affine maps: `Scale` by constants, `Standardise` by moments of the training data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.transforms.transform import Transform, sum_missing, zeros

__all__ = ["Scale", "Standardise"]

NORMAL_IQR = 1.349  # interquartile range of the standard normal distribution


class Scale(Transform):
    r"""Map $z = a x + b$ in each dimension; $\log\det = D \log \lvert a \rvert$.

    Raises:
        ValueError: a scale of 0.
    """

    columnwise = True

    def __init__(self, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        if scale == 0:
            raise ValueError("scale must not be 0: the map would not be invertible")
        self.scale, self.shift = scale, shift

    def encode(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        dims, log_scale = math.prod(x.shape[1:]), math.log(abs(self.scale))
        missing = sum_missing(torch.full((), log_scale, device=x.device), x)
        return self.scale * x + self.shift, zeros(x) + dims * log_scale - missing

    def decode(
        self, z: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        return (z - self.shift) / self.scale


class Standardise(Transform):
    r"""Map $z_d = (x_d - m_d) / s_d$ with the mean and standard deviation of each dimension of the training data.

    $\log\det = -\sum_d \log s_d$ keeps log-densities in the units of the data. A constant dimension has $s_d = 1$. If
    outliers make the standard deviation more than 5x the one that the quartiles of a normal distribution imply, the
    median and the quartiles replace mean and standard deviation.

    Args:
        event_shape: of the data.
        dims: for each dimension of the flattened event, whether it is standardised; all if None. The other dimensions
            are unchanged.
    """

    columnwise = True
    mean: Tensor
    std: Tensor
    dims: Tensor | None

    def __init__(self, event_shape: tuple[int, ...], dims: Sequence[bool] | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(event_shape))
        self.register_buffer("std", torch.ones(event_shape))
        chosen = None if dims is None or all(dims) else torch.tensor(list(dims)).view(event_shape)
        self.register_buffer("dims", chosen, persistent=False)

    def initialise(self, x: Float[Tensor, "N ..."]) -> None:
        rows = x.double()
        std = rows.std(0, unbiased=False)
        floor = 1e-6 * rows.abs().amax(0)
        low, middle, high = (_quantile(rows, q) for q in (0.25, 0.5, 0.75))
        robust = (high - low) / NORMAL_IQR
        outliers = (robust > 1e-6 * middle.abs()) & (std > 5 * robust)
        mean = torch.where(outliers, middle, rows.mean(0))
        std = torch.where(outliers, robust, torch.where(std > floor, std, torch.ones_like(std)))
        if self.dims is not None:
            mean, std = mean * self.dims, torch.where(self.dims, std, torch.ones_like(std))
        self.mean.copy_(mean)
        self.std.copy_(std)

    def encode(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        log_std = self.std.log()
        return (x - self.mean) / self.std, zeros(x) - log_std.sum() + sum_missing(log_std, x)

    def decode(
        self, z: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        return z * self.std + self.mean


def _quantile(x: Tensor, q: float) -> Tensor:
    """Return the quantile of each dimension over the rows; torch.quantile is limited to 16 million numbers."""
    return x.kthvalue(min(len(x), 1 + int(q * len(x))), dim=0).values
