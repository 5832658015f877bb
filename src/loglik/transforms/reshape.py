"""Volume-preserving maps that move values: Reshape, Permute, Squeeze."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.transforms.transform import Transform, zeros

__all__ = ["Permute", "Reshape", "Squeeze"]


class Reshape(Transform):
    """Map events of shape `before` to events of shape `after`.

    Raises:
        ValueError: shapes of different sizes.
    """

    columnwise = True

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        super().__init__()
        if math.prod(before) != math.prod(after):
            raise ValueError(f"before and after must have the same size, got shapes {tuple(before)} and {tuple(after)}")
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
    """Reorder dimensions, or channels: $z_d = x_{\\text{order}_d}$.

    Raises:
        ValueError: an order that is no permutation of 0 ... D-1.
    """

    order: Tensor
    inverse: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        chosen = torch.tensor(list(order))
        if not torch.equal(chosen.sort().values, torch.arange(len(chosen))):
            raise ValueError(f"order must contain each of 0 ... {len(chosen) - 1} once, got {list(order)}")
        self.register_buffer("order", chosen, persistent=False)
        self.register_buffer("inverse", chosen.argsort(), persistent=False)

    def encode(
        self, x: Shaped[Tensor, "B D ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Shaped[Tensor, "B D ..."], Float[Tensor, " B"]]:
        return x.index_select(1, self.order), zeros(x)

    def decode(
        self, z: Shaped[Tensor, "B D ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B D ..."]:
        return z.index_select(1, self.inverse)


class Squeeze(Transform):
    """Map each block of factor × factor pixels to one pixel with factor² times the channels.

    Raises:
        ValueError: a factor below 1; images whose sides are no multiples of the factor.

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
            raise ValueError(f"sides must be multiples of {self.factor}, got images of {x.shape[2]}×{x.shape[3]}")
        return F.pixel_unshuffle(x, self.factor), zeros(x)

    def decode(
        self, z: Shaped[Tensor, "B C2 H2 W2"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B C H W"]:
        return F.pixel_shuffle(z, self.factor)

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, height, width = shape
        return channels // self.factor**2, height * self.factor, width * self.factor
