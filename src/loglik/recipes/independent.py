"""The independent baseline."""

from __future__ import annotations

from loglik.baselines import Independent
from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.recipes.recipe import Recipe

__all__ = ["INDEPENDENT"]


def build(spec: DataSpec, *, size: str = "small", bins: int = 64) -> Density:
    """Each dimension by its kind: categories by counts, integers by mass, reals by density; text shares one."""
    return Independent(
        spec.event_shape,
        spec.discrete_dims,
        levels=spec.levels,
        categories=spec.categories,
        bins=bins,
        shared=spec.kind == "text",
    )


INDEPENDENT = Recipe(
    name="independent",
    summary="each dimension by itself, by its kind; the baseline",
    build=build,
    trainable=False,
)
