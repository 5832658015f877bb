"""A recipe: for a family and a DataSpec, a good default density, in sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from loglik.data.spec import DataSpec
from loglik.density import Density

__all__ = ["Recipe", "Unsuitable", "check_options", "from_zero", "label_embedding", "pick"]


class Unsuitable(ValueError):
    """A family cannot take this kind of data, or not yet; the message names what can."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A family's builder and how such a density is trained best.

    `build(spec, size=..., **options)` returns an untrained density, and `training(spec)` what overrides the defaults
    of `TrainingSettings`. `kinds` are values of its option `variant`, each a variant with a name of its own
    (`flow:glow`), and with a training of its own where `training_by_kind` has one. A density that is not `trainable`
    has no parameters: `initialise` alone fits it.
    """

    name: str
    summary: str
    build: Callable[..., Density]
    training: Callable[[DataSpec], dict[str, Any]] = lambda spec: {}
    trainable: bool = True
    variant: str = "kind"
    kinds: tuple[str, ...] = ()
    training_by_kind: Mapping[str, Callable[[DataSpec], dict[str, Any]]] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The builder's keyword arguments and their defaults."""
        parameters = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_options(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ValueError unless a recipe's options have the types of their defaults, and integers are above 0.

    >>> check_options({"width": 0}, {"width": None})
    Traceback (most recent call last):
    ValueError: width must be an integer above 0, got 0
    """
    for name, value in options.items():
        default = defaults[name]
        if name == "dropout":
            right = type(value) in (int, float) and 0 <= value < 1
            words = "from 0 to below 1" if type(value) in (int, float) else "a number"
        elif name == "kl_warmup":
            right, words = type(value) is int and value >= 0, "an integer, not below 0"
        elif default is None or type(default) is int:
            right, words = type(value) is int and value > 0, "an integer above 0"
        elif type(default) is float:
            right, words = type(value) in (int, float), "a number"
        else:
            right, words = isinstance(value, type(default)), "true or false" if default in (True, False) else "a text"
        if not (right or value is default):
            raise ValueError(f"{name} must be {words}, got {value!r}")


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
        raise Unsuitable('conditional=True needs labels: class folders, label="COLUMN" for a table, or a pair (x, y)')
    return nn.Embedding(len(spec.classes), width)


def from_zero(layer: nn.Linear) -> nn.Linear:
    """A last layer that starts at zero, so that its density starts as what its offsets say: the independent one."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
