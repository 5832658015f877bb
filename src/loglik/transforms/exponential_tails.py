r"""Exponential tails of a column's distribution, beyond its lowest and highest bin edges.

A tail of scale s has the density $e^{-d/s} / s$ at the distance d from its edge. Over integers it is geometric, with
the mass $e^{-d/s} (1 - e^{-1/s})$ of the integer d steps beyond the first one in the tail. D columns, N values each.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["sample_tails", "tail_log_probs"]


def tail_log_probs(
    x: Float[Tensor, "D N"],
    edges: tuple[Float[Tensor, "D 1"], Float[Tensor, "D 1"]],
    scale: Float[Tensor, "D 2"],
    integer: Bool[Tensor, " D"],
    log_mass: Float[Tensor, "D 2"] | float = 0.0,
) -> tuple[Float[Tensor, "D N"], Float[Tensor, "D N"]]:
    """Return log p(x) in the lower and in the upper tail; each is meaningful only for x beyond that edge.

    Args:
        x: values.
        edges: the lowest edge, exclusive, and the highest, inclusive.
        scale: s of the lower and the upper tail.
        integer: whether a column holds integers.
        log_mass: logarithm of each tail's probability.
    """
    low, high = edges
    integer = integer[:, None]
    at_edge = log_mass + torch.where(integer, torch.log(-torch.expm1(-1 / scale)), -scale.log())
    below = at_edge[:, :1] - (low - x - integer.double()).clamp_min(0) / scale[:, :1]
    above = at_edge[:, 1:] - (x - high).clamp_min(0) / scale[:, 1:]
    return below, above


def sample_tails(
    u: Float[Tensor, "D N"], edges: tuple[Float[Tensor, "D 1"], Float[Tensor, "D 1"]], scale: Float[Tensor, "D 2"]
) -> tuple[Float[Tensor, "D N"], Float[Tensor, "D N"]]:
    """Return draws from the lower and the upper tail for uniform u in [0, 1); integer columns take their floor."""
    low, high = edges
    excess = -(-u).log1p()
    return low - excess * scale[:, :1], high + excess * scale[:, 1:]
