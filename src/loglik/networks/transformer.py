r"""Transformers over sequences of vectors: encoder, causal Transformer, and decoder with cross-attention.

A block computes $x + f(\text{norm}(x))$ for attention f and again for an MLP f (Vaswani et al. 2017; Xiong et al. 2020
for the norm before f). B batch, T positions, S positions of a memory, E width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loglik.networks.attention import CrossAttention, KeyValueCache, SelfAttention, check_heads
from loglik.networks.linear import Linear
from loglik.networks.norms import make_norm
from loglik.networks.positions import rotations

__all__ = ["BlockSettings", "CausalTransformer", "Decoder", "Encoder", "EncoderDecoder"]

CHOICES = {"norm": ("layer", "rms"), "norm_position": ("pre", "post"), "mlp": ("gelu", "squared_relu", "swiglu")}


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    r"""Settings of a Transformer's blocks.

    Attributes:
        norm: `layer` or `rms`, over the E features of each position; see `loglik.networks.norms`.
        norm_position: `pre` for x + f(norm(x)) with a norm after the last block, `post` for norm(x + f(x)).
        mlp: `gelu` or `squared_relu` (So et al. 2021) with 4·E hidden units, or `swiglu` (Shazeer 2020) with 8·E/3,
            which has equally many weights.
        qk_norm: whether RMS norm is applied to queries and keys.
        rotary: whether queries and keys are rotated by their positions, instead of positions added to x.
        bias: whether linear maps and LayerNorm have a bias.
    """

    norm: str = "layer"
    norm_position: str = "pre"
    mlp: str = "gelu"
    qk_norm: bool = False
    rotary: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: use {', '.join(known)}")


class _Transformer(nn.Module):
    """Blocks, the norm after them and their initial weights, shared by encoder, causal Transformer and decoder."""

    causal: bool
    cross: bool = False

    def __init__(
        self, width: int, depth: int, heads: int, *, dropout: float = 0.0, settings: BlockSettings | None = None
    ) -> None:
        super().__init__()
        self.settings = settings = settings or BlockSettings()
        self.width, self.depth, self.heads = width, depth, check_heads(width, heads)
        if settings.rotary and (width // heads) % 2:
            raise ValueError(f"rotary positions need heads of an even size, got {width} / {heads} = {width // heads}")
        self.blocks = nn.ModuleList(
            [_Block(width, heads, settings, dropout, layer, self.causal, self.cross) for layer in range(depth)]
        )
        self.norm = _norm(width, settings) if settings.norm_position == "pre" else nn.Identity()
        residual_maps = depth * (3 if self.cross else 2)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("output.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / residual_maps**0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def cache(self, batch: int, length: int) -> KeyValueCache:
        """Return an empty cache for generating up to `length` positions."""
        like = next(self.parameters())
        table = rotations(length, self.width // self.heads, like) if self.settings.rotary else None
        return KeyValueCache(batch, length, table)

    def _run(self, x: Tensor, *, cache: KeyValueCache | None = None, **kwargs: Tensor | None) -> Tensor:
        rotation, length = None, x.shape[1]
        if self.settings.rotary:
            if cache is None or cache.rotation is None:
                rotation = rotations(length, self.width // self.heads, next(self.parameters()))
            else:
                rotation = cache.rotation_of(length)
        for block in self.blocks:
            x = block(x, rotation=rotation, cache=cache, **kwargs)
        if cache is not None and cache.position is None:
            cache.length += length
        return self.norm(x)


class CausalTransformer(_Transformer):
    """Embeddings (B, T, E) to features of the same shape; position t sees only positions up to t.

    Args:
        width: E, of the residual stream.
        depth: number of blocks.
        heads: number of attention heads.
        dropout: the fraction of each attention's and each MLP's outputs dropped in training.
        settings: of the blocks.

    Weights start normal with standard deviation 0.02; the maps that write to the residual stream, with
    0.02 / sqrt(number of such maps) (Radford et al. 2019, GPT-2).

    Raises:
        ValueError: the heads do not divide the width; rotary positions with heads of an odd size.
    """

    causal = True

    def forward(self, x: Float[Tensor, "B T E"], cache: KeyValueCache | None = None) -> Float[Tensor, "B T E"]:
        return self._run(x, cache=cache)


class Encoder(_Transformer):
    """As `CausalTransformer`, but each position sees every position that the mask allows.

    If x contains no positions, a permutation of the sequence permutes the output.
    """

    causal = False

    def forward(self, x: Float[Tensor, "B T E"], mask: Bool[Tensor, "..."] | None = None) -> Float[Tensor, "B T E"]:
        return self._run(x, mask=mask)


class Decoder(_Transformer):
    """As `CausalTransformer`, with cross-attention to a memory (B, S, E) between attention and MLP of each block.

    `mask` is true at the positions of the memory that may be seen.
    """

    causal = True
    cross = True

    def forward(
        self,
        x: Float[Tensor, "B T E"],
        memory: Float[Tensor, "B S E"],
        mask: Bool[Tensor, "..."] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "B T E"]:
        return self._run(x, cache=cache, memory=memory, memory_mask=mask)


class EncoderDecoder(nn.Module):
    """An encoder of a source sequence, and a decoder of a target sequence that attends to it (Vaswani et al. 2017)."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        if encoder.width != decoder.width:
            raise ValueError(f"encoder and decoder must have the same width, got {encoder.width} and {decoder.width}")
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self,
        source: Float[Tensor, "B S E"],
        target: Float[Tensor, "B T E"],
        source_mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "B T E"]:
        return self.decoder(target, self.encoder(source, source_mask), source_mask)


