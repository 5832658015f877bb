r"""Where a vector stands in a sequence: sinusoids that are added to it, or a rotation of its queries and keys.

Learned positions are a parameter (T, E) of the network that adds them. T positions, E width, D size of a head.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["rotate", "rotations", "sinusoids"]


def sinusoids(length: int, width: int) -> Float[Tensor, "T E"]:
    r"""Positions: $\sin(t / 10000^{2i/E})$ in the even columns 2i, the cosine in the odd (Vaswani et al. 2017)."""
    rate = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    phase = torch.arange(length)[:, None] * rate
    return torch.stack([phase.sin(), phase.cos()], dim=2).flatten(1)[:, :width]


def rotations(length: int, size: int, like: Tensor) -> Float[Tensor, "2 T half"]:
    r"""$\cos t\theta_i$ and $\sin t\theta_i$ with $\theta_i = 10000^{-2i/D}$, for the D/2 planes of a head."""
    rate = torch.exp(-math.log(10_000) * torch.arange(0, size, 2, device=like.device, dtype=like.dtype) / size)
    phase = torch.arange(length, device=like.device, dtype=like.dtype)[:, None] * rate
    return torch.stack([phase.cos(), phase.sin()])


def rotate(x: Float[Tensor, "B H T D"], rotation: Float[Tensor, "2 T half"]) -> Float[Tensor, "B H T D"]:
    r"""Turn the plane of dimensions (i, i + D/2) by $t\theta_i$, so that $q_s \cdot k_t$ depends on s - t only.

    Source: Su et al. 2021, "RoFormer: enhanced Transformer with rotary position embedding".
    """
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
