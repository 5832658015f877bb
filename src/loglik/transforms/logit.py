"""Logit: from the unit interval to the real line."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.transforms.base import Transform

__all__ = ["Logit"]


class Logit(Transform):
    r"""$z = \log s - \log(1 - s)$ with $s = \alpha + (1 - 2\alpha) x$ for $x \in [0, 1]$.

    $\log\det = \sum_d \log(1 - 2\alpha) - \log s_d - \log(1 - s_d)$. The margin α keeps z finite at 0 and 1.
    Source: Dinh et al. 2017, "Density estimation using Real NVP", section 4.1.
    """

    def __init__(self, alpha: float = 1e-2) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")
        self.alpha = alpha

    def encode(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        width = 1 - 2 * self.alpha
        s = self.alpha + width * x
        z = s.log() - (-s).log1p()
        log_det = F.softplus(-z) + F.softplus(z) + x.new_tensor(width).log()
        return z, log_det.flatten(1).sum(1)

    def decode(
        self, z: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B ..."]:
        return ((z.sigmoid() - self.alpha) / (1 - 2 * self.alpha)).clamp(0, 1)
