"""Dequantize: from whole numbers to real ones, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.density import Bound
from loglik.transforms.base import Transform, zeros

__all__ = ["Dequantize"]


class Dequantize(Transform):
    r"""Uniform dequantization: $v = x + u$, $u \sim \mathcal U[0, 1)^D$.

    For a density $p_v$ over reals, $P(x) = \int_{[0,1)^D} p_v(x + u)\,du$ is a probability over whole numbers,
    and $\log p_v(x + u)$ is the logarithm of an importance weight for it, hence a sample of a lower bound.

    Args:
        levels: whole numbers 0 ... levels-1 in every dimension; None leaves the range open.
        discrete: for each dimension whether it is a whole number; the others pass unchanged. All by default.

    Source: Theis et al. 2016, "A note on the evaluation of generative models", section 3.1.
    """

    mask: Tensor | None

    def __init__(self, levels: int | None = None, discrete: Sequence[bool] | None = None) -> None:
        super().__init__()
        if levels is not None and levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.levels = levels
        self.whole = discrete is None or all(discrete)
        mask = None if discrete is None else torch.tensor(list(discrete), dtype=torch.bool)
        self.register_buffer("mask", mask, persistent=False)

    @property
    def bound(self) -> Bound:
        return Bound.LOWER

    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        v = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        u = torch.rand_like(v)
        if self.mask is not None:
            u = u * self.mask
        return v + u, zeros(v)

    def decode(
        self, z: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B ..."]:
        if self.mask is not None:
            return torch.where(self.mask, z.floor(), z)
        x = z.floor()
        if self.levels is None:
            return x.long()
        return x.clamp(0, self.levels - 1).to(torch.uint8 if self.levels <= 256 else torch.int64)

    def decoded_discrete(self, discrete: bool) -> bool:
        return self.whole
