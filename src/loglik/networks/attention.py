r"""Attention: $\text{softmax}(QK^\top / \sqrt D)\,V$, alone and in several heads with their projections.

B batch, H heads, T queries, S keys, D size of a head, E = H·D width. A mask is true where a query may see a key; each
query must see at least one key. In causal attention the last query is at the position of the last key.
Reference: Vaswani et al. 2017, "Attention is all you need"; the notes, "Transformer".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from loglik.cpu.attention import causal_mask, unfused_attention
from loglik.cpu.choices import choices
from loglik.networks.linear import Linear
from loglik.networks.norms import RMSNorm
from loglik.networks.positions import rotate

__all__ = [
    "ATTENTION_TYPES",
    "Attention",
    "CrossAttention",
    "KeyValueCache",
    "SelfAttention",
    "attention",
    "attention_formula",
    "attention_weights",
    "causal_mask",
    "padding_mask",
]

MAX_KEYS_UNFUSED = 512  # on CPUs in bfloat16, up to which `attention` computes the matrix of all scores


def attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
) -> Shaped[Tensor, "B H T D"]:
    r"""Return $\text{softmax}(QK^\top / \sqrt D)\,V$ by torch's fused kernel; `mask` broadcasts to (B, H, T, S)."""
    queries, keys = q.shape[2], k.shape[2]
    if q.device.type == "cpu" and v.dtype == torch.bfloat16 and 1 < keys <= MAX_KEYS_UNFUSED and choices().attention:
        return unfused_attention(q, k, v, mask, causal)
    if causal and (mask is not None or 1 < queries < keys):
        seen = causal_mask(queries, keys, q.device)
        mask, causal = seen if mask is None else mask & seen, False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and queries > 1)


def attention_weights(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "B H T S"]:
    r"""Return $\text{softmax}(QK^\top / \sqrt D)$: the weight of each key for each query; rows sum to 1."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if causal:
        scores = scores.masked_fill(~causal_mask(q.shape[2], k.shape[2], q.device), -torch.inf)
    return scores.softmax(-1)


def attention_formula(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
) -> Float[Tensor, "B H T D"]:
    """Return what `attention` computes, as the formula is written; tests compare `attention` with it."""
    return attention_weights(q, k, mask, causal=causal) @ v


def padding_mask(lengths: Int64[Tensor, " B"], length: int) -> Bool[Tensor, "B 1 1 S"]:
    """Return a mask in which the first `lengths[b]` of the S keys of sequence b are seen; the rest is padding."""
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= length:
        raise ValueError(f"lengths must be 1 ... {length}, got {int(lengths.min())} ... {int(lengths.max())}")
    return (torch.arange(length, device=lengths.device) < lengths[:, None])[:, None, None]


class KeyValueCache:
    """Keys and values of past positions: for each layer two tensors of fixed shape (B, H, capacity, D).

    `length` positions are filled. `memory` holds the keys and values of another sequence, for cross-attention.
    If `position` is set, a tensor of one number, a single position is written there and the keys up to it are seen:
    then every shape is that of the whole cache, as a CUDA graph needs it.
    """

    position: Int64[Tensor, "1"] | None = None

    def __init__(self, batch: int, capacity: int, rotation: Tensor | None = None) -> None:
        self.batch, self.capacity, self.rotation = batch, capacity, rotation
        self.length = 0
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self.memory: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v after the filled positions; return the keys and values of all positions up to theirs."""
        if layer not in self.pairs:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.pairs[layer] = k.new_zeros(shape), v.new_zeros(shape)  # 0 · NaN of masked values is NaN
        keys, values = self.pairs[layer]
        if self.position is not None:
            return keys.index_copy_(2, self.position, k), values.index_copy_(2, self.position, v)
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} positions, got {end}: use a larger capacity")
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def rotation_of(self, length: int) -> Tensor | None:
        """Return the rotations of the next positions; None without a table."""
        if self.rotation is None or self.position is None:
            return None if self.rotation is None else self.rotation[:, self.length : self.length + length]
        return self.rotation.index_select(1, self.position)

    @property
    def seen(self) -> Bool[Tensor, "1 S"] | None:
        """Which keys the position sees; None where `append` returns these only."""
        if self.position is None:
            return None
        return torch.arange(self.capacity, device=self.position.device).unsqueeze(0) <= self.position

    def clear(self) -> None:
        """Drop all positions; the tensors stay allocated."""
        self.length = 0