def _norm(width: int, settings: BlockSettings) -> nn.Module:
    return make_norm(settings.norm, width, bias=settings.bias)


class _Block(nn.Module):
    def __init__(
        self, width: int, heads: int, settings: BlockSettings, dropout: float, layer: int, causal: bool, cross: bool
    ) -> None:
        super().__init__()
        self.pre, self.mlp = settings.norm_position == "pre", settings.mlp
        parts: dict[str, Any] = {"qk_norm": settings.qk_norm, "bias": settings.bias, "layer": layer}
        self.norm_attention = _norm(width, settings)
        self.attention = SelfAttention(width, heads, causal=causal, **parts)
        self.norm_cross = _norm(width, settings) if cross else None
        self.cross = CrossAttention(width, heads, **parts) if cross else None
        self.norm_mlp = _norm(width, settings)
        hidden = -(-8 * width // 3) if settings.mlp == "swiglu" else 4 * width
        self.expand = Linear(width, hidden * (2 if settings.mlp == "swiglu" else 1), bias=settings.bias)
        self.contract = Linear(hidden, width, bias=settings.bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B T E"],
        mask: Bool[Tensor, "..."] | None = None,
        rotation: Float[Tensor, "2 T half"] | None = None,
        cache: KeyValueCache | None = None,
        memory: Float[Tensor, "B S E"] | None = None,
        memory_mask: Bool[Tensor, "..."] | None = None,
        modulation: Float[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B T E"]:
        first, last = (None, None) if modulation is None else modulation.chunk(2, dim=1)
        x = self._add(x, self.norm_attention, lambda h: self.attention(h, mask, rotation, cache), first)
        if self.cross is not None and self.norm_cross is not None:
            cross = self.cross
            x = self._add(x, self.norm_cross, lambda h: cross(h, memory, memory_mask, cache))
        return self._add(x, self.norm_mlp, lambda h: self.contract(self._activate(self.expand(h))), last)

    def _add(
        self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor], modulation: Tensor | None = None
    ) -> Tensor:
        if modulation is not None:  # scale and shift before `part`, gate after it
            scale, shift, gate = (m.unsqueeze(1) for m in modulation.chunk(3, dim=1))
            return x + gate * self.dropout(part(torch.addcmul(shift, norm(x), 1 + scale)))
        return x + self.dropout(part(norm(x))) if self.pre else norm(x + self.dropout(part(x)))

    def _activate(self, h: Tensor) -> Tensor:
        if self.mlp == "gelu":
            return F.gelu(h)
        if self.mlp == "squared_relu":
            return F.relu(h).square()
        gate, value = h.chunk(2, dim=-1)
        return F.silu(gate) * value
