"""Standard normal variables that lie in one of several intervals: their probability, and draws."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

__all__ = ["sample_within", "mass_within"]

TINY = 1e-300  # of a probability whose logarithm is taken


def mass_within(low: Float64[Tensor, "... J"], high: Float64[Tensor, "... J"]) -> Float64[Tensor, "... J"]:
    """Return the probability of each of J intervals; accurate in both tails."""
    low, high, _ = _mirrored(low, high)
    return (torch.special.ndtr(high) - torch.special.ndtr(low)).clamp_min(TINY)


def sample_within(low: Float64[Tensor, "... J"], high: Float64[Tensor, "... J"]) -> Float64[Tensor, "..."]:
    """Draw from the standard normal distribution within the union of J intervals."""
    mass = mass_within(low, high)
    chosen = (mass / torch.empty_like(mass).exponential_()).argmax(-1, keepdim=True)
    low, high = low.gather(-1, chosen).squeeze(-1), high.gather(-1, chosen).squeeze(-1)
    left, right, mirrored = _mirrored(low, high)
    start = torch.special.ndtr(left)
    z = torch.special.ndtri(start + torch.rand_like(start) * (torch.special.ndtr(right) - start))
    z = torch.where(mirrored, -z, z)
    # far in a tail the probabilities are 0: use the end nearest to the centre
    nearest = torch.where(mirrored, low, torch.where(high < 0, high, z))
    return torch.where(z.isfinite(), z, nearest).clamp(low, high)


def _mirrored(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return intervals moved to the lower tail, where small probabilities are exact, and which of them were moved."""
    mirrored = low > 0
    return torch.where(mirrored, -high, low), torch.where(mirrored, -low, high), mirrored
