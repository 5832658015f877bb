"""Logit: the logit on the unit interval, continued linearly to the real line."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.transforms.transform import Transform

__all__ = ["Logit"]


class Logit(Transform):
    r"""Map $z = \log s - \log(1 - s)$, $s = \alpha + (1 - 2\alpha) x$, on [0, 1], continued linearly beyond.

    $\log\det = \sum_d \log(1 - 2\alpha) - \log s_d - \log(1 - s_d)$, with s at the nearer end for an x outside [0, 1].
    The margin α keeps z finite at 0 and 1. The linear continuation maps the real line onto itself, so that a base
    density loses no mass beyond the interval.

    Raises:
        ValueError: α outside (0, 0.5).

    Reference: Dinh et al. 2017, "Density estimation using Real NVP", section 4.1.
    """

    columnwise = True

    def __init__(self, alpha: float = 1e-2) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")
        self.alpha = alpha
        self.end = math.log1p(-alpha) - math.log(alpha)  # z at x = 1
        self.slope = (1 - 2 * alpha) / (alpha * (1 - alpha))  # dz/dx at the ends

    def encode(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        width, inside = 1 - 2 * self.alpha, x.clamp(0, 1)
        s = self.alpha + width * inside
        z = s.log() - (-s).log1p()
        log_det = F.softplus(-z) + F.softplus(z) + math.log(width)
        return z + self.slope * (x - inside), log_det.masked_fill(x.isnan(), 0).flatten(1).sum(1)

    def decode(
        self, z: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        inside = z.clamp(-self.end, self.end)
        return (torch.sigmoid(inside) - self.alpha) / (1 - 2 * self.alpha) + (z - inside) / self.slope
