"""Split and Trim: one part of an image goes through further transforms, the other becomes noise."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loglik.flows.maps import Affine, Map
from loglik.transforms.transform import Transform

__all__ = ["Split", "Trim"]


class _Divided(Transform):
    r"""Map $z = (T(x_A),\ f(x_B;\ \theta(x_A)))$, flattened into one vector; A and B make up the event.

    `kept` is the shape of A and `rest` that of B, whose first dimension M is the number of maps for each position.
    """

    def __init__(
        self,
        shape: Sequence[int],
        kept: Sequence[int],
        rest: Sequence[int],
        inner: Sequence[Transform],
        network: nn.Module | None,
        map: Map,
    ) -> None:
        super().__init__()
        self.shape, self.kept, self.rest = tuple(shape), tuple(kept), tuple(rest)
        self.inner: Sequence[Transform] = nn.ModuleList(inner)  # type: ignore[assignment]
        self.network, self.map = network, map

    @abstractmethod
    def _divide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return A of shape (B, *kept) and B of shape (B, *rest)."""

    @abstractmethod
    def _join(self, a: Tensor, b: Tensor) -> Tensor:
        """Invert `_divide`."""

    @abstractmethod
    def _raw(self, network: nn.Module, a: Tensor) -> Tensor:
        """Return the maps' parameters (B, M · P, *N), where `rest` is (M, *N)."""

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.shape

    def initialise(self, x: Float[Tensor, "B C H W"]) -> None:
        a, _ = self._divide(x)
        for transform in self.inner:
            transform.initialise(a)
            a, _ = transform.encode(a)

    def _parameters_for(self, network: nn.Module, a: Tensor) -> Tensor:
        return self._raw(network, a).reshape(len(a) * self.rest[0], -1, *self.rest[1:])

    def encode(
        self, x: Float[Tensor, "B C H W"], context: Float[Tensor, "B *E"] | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        a, b = self._divide(x)
        log_det = torch.zeros(len(x), device=x.device, dtype=x.dtype)
        if self.network is not None:
            moved, log_slope = self.map.encode(b.flatten(0, 1), self._parameters_for(self.network, a))
            b, log_det = moved.view(b.shape), log_slope.reshape(len(x), -1).sum(1)
        for transform in self.inner:
            a, more = transform.encode(a, context)
            log_det = log_det + more
        return torch.cat([a, b.flatten(1)], dim=1), log_det

    def decode(self, z: Float[Tensor, "B D"], context: Float[Tensor, "B *E"] | None = None) -> Float[Tensor, "B C H W"]:
        size = math.prod(self.kept)
        a, b = z[:, :size], z[:, size:].view(-1, *self.rest)
        for transform in reversed(self.inner):
            a = transform.decode(a, context)
        if self.network is not None:
            b = self.map.decode(b.flatten(0, 1), self._parameters_for(self.network, a))[0].view(b.shape)
        return self._join(a, b)


class Split(_Divided):
    r"""A multi-scale flow: $z = (T(x_A),\ (x_B - \mu(x_A))\, e^{s(x_A)})$, flattened into one vector.

    The first half of the channels, A, goes through further transforms T. The second half, B, is standardised by a mean
    and a scale that a network computes from A, and is noise from there on.

    Args:
        shape: (C, H, W) of the events.
        inner: T, from events of shape (C/2, H, W) to vectors; the last is a `Reshape` or a `Split`.
        network: from (B, C/2, H, W) to (B, 2 (C - C/2), H, W); None leaves the second half unchanged.

    Raises:
        ValueError: fewer than 2 channels.

    References: Dinh et al. 2017, section 3.6; Kingma and Dhariwal 2018, whose code has the network.
    """

    def __init__(
        self, shape: tuple[int, int, int], inner: Sequence[Transform], network: nn.Module | None = None
    ) -> None:
        channels, height, width = shape
        if channels < 2:
            raise ValueError(f"a split needs at least 2 channels, got {channels}")
        half = channels // 2
        super().__init__(shape, (half, height, width), (channels - half, height, width), inner, network, Affine())

    def _divide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : self.kept[0]], x[:, self.kept[0] :]

    def _join(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], dim=1)

    def _raw(self, network: nn.Module, a: Tensor) -> Tensor:
        return network(a)


class Trim(_Divided):
    r"""Images with odd sides, split into an image A with even sides and the border B.

    $z = (T(x_A),\ f(x_B;\ \theta(x_A)))$: B is the last row, the last column or both. A network computes the parameters
    of its maps from A, padded to (H, W) with copies of its edge.

    Args:
        shape: (C, H, W) of the events; at least one side is odd, and both are above 1.
        inner: T, from events of shape (C, H - H mod 2, W - W mod 2) to vectors.
        network: from (B, C, H, W) to (B, C · P, H, W); the P parameters of a channel are contiguous.
        map: the family of f, with P parameters.

    Raises:
        ValueError: a side below 2, or two even sides.
    """

    border: Tensor
    inverse_order: Tensor

    def __init__(self, shape: tuple[int, int, int], inner: Sequence[Transform], network: nn.Module, map: Map) -> None:
        channels, height, width = shape
        even = height - height % 2, width - width % 2
        if min(even) < 2 or even == (height, width):
            raise ValueError(f"trimming needs images of 2×2 pixels or more with an odd side, got {height}×{width}")
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[: even[0], : even[1]] = True
        inside = inside.flatten()
        border = (~inside).nonzero().squeeze(1)
        super().__init__(shape, (channels, *even), (channels, len(border)), inner, network, map)
        self.register_buffer("border", border, persistent=False)
        order = torch.cat([inside.nonzero().squeeze(1), border])
        self.register_buffer("inverse_order", order.argsort(), persistent=False)

    def _divide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :, : self.kept[1], : self.kept[2]], x.flatten(2).index_select(2, self.border)

    def _join(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a.flatten(2), b], dim=2).index_select(2, self.inverse_order).view(-1, *self.shape)

    def _raw(self, network: nn.Module, a: Tensor) -> Tensor:
        sides = self.shape[2] - self.kept[2], self.shape[1] - self.kept[1]
        padded = F.pad(a, (0, sides[0], 0, sides[1]), mode="replicate")
        return network(padded).flatten(2).index_select(2, self.border)
