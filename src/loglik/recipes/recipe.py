"""A recipe: for a family and a DataSpec, a good default density, in sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from loglik.data.spec import DataSpec
from loglik.density import Density

__all__ = ["Recipe", "Unsuitable", "pick", "label_embedding"]


class Unsuitable(ValueError):
    """A family cannot take this kind of data, or not yet; the message names what can."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A family's builder and how such a density is trained best.

    `build(spec, size=..., **options)` returns an untrained density; `training` overrides the defaults of
    `TrainingSettings`.
    """

    name: str
    summary: str
    build: Callable[..., Density]
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The builder's keyword arguments and their defaults."""
        parameters = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def pick(size: str, **sizes: Any) -> Any:
    """The entry of a size, or an error that names the sizes."""
    if size not in sizes:
        raise ValueError(f"unknown size {size!r}: use {', '.join(sizes)}")
    return sizes[size]


def label_embedding(spec: DataSpec, width: int, conditional: bool) -> nn.Module | None:
    """An embedding of the label where the density is to be p(x | label)."""
    if not conditional:
        return None
    if not spec.classes:
        raise Unsuitable("conditional=true needs labels: class folders, or --label COLUMN for a table")
    return nn.Embedding(len(spec.classes), width)
