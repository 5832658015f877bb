"""Split: half of the channels goes on through further transforms, the other half is done (Dinh et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.flows.maps import Affine
from loglik.transforms.base import Transform

__all__ = ["Split"]


class Split(Transform):
    r"""A multi-scale flow: $z = (T(x_A),\ (x_B - \mu(x_A))\, e^{s(x_A)})$, flattened into one vector.

    The first half of the channels, A, goes through the further transforms T; the others are standardised by what a
    network makes of the first half and are noise from there on. As everything is kept, the map is invertible.

    Args:
        shape: (C, H, W) of the events.
        inner: T, from events of shape (C/2, H, W) to vectors: its last is a `Reshape` or a `Split`.
        network: from (B, C/2, H, W) to (B, 2 (C - C/2), H, W); None leaves the second half as it is.

    Source: Dinh et al. 2017, section 3.6; Kingma and Dhariwal 2018, whose code has the network.
    """

    def __init__(
        self, shape: tuple[int, int, int], inner: Sequence[Transform], network: nn.Module | None = None
    ) -> None:
        super().__init__()
        if shape[0] < 2:
            raise ValueError(f"a split needs at least 2 channels, got {shape[0]}")
        self.shape, self.first = tuple(shape), shape[0] // 2
        self.inner: Sequence[Transform] = nn.ModuleList(inner)  # type: ignore[assignment]
        self.network, self.map = network, Affine()

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.shape

    def initialise(self, x: Float[Tensor, "B C H W"]) -> None:
        a = x[:, : self.first]
        for transform in self.inner:
            transform.initialise(a)
            a, _ = transform.encode(a)

    def _parameters_for(self, a: Tensor, b: Tensor) -> Tensor:
        assert self.network is not None
        return self.network(a).reshape(b.shape[0] * b.shape[1], 2, *b.shape[2:])

    def encode(
        self, x: Float[Tensor, "B C H W"], context: Float[Tensor, "B *E"] | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        a, b = x[:, : self.first], x[:, self.first :]
        log_det = torch.zeros(len(x), device=x.device, dtype=x.dtype)
        if self.network is not None:
            moved, log_slope = self.map.encode(b.flatten(0, 1), self._parameters_for(a, b))
            b, log_det = moved.view(b.shape), log_slope.reshape(len(x), -1).sum(1)
        for transform in self.inner:
            a, more = transform.encode(a, context)
            log_det = log_det + more
        return torch.cat([a, b.flatten(1)], dim=1), log_det

    def decode(self, z: Float[Tensor, "B D"], context: Float[Tensor, "B *E"] | None = None) -> Float[Tensor, "B C H W"]:
        channels, *size = self.shape
        numbers = self.first * math.prod(size)
        a, b = z[:, :numbers], z[:, numbers:].view(-1, channels - self.first, *size)
        for transform in reversed(self.inner):
            a = transform.decode(a, context)
        if self.network is not None:
            b = self.map.decode(b.flatten(0, 1), self._parameters_for(a, b))[0].view(b.shape)
        return torch.cat([a, b], dim=1)
