r"""Transformers over a sequence: one that is causal, and an encoder in which every position sees every other.

$\text{Attention}(Q, K, V) = \text{softmax}(QK^\top / \sqrt{d_k})\,V$, in several heads, with LayerNorm before each
part (Vaswani et al. 2017; Xiong et al. 2020 for the place of the norm). B batch, T positions, E width, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

__all__ = ["CausalTransformer", "Encoder", "KeyValueCache", "sinusoids"]


class KeyValueCache:
    """The keys and values of the positions seen so far, in tensors of fixed shape (layers, B, H, T, E/H)."""

    def __init__(self, layers: int, batch: int, heads: int, length: int, width: int, like: Tensor) -> None:
        shape = (layers, batch, heads, length, width // heads)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v behind what is there; return all keys and values up to and with them."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class CausalTransformer(nn.Module):
    """Embeddings of shape (B, T, E) to features of the same shape; position t sees positions up to t only.

    Args:
        width, depth, heads: of the residual stream, number of blocks, attention heads.
        dropout: on the output of each attention and each MLP, in training.

    Weights start normal with deviation 0.02, and the maps that write to the residual stream with
    0.02 / sqrt(2 · depth) (Radford et al. 2019, GPT-2).
    """

    def __init__(self, width: int, depth: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} must be a multiple of the number of heads {heads}")
        self.width, self.depth, self.heads = width, depth, heads
        self.blocks = nn.ModuleList([_Block(width, heads, dropout, layer, causal=True) for layer in range(depth)])
        self.norm = nn.LayerNorm(width)
        _start(self, depth)

    def cache(self, batch: int, length: int) -> KeyValueCache:
        """An empty cache for generating up to `length` positions."""
        return KeyValueCache(self.depth, batch, self.heads, length, self.width, self.norm.weight)

    def forward(self, x: Float[Tensor, "B T E"], cache: KeyValueCache | None = None) -> Float[Tensor, "B T E"]:
        for block in self.blocks:
            x = block(x, cache)
        if cache is not None:
            cache.length += x.shape[1]
        return self.norm(x)


class Encoder(nn.Module):
    """As `CausalTransformer`, with every position seeing all others: without positions in x, a permutation of the
    sequence permutes the output.
    """

    def __init__(self, width: int, depth: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} must be a multiple of the number of heads {heads}")
        self.blocks = nn.ModuleList([_Block(width, heads, dropout, layer, causal=False) for layer in range(depth)])
        self.norm = nn.LayerNorm(width)
        _start(self, depth)

    def forward(self, x: Float[Tensor, "B T E"]) -> Float[Tensor, "B T E"]:
        for block in self.blocks:
            x = block(x, None)
        return self.norm(x)


def sinusoids(length: int, width: int) -> Float[Tensor, "T E"]:
    r"""Positions: $\sin(t / 10000^{2i/E})$ in the even columns 2i, the cosine in the odd (Vaswani et al. 2017)."""
    rate = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    phase = torch.arange(length)[:, None] * rate
    return torch.stack([phase.sin(), phase.cos()], dim=2).flatten(1)[:, :width]


def _start(transformer: nn.Module, depth: int) -> None:
    for name, parameter in transformer.named_parameters():
        if parameter.dim() == 2:
            residual = name.endswith(("attention.output.weight", "contract.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if residual else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, layer: int, causal: bool) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = _Attention(width, heads, layer, causal)
        self.norm_mlp = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T E"], cache: KeyValueCache | None) -> Float[Tensor, "B T E"]:
        x = x + self.dropout(self.attention(self.norm_attention(x), cache))
        return x + self.dropout(self.contract(F.gelu(self.expand(self.norm_mlp(x)))))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, layer: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.layer, self.causal = heads, layer, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B T E"], cache: KeyValueCache | None) -> Shaped[Tensor, "B T E"]:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            past = cache.length
            k, v = cache.append(self.layer, k, v)
            seen = torch.ones(length, past + length, dtype=torch.bool, device=x.device).tril(past)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.output(y.transpose(1, 2).reshape(batch, length, width))
