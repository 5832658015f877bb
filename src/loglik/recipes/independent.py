"""The independent baseline."""

from __future__ import annotations

from loglik.baselines import Independent
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.recipes.recipe import Recipe

__all__ = ["INDEPENDENT"]


def build(spec: DataSpec, *, size: str = "small", bins: int = 64) -> Density:
    """One histogram for each dimension; text shares one for all positions."""
    widest = max((len(column.categories) for column in spec.columns), default=0)
    return Independent(
        spec.event_shape,
        spec.discrete_dims,
        levels=spec.levels,
        bins=max(bins, widest),
        shared=spec.kind == "text",
    )


INDEPENDENT = Recipe(
    name="independent",
    summary="each dimension its own histogram; the baseline",
    build=build,
    trainable=False,
)
