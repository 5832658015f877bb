r"""Positions in a sequence: sinusoids to add to its vectors, or a rotation of queries and keys.

Learned positions are a parameter (T, E) of the network that adds them. T positions, E width, D size of a head.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["rotate", "rotations", "sinusoids"]


def sinusoids(length: int, width: int) -> Float[Tensor, "T E"]:
    r"""Return positions: $\sin(t / 10000^{2i/E})$ in column 2i and the cosine in column 2i + 1.

    Reference: Vaswani et al. 2017, "Attention is all you need", section 3.5.
    """
    rate = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    phase = torch.arange(length)[:, None] * rate
    return torch.stack([phase.sin(), phase.cos()], dim=2).flatten(1)[:, :width]


def rotations(length: int, size: int, like: Tensor) -> Float[Tensor, "2 T half"]:
    r"""Return $\cos t\theta_i$ and $\sin t\theta_i$, $\theta_i = 10000^{-2i/D}$, for the D/2 planes of a head."""
    rate = torch.exp(-math.log(10_000) * torch.arange(0, size, 2, device=like.device, dtype=like.dtype) / size)
    phase = torch.arange(length, device=like.device, dtype=like.dtype)[:, None] * rate
    return torch.stack([phase.cos(), phase.sin()])


def rotate(x: Float[Tensor, "B H T D"], rotation: Float[Tensor, "2 T half"]) -> Float[Tensor, "B H T D"]:
    r"""Rotate the plane of dimensions (i, i + D/2) by $t\theta_i$; then $q_s \cdot k_t$ depends on s - t only.

    Reference: Su et al. 2021, "RoFormer: enhanced Transformer with rotary position embedding".
    """
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
