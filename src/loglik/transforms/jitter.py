"""Jitter: noise on the training data, against overfitting to few rows."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.transforms.transform import Transform, zeros

__all__ = ["Jitter"]


class Jitter(Transform):
    r"""Add noise in training: $z = x + \sigma \varepsilon$, $\sigma = \min(c / N, 1/2)$ for N training rows.

    The density of noisy data is a smoothed density of the data; it is smoothed more if there are fewer rows. In
    evaluation the transform is the identity, so that the density is exact.

    Args:
        strength: c, for events of about unit variance.

    Reference: Rothfuss et al. 2019, "Noise regularization for conditional density estimation", with a rate of our own.
    """

    columnwise = True
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
