"""Jitter: noise on the training data, so that a flow cannot learn few rows by heart."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.transforms.base import Transform, zeros

__all__ = ["Jitter"]


class Jitter(Transform):
    r"""In training $z = x + \sigma \varepsilon$, $\sigma = \min(c / N, 1/2)$ for N training events; else the identity.

    The density of noisy data is the data's density, smoothed: the fewer the events, the more. Nothing is added in
    evaluation, so that the density stays exact.

    Args:
        strength: c, for events of about unit variance.

    Reference: Rothfuss et al. 2019, "Noise regularization for conditional density estimation", with a rate of our own.
    """

    scale: Tensor

    def __init__(self, strength: float = 80.0) -> None:
        super().__init__()
        self.strength = strength
        self.register_buffer("scale", torch.zeros(()))

    def initialise(self, x: Float[Tensor, "N ..."]) -> None:
        self.scale.fill_(min(self.strength / len(x), 0.5))

    def encode(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        return (x + self.scale * torch.randn_like(x) if self.training else x), zeros(x)

    def decode(
        self, z: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        return z
