"""Reshape: the same numbers under another event shape."""

from __future__ import annotations

import math

from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.transforms.base import Transform, zeros

__all__ = ["Reshape"]


class Reshape(Transform):
    """Events of shape `before` become events of shape `after`; the volume is kept."""

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        super().__init__()
        if math.prod(before) != math.prod(after):
            raise ValueError(f"shapes {tuple(before)} and {tuple(after)} do not hold equally many numbers")
        self.before, self.after = tuple(before), tuple(after)

    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Shaped[Tensor, "B ..."], Float[Tensor, " B"]]:
        return x.reshape(-1, *self.after), zeros(x)

    def decode(
        self, z: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B ..."]:
        return z.reshape(-1, *self.before)

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.before
