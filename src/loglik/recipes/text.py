"""How text is modelled and trained: a Transformer with rotary positions, and Muon."""

from __future__ import annotations

from typing import Any

from loglik.data.spec import DataSpec
from loglik.networks.transformer import BlockSettings

__all__ = ["BLOCKS", "training"]

# positions are relative to each other, since a window may begin anywhere in a text
BLOCKS = BlockSettings(mlp="squared_relu", qk_norm=True, rotary=True, bias=False)
TOKENS = 2**11  # in a batch


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