class Attention(nn.Module):
    """Base of the attention modules: H heads over width E, whose outputs one linear map joins.

    `maps`, with the arguments of `forward` but for the cache, returns the attention weights (B, H, T, S).
    """

    heads: int
    layer: int
    norm_q: RMSNorm | None
    norm_k: RMSNorm | None
    output: Linear

    def _split(self, parts: Tensor, count: int) -> tuple[Tensor, ...]:
        """Split `count` projections (B, T, count · E), stored together, into (B, H, T, D) each."""
        return tuple(part.transpose(1, 2) for part in parts.unflatten(-1, (count, self.heads, -1)).unbind(2))

    def _join(self, y: Float[Tensor, "B H T D"]) -> Float[Tensor, "B T E"]:
        """Concatenate the heads and apply the output map."""
        return self.output(y.transpose(1, 2).flatten(2))


class SelfAttention(Attention):
    """Multi-head self-attention: each position attends to the positions of its own sequence.

    Args:
        width, heads: E and H.
        causal: whether a position sees only itself and the positions before it.
        qk_norm: whether RMS norm bounds the products of queries and keys (Dehghani et al. 2023).
        bias: whether the projections have a bias.
        layer: index among the layers that share a cache.

    Raises:
        ValueError: the width is no multiple of the heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool = False,
        qk_norm: bool = False,
        bias: bool = True,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.layer = check_heads(width, heads), causal, layer
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.norm_q, self.norm_k = (RMSNorm(width // heads) if qk_norm else None for _ in range(2))
        self.output = Linear(width, width, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T E"],
        mask: Bool[Tensor, "..."] | None = None,
        rotation: Float[Tensor, "2 T half"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Shaped[Tensor, "B T E"]:
        q, k, v = self._project(x, rotation)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
            if (seen := cache.seen) is not None:
                return self._join(attention(q, k, v, seen))
        return self._join(attention(q, k, v, mask, causal=self.causal))

    def maps(
        self,
        x: Float[Tensor, "B T E"],
        mask: Bool[Tensor, "..."] | None = None,
        rotation: Float[Tensor, "2 T half"] | None = None,
    ) -> Float[Tensor, "B H T T"]:
        """Return the attention weights of each head."""
        q, k, _ = self._project(x, rotation)
        return attention_weights(q, k, mask, causal=self.causal)

    def _project(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._split(self.qkv(x), 3)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, k, v


class CrossAttention(Attention):
    """Multi-head cross-attention: each position of x attends to another sequence, `memory`.

    Arguments as of `SelfAttention`.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False, bias: bool = True, layer: int = 0) -> None:
        super().__init__()
        self.heads, self.layer = check_heads(width, heads), layer
        self.q = Linear(width, width, bias=bias)
        self.kv = Linear(width, 2 * width, bias=bias)
        self.norm_q, self.norm_k = (RMSNorm(width // heads) if qk_norm else None for _ in range(2))
        self.output = Linear(width, width, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T E"],
        memory: Float[Tensor, "B S E"],
        mask: Bool[Tensor, "..."] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Shaped[Tensor, "B T E"]:
        if cache is None:
            k, v = self._keys(memory)
        else:  # the memory does not change while a sequence grows
            if self.layer not in cache.memory:
                cache.memory[self.layer] = self._keys(memory)
            k, v = cache.memory[self.layer]
        return self._join(attention(self._queries(x), k, v, mask))

    def maps(
        self, x: Float[Tensor, "B T E"], memory: Float[Tensor, "B S E"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B H T S"]:
        """Return the attention weights of each head: queries from x, keys from the memory."""
        return attention_weights(self._queries(x), self._keys(memory)[0], mask)

    def _queries(self, x: Tensor) -> Tensor:
        (q,) = self._split(self.q(x), 1)
        return q if self.norm_q is None else self.norm_q(q).to(q.dtype)

    def _keys(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self._split(self.kv(memory), 2)
        return k if self.norm_k is None else self.norm_k(k).to(v.dtype), v


ATTENTION_TYPES: tuple[type[nn.Module], ...] = (Attention, nn.MultiheadAttention)


def check_heads(width: int, heads: int) -> int:
    """Return the number of heads if it divides the width."""
    if heads < 1 or width % heads:
        raise ValueError(f"width {width} must be a multiple of the number of heads {heads}")
    return heads
