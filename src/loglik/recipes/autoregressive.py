"""Autoregressive densities: a causal Transformer over pixels, tokens, integers, or the columns of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loglik.autoregressive import Autoregressive
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.flows import Flow
from loglik.networks.transformer import CausalTransformer
from loglik.recipes import text
from loglik.recipes.options import option
from loglik.recipes.recipe import Recipe, Unsuitable, conditional_on_inputs, context_network, pick
from loglik.transforms import Bins

__all__ = ["AUTOREGRESSIVE", "AutoregressiveOptions"]

MAX_DIMS = 4096  # attention costs T² per layer
MAX_COLUMNS = 64  # each column has tokens of its own


@dataclass(frozen=True, kw_only=True)
class AutoregressiveOptions(text.TextOptions):
    """Options of `autoregressive`: those of text, and the bins of real columns."""

    bins: int = option(64, min=1, help="Bins, and so tokens, of a column of real numbers.")


def build(spec: DataSpec, options: AutoregressiveOptions) -> Density:
    """Return a causal Transformer, over a table's columns by their bins."""
    options = conditional_on_inputs(spec, options)
    if spec.levels is None and spec.dims > MAX_COLUMNS:
        raise Unsuitable(
            f"autoregressive models tables and real arrays of at most {MAX_COLUMNS} numbers and these have "
            f"{spec.dims}; use flow, vae or diffusion"
        )
    if spec.dims > MAX_DIMS:
        raise Unsuitable(
            f"autoregressive models events of at most {MAX_DIMS} numbers and these have {spec.dims}; use flow, vae or "
            "diffusion, or smaller images"
        )
    if spec.kind == "text":
        return text.build(spec, options)
    width = options.width or pick(options.size, small=64, medium=128, large=256)
    depth = options.depth or pick(options.size, small=2, medium=4, large=6)
    dropout = 0.1 if options.dropout is None else options.dropout
    network = CausalTransformer(width, depth, options.heads or 4, dropout=dropout)
    context = context_network(spec, width, options.conditional)
    if spec.levels is not None:
        return Autoregressive(network, spec.event_shape, spec.levels, context=context, dropout=dropout)
    tokens = Bins(spec.event_shape, spec.discrete_dims, categories=spec.categories, bins=options.bins)
    columns = Autoregressive(
        network, (spec.dims,), tokens.levels, context=context, dropout=dropout, allowed=tokens.allowed
    )
    return Flow([tokens], columns)


def training(spec: DataSpec) -> dict[str, Any]:
    """Return the training settings: smaller batches for longer events, whose steps take longer."""
    if spec.kind == "text":
        return text.training(spec)
    if spec.levels is None:
        return {"learning_rate": 2e-3, "weight_decay": 0.05, "batch_size": 128}
    return {"learning_rate": 4e-3, "weight_decay": 0.05, "batch_size": max(1, min(32, 2**13 // spec.dims))}


AUTOREGRESSIVE = Recipe(
    name="autoregressive",
    summary="a causal Transformer over pixels, tokens or columns; images, text, tables (mixed too), small arrays",
    options_type=AutoregressiveOptions,
    build=build,
    training=training,
)
