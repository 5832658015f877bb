"""Autoregressive densities: a causal Transformer over pixels, tokens, integers, or the columns of a table."""

from __future__ import annotations

from typing import Any

from loglik.autoregressive import Autoregressive
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.flows import Flow
from loglik.networks.transformer import CausalTransformer
from loglik.recipes import text
from loglik.recipes.recipe import Recipe, Unsuitable, label_embedding, pick
from loglik.transforms import Bins

__all__ = ["AUTOREGRESSIVE"]

LONGEST = 4096  # attention costs T² a layer
WIDEST = 64  # columns, each with tokens of its own


def build(
    spec: DataSpec,
    *,
    size: str = "small",
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    bins: int = 64,
    dropout: float | None = None,
    conditional: bool = False,
) -> Density:
    """A causal Transformer, over a table's columns by their bins; `conditional=true` for p(x | label)."""
    if spec.levels is None and spec.dims > WIDEST:
        raise Unsuitable(
            f"autoregressive takes tables and real arrays of at most {WIDEST} numbers and these have {spec.dims}; use "
            "flow, vae or diffusion"
        )
    if spec.dims > LONGEST:
        raise Unsuitable(
            f"autoregressive takes events of at most {LONGEST} numbers and these have {spec.dims}; use flow, vae or "
            "diffusion, or smaller images"
        )
    if spec.kind == "text":
        return text.build(
            spec, size=size, width=width, depth=depth, heads=heads, dropout=dropout, conditional=conditional
        )
    width = width or pick(size, small=64, medium=128, large=256)
    depth = depth or pick(size, small=2, medium=4, large=6)
    dropout = 0.1 if dropout is None else dropout
    network = CausalTransformer(width, depth, heads or 4, dropout=dropout)
    context = label_embedding(spec, width, conditional)
    if spec.levels is not None:
        return Autoregressive(network, spec.event_shape, spec.levels, context=context, dropout=dropout)
    tokens = Bins(spec.event_shape, spec.discrete_dims, categories=spec.categories, bins=bins)
    columns = Autoregressive(
        network, (spec.dims,), tokens.levels, context=context, dropout=dropout, allowed=tokens.allowed
    )
    return Flow([tokens], columns)


def training(spec: DataSpec) -> dict[str, Any]:
    if spec.kind == "text":
        return text.training(spec)
    if spec.levels is None:
        return {"learning_rate": 2e-3, "weight_decay": 0.05, "batch_size": 128}
    # a step of a long event takes long
    return {"learning_rate": 4e-3, "weight_decay": 0.05, "batch_size": max(1, min(32, 2**13 // spec.dims))}


AUTOREGRESSIVE = Recipe(
    name="autoregressive",
    summary="a causal Transformer over pixels, tokens or columns; images, text, tables (mixed too), small arrays",
    build=build,
    training=training,
)
