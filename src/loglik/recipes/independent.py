"""The independent baseline."""

from __future__ import annotations

from dataclasses import dataclass

from loglik.baselines import Independent
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.recipes.options import Options, option
from loglik.recipes.recipe import Recipe

__all__ = ["INDEPENDENT", "IndependentOptions"]


@dataclass(frozen=True, kw_only=True)
class IndependentOptions(Options):
    """Options of `independent`; the size makes no difference, as it has no network."""

    bins: int = option(64, min=1, help="Bins of the density of a column of real numbers.")


def build(spec: DataSpec, options: IndependentOptions) -> Density:
    """Return a density of independent dimensions: categories by counts, integers by mass, reals by density.

    The dimensions of text share one.
    """
    return Independent(
        spec.event_shape,
        spec.discrete_dims,
        levels=spec.levels,
        categories=spec.categories,
        bins=options.bins,
        shared=spec.kind == "text",
    )


INDEPENDENT = Recipe(
    name="independent",
    summary="each dimension by itself, by its kind; the baseline",
    options_type=IndependentOptions,
    build=build,
)
