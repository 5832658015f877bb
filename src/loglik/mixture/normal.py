"""The normal distribution's density, and its mass of an interval, in logarithms."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["interval_log_prob", "normal_log_prob"]

MIN_GAP = 1e-7  # of two log-probabilities, below which float32 does not tell them apart


def normal_log_prob(z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the log-density of N(0, 1)."""
    return -0.5 * (z.square() + math.log(2 * math.pi))


def interval_log_prob(low: Float[Tensor, "..."], high: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Return $\log(\Phi(b) - \Phi(a))$ for $a < b$, from the tail in which both are small."""
    flip = (low + high) > 0
    a, b = torch.where(flip, -high, low), torch.where(flip, -low, high)
    log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    return log_b + torch.log(-torch.expm1((log_a - log_b).clamp_max(-MIN_GAP)))
