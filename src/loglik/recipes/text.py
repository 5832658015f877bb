"""How text is modelled and trained: a Transformer with rotary positions, and Muon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from loglik.autoregressive import Autoregressive
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.networks.transformer import BlockSettings, CausalTransformer
from loglik.recipes.options import Options, option
from loglik.recipes.recipe import context_network, pick

__all__ = ["TextOptions", "build", "training"]

# positions are relative to each other, since a window may begin anywhere in a text
BLOCKS = BlockSettings(mlp="squared_relu", qk_norm=True, rotary=True, bias=False)
TOKENS = 2**11  # in a batch


@dataclass(frozen=True, kw_only=True)
class TextOptions(Options):
    """Options of a causal Transformer."""

    width: int | None = option(None, min=1, help="Width of the Transformer; by size if null.")
    depth: int | None = option(None, min=1, help="Number of blocks of the Transformer; by size if null.")
    heads: int | None = option(None, min=1, help="Attention heads, which must divide the width; chosen if null.")
    dropout: float | None = option(
        None, min=0, below=1, help="Dropout rate; if null 0.1, or for text 0, 0.1 or 0.2 by size."
    )
    conditional: bool = option(False, help="Learn p(x | label) instead of p(x).")


def build(spec: DataSpec, options: TextOptions) -> Density:
    """Return a causal Transformer of 0.8, 4.7 or 10.7 million weights."""
    assert spec.levels is not None
    size = options.size
    width = options.width or pick(size, small=128, medium=256, large=384)
    depth = options.depth or pick(size, small=4, medium=6, large=6)
    dropout = pick(size, small=0.0, medium=0.1, large=0.2) if options.dropout is None else options.dropout
    density = Autoregressive(
        CausalTransformer(width, depth, options.heads or max(1, width // 32), dropout=dropout, settings=BLOCKS),
        spec.event_shape,
        spec.levels,
        context=context_network(spec, width, options.conditional),
        dropout=dropout,
        positions="none",
        shared=True,
    )
    nn.init.normal_(density.start, std=0.02)  # a norm of zeros has a gradient without bound
    return density


def training(spec: DataSpec) -> dict[str, Any]:
    """Return the training settings: batches of a fixed number of tokens, whatever the window."""
    return {
        "optimizer": "muon",
        "learning_rate": 1e-2,
        "weight_decay": 0.05,
        "batch_size": max(4, TOKENS // spec.dims),
        "warmup": 20,
        "precision": "auto",
    }
