"""Mixture densities: the default for targets given inputs; mixtures of products for whole tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from loglik.autoregressive import GroupedCopula
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.mixture import Mixture
from loglik.recipes.options import Options, option
from loglik.recipes.recipe import Recipe, Unsuitable, input_features, pick

__all__ = ["MIXTURE", "MixtureOptions"]

MAX_COLUMNS = 128  # of a copula
PRODUCTS = 32  # components of a mixture without inputs


@dataclass(frozen=True, kw_only=True)
class MixtureOptions(Options):
    """Options of `mixture`."""

    kind: Literal["auto", "copulas"] = option(
        "auto",
        help="auto is networks for targets given inputs, and products for whole tables; copulas is a Gaussian copula "
        "for each category of a column, for whole tables, fitted without training.",
    )
    members: int = option(5, min=1, help="Networks of the ensemble, for targets given inputs.")
    components: int | None = option(
        None, min=1, help="Components of each mixture; if null 4 for targets given inputs, else by size."
    )
    width: int | None = option(None, min=1, help="Width of the networks' hidden layers; by size if null.")
    depth: int = option(2, min=1, help="Hidden layers of each network.")
    dropout: float = option(0.1, min=0, below=1, help="Dropout rate of the networks.")
    neighbours: int = option(
        8192,
        min=0,
        help="Training rows stored with the weights, as components near similar inputs, at most; 0 for none.",
    )


def build(spec: DataSpec, options: MixtureOptions) -> Density:
    """Return a mixture density network for targets given inputs, else a mixture of products of distributions."""
    if spec.kind == "text":
        raise Unsuitable("mixture models tables; for text use autoregressive")
    if spec.kind not in ("table", "array") or spec.levels is not None or len(spec.event_shape) != 1:
        raise Unsuitable(f"mixture models tables, and these are {spec.describe()}; use flow, vae or diffusion")
    if options.kind == "copulas":
        if spec.inputs:
            raise Unsuitable("mixture:copulas models whole tables, and this has targets given inputs; use mixture")
        if spec.dims > MAX_COLUMNS:
            raise Unsuitable(
                f"mixture:copulas models tables of at most {MAX_COLUMNS} columns and these have {spec.dims}; use flow"
            )
        return GroupedCopula(spec.discrete_dims, spec.categories)
    if not spec.inputs:
        components = options.components or pick(options.size, small=PRODUCTS, medium=2 * PRODUCTS, large=8 * PRODUCTS)
        return Mixture(spec.discrete_dims, spec.categories, components=components)
    return Mixture(
        spec.discrete_dims,
        spec.categories,
        inputs=input_features(spec),
        members=options.members,
        components=options.components or 4,
        width=options.width or pick(options.size, small=64, medium=128, large=256),
        depth=options.depth,
        dropout=options.dropout,
        neighbours=options.neighbours,
        input_columns=len(spec.inputs),
    )


def training(spec: DataSpec) -> dict[str, Any]:
    """Return the training settings."""
    return {"learning_rate": 3e-3, "batch_size": 128, "weight_decay": 0.1, "ema_decay": 0.99, "patience": 5}


MIXTURE = Recipe(
    name="mixture",
    summary="an ensemble of mixture density networks for targets given inputs; a mixture of products for tables",
    options_type=MixtureOptions,
    build=build,
    training=training,
    tables_only=True,
    kinds=("copulas",),
)
