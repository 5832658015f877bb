"""How text is modelled and trained: a Transformer with rotary positions, and Muon."""

from __future__ import annotations

from typing import Any

from torch import nn

from loglik.autoregressive import Autoregressive
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.networks.transformer import BlockSettings, CausalTransformer
from loglik.recipes.recipe import label_embedding, pick

__all__ = ["build", "training"]

# positions are relative to each other, since a window may begin anywhere in a text
BLOCKS = BlockSettings(mlp="squared_relu", qk_norm=True, rotary=True, bias=False)
TOKENS = 2**11  # in a batch


def build(
    spec: DataSpec,
    *,
    size: str,
    width: int | None,
    depth: int | None,
    heads: int | None,
    dropout: float | None,
    conditional: bool,
) -> Density:
    """A causal Transformer of 0.8, 4.7 or 10.7 million weights."""
    assert spec.levels is not None
    width = width or pick(size, small=128, medium=256, large=384)
    depth = depth or pick(size, small=4, medium=6, large=6)
    dropout = pick(size, small=0.0, medium=0.1, large=0.2) if dropout is None else dropout
    density = Autoregressive(
        CausalTransformer(width, depth, heads or max(1, width // 32), dropout=dropout, settings=BLOCKS),
        spec.event_shape,
        spec.levels,
        context=label_embedding(spec, width, conditional),
        dropout=dropout,
        positions="none",
        shared=True,
    )
    nn.init.normal_(density.start, std=0.02)  # a norm of zeros has a gradient without bound
    return density


def training(spec: DataSpec) -> dict[str, Any]:
    """Batches of so many tokens, however long the windows are."""
    return {
        "optimizer": "muon",
        "learning_rate": 1e-2,
        "weight_decay": 0.05,
        "batch_size": max(4, TOKENS // spec.dims),
        "warmup": 20,
        "precision": "auto",
    }
