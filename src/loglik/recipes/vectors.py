"""Transforms from data of any kind to the vector of real numbers that flows and real-valued densities model."""

from __future__ import annotations

from loglik.data.spec import DataSpec
from loglik.recipes.recipe import Unsuitable
from loglik.transforms import Dequantize, Reshape, Standardise, Transform

__all__ = ["to_vector", "refuse_text"]


def refuse_text(spec: DataSpec, family: str) -> None:
    """Raise `Unsuitable` for text, whose tokens are names, not amounts."""
    if spec.kind == "text":
        raise Unsuitable(f"{family} models images, tables and arrays; for text use autoregressive")


def to_vector(spec: DataSpec, *, integers: bool = True, codes: bool = False) -> list[Transform]:
    """Return transforms that dequantize, flatten and standardise.

    Real numbers are standardised. `integers` and `codes` (of categories) say whether these are dequantized and
    standardised too, or pass as they are.
    """
    transforms: list[Transform] = []
    chosen = [
        codes if count else integers or not discrete
        for discrete, count in zip(spec.discrete_dims, spec.categories, strict=True)
    ]
    dequantized = [discrete and own for discrete, own in zip(spec.discrete_dims, chosen, strict=True)]
    if spec.levels is not None:
        transforms.append(Dequantize(spec.levels))
    elif any(dequantized):
        transforms.append(Dequantize(discrete=dequantized, categories=spec.categories))
    if len(spec.event_shape) != 1:
        transforms.append(Reshape(spec.event_shape, (spec.dims,)))
    if spec.levels is None and any(chosen):
        transforms.append(Standardise((spec.dims,), chosen))
    return transforms
