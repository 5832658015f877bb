"""Autoregressive densities: a causal Transformer over pixels, tokens, integers, or the columns of a table; or a network
that knows the columns of a table in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from loglik.autoregressive import AnyOrder, Autoregressive
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.flows import Flow
from loglik.networks.dropout import FadingDropout
from loglik.networks.mlp import ResidualMLP
from loglik.networks.transformer import CausalTransformer
from loglik.recipes import text
from loglik.recipes.incomplete import with_imputer
from loglik.recipes.options import option
from loglik.recipes.recipe import Recipe, Unsuitable, conditional_on_inputs, context_network, pick
from loglik.transforms import Bins

__all__ = ["AUTOREGRESSIVE", "AutoregressiveOptions"]

MAX_DIMS = 4096  # attention costs T² per layer
MAX_COLUMNS = 64  # each column has tokens of its own
MAX_LEVELS = 512  # of an integer with a probability for each level, in any order


@dataclass(frozen=True, kw_only=True)
class AutoregressiveOptions(text.TextOptions):
    """Options of `autoregressive`: those of text, the order, and the bins of real columns."""

    order: Literal["table", "any-order"] = option(
        "table", help="Order of the columns: the table's, or any, which models rows with missing values and fills them."
    )
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
    if options.order == "any-order":
        return _any_order(spec, options)
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
    return with_imputer(Flow([tokens], columns), spec, size=options.size, conditional=options.conditional)


def _any_order(spec: DataSpec, options: AutoregressiveOptions) -> Density:
    """Return a residual MLP that reads which columns are observed, and their values."""
    if spec.kind == "text" or spec.dims > MAX_COLUMNS or (spec.levels or 0) > MAX_LEVELS:
        raise Unsuitable(
            f"autoregressive:any-order models tables and arrays of at most {MAX_COLUMNS} numbers and these are "
            f"{spec.describe()}; use autoregressive"
        )
    width = options.width or pick(options.size, small=128, medium=256, large=512)
    depth = options.depth or pick(options.size, small=2, medium=3, large=4)
    dropout = 0.2 if options.dropout is None else options.dropout
    context = context_network(spec, width, options.conditional)

    def network(inputs: int, outputs: int) -> nn.Module:
        body = ResidualMLP(inputs, outputs, width=width, depth=depth, context=width if context else 0)
        for block in body.blocks:
            block.dropout = FadingDropout(dropout)
        return body

    categories = spec.categories if spec.levels is None else (spec.levels,) * spec.dims
    return AnyOrder(network, spec.event_shape, spec.discrete_dims, categories=categories, context=context)


def training(spec: DataSpec) -> dict[str, Any]:
    """Return the training settings: smaller batches for longer events, whose steps take longer."""
    if spec.kind == "text":
        return text.training(spec)
    if spec.levels is None:
        return {"learning_rate": 2e-3, "weight_decay": 0.05, "batch_size": 128}
    return {"learning_rate": 4e-3, "weight_decay": 0.05, "batch_size": max(1, min(32, 2**13 // spec.dims))}


def training_in_any_order(spec: DataSpec) -> dict[str, Any]:
    """Return the training settings of `autoregressive:any-order`."""
    return {"learning_rate": 4e-3, "weight_decay": 0.05, "batch_size": 128}


AUTOREGRESSIVE = Recipe(
    name="autoregressive",
    summary="a causal Transformer over pixels, tokens or columns; images, text, tables (mixed too), small arrays",
    options_type=AutoregressiveOptions,
    build=build,
    training=training,
    variant="order",
    kinds=("any-order",),
    training_by_kind={"any-order": training_in_any_order},
)
