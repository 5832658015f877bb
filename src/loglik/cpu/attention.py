"""Attention in bfloat16 on CPUs, as products of whole matrices: on some CPUs faster than torch's fused kernel.

B batch, H heads, T queries, S keys, D size of a head; `networks/attention.py` has the formula.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

__all__ = ["causal_mask", "unfused_attention"]


def unfused_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    mask: Tensor | None,
    causal: bool,
) -> Shaped[Tensor, "B H T D"]:
    """Return the attention, computed in three passes."""
    batch, heads, queries, size = q.shape
    keys = k.shape[2]
    if causal and queries > 1:
        seen = causal_mask(queries, keys, q.device)
        mask = seen if mask is None else mask & seen
    bias = q.new_zeros(())
    if mask is not None:
        bias = q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        bias = bias if mask.dim() < 3 else bias.expand(batch, heads, queries, keys).flatten(0, 1)
    q, k, v = (part.reshape(batch * heads, -1, size) for part in (q, k, v))
    scores = torch.baddbmm(bias.expand(batch * heads, queries, keys), q, k.mT, alpha=size**-0.5)
    return (scores.softmax(-1) @ v).view(batch, heads, queries, size)


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Bool[Tensor, "T S"]:
    """Return a mask in which a query sees the keys up to its position; the last query is at the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
