"""What brings data of any kind to the vector of real numbers that flows and real-valued densities take."""

from __future__ import annotations

from loglik.data.spec import DataSpec
from loglik.recipes.recipe import Unsuitable
from loglik.transforms import Dequantize, Reshape, Standardise, Transform

__all__ = ["to_vector", "refuse_text"]


def refuse_text(spec: DataSpec, family: str) -> None:
    """Bytes are names, not amounts."""
    if spec.kind == "text":
        raise Unsuitable(f"{family} takes images, tables and arrays; for text use autoregressive")


def to_vector(spec: DataSpec) -> list[Transform]:
    """Dequantize what is whole, flatten, and standardise real columns; the log-determinants are counted."""
    transforms: list[Transform] = []
    if spec.levels is not None:
        transforms.append(Dequantize(spec.levels))
    elif any(spec.discrete_dims):
        transforms.append(Dequantize(discrete=spec.discrete_dims))
    if len(spec.event_shape) != 1:
        transforms.append(Reshape(spec.event_shape, (spec.dims,)))
    if spec.levels is None:
        transforms.append(Standardise((spec.dims,)))
    return transforms
