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


def to_vector(spec: DataSpec, *, codes: bool = False) -> list[Transform]:
    """Dequantize integers, flatten, and standardise; the log-determinants are counted.

    `codes` says whether categories are dequantized and standardised too, or pass as their codes.
    """
    transforms: list[Transform] = []
    number = [codes or not count for count in spec.categories]
    dequantized = [discrete and own for discrete, own in zip(spec.discrete_dims, number, strict=True)]
    if spec.levels is not None:
        transforms.append(Dequantize(spec.levels))
    elif any(dequantized):
        transforms.append(Dequantize(discrete=dequantized, categories=spec.categories))
    if len(spec.event_shape) != 1:
        transforms.append(Reshape(spec.event_shape, (spec.dims,)))
    if spec.levels is None and any(number):
        transforms.append(Standardise((spec.dims,), number))
    return transforms
