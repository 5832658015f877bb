"""Maps that move numbers and keep the volume: Reshape, Permute, Squeeze."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.transforms.base import Transform, zeros

__all__ = ["Permute", "Reshape", "Squeeze"]


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


class Permute(Transform):
    """$z_d = x_{\\text{order}_d}$: the dimensions, or channels, in another order."""

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        chosen = torch.tensor(list(order))
        if not torch.equal(chosen.sort().values, torch.arange(len(chosen))):
            raise ValueError(f"order must hold each of 0 ... {len(chosen) - 1} once, got {list(order)}")
        self.register_buffer("order", chosen, persistent=False)
        self.register_buffer("back", chosen.argsort(), persistent=False)

    def encode(
        self, x: Shaped[Tensor, "B D ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Shaped[Tensor, "B D ..."], Float[Tensor, " B"]]:
        return x.index_select(1, self.order), zeros(x)

    def decode(
        self, z: Shaped[Tensor, "B D ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B D ..."]:
        return z.index_select(1, self.back)


class Squeeze(Transform):
    """Each block of factor × factor pixels becomes one pixel with factor² as many channels.

    Reference: Dinh et al. 2017, "Density estimation using Real NVP", section 3.6.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor must be at least 1, got {factor}")
        self.factor = factor

    def encode(
        self, x: Shaped[Tensor, "B C H W"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Shaped[Tensor, "B C2 H2 W2"], Float[Tensor, " B"]]:
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(f"{x.shape[2]}×{x.shape[3]} pixels do not divide into blocks of {self.factor}")
        return F.pixel_unshuffle(x, self.factor), zeros(x)

    def decode(
        self, z: Shaped[Tensor, "B C2 H2 W2"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B C H W"]:
        return F.pixel_shuffle(z, self.factor)

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, height, width = shape
        return channels // self.factor**2, height * self.factor, width * self.factor
