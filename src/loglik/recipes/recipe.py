"""A recipe: for a family and a DataSpec, a good default density, in sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from torch import nn

from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.networks.columns import ColumnFeatures, InputNetwork
from loglik.recipes.options import Option, Options, Size, options_of

__all__ = [
    "Recipe",
    "Unsuitable",
    "conditional_on_inputs",
    "context_network",
    "context_width",
    "from_zero",
    "input_features",
    "pick",
    "refuse_unused",
]

INPUT_WIDTH = 64
CONDITIONAL: dict[str, Any] = {"conditional": True}

Value = TypeVar("Value")
OptionsT = TypeVar("OptionsT", bound=Options)


class Unsuitable(ValueError):
    """A family cannot model this kind of data; the message names one that can."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[OptionsT]):
    """A family's builder, its options, and the training settings that suit it.

    Attributes:
        name, summary: the family's name, and one line about it.
        options_type: the dataclass of its options.
        build: from a DataSpec and the options to an untrained density.
        training: from a DataSpec to what overrides the defaults of `TrainingSettings`; it suits a CPU, and
            `loglik.recipes.device` adapts it to others.
        tables_only: whether a comparison of all families of other data leaves it out without a word.
        variant: the option whose values `kinds` are variants with names of their own, such as `flow:glow`.
        training_by_kind: the training of a variant, where it differs.
        presets: of a variant that sets other options than `variant`, the options that it sets.
        preset: options that this variant sets.
    """

    name: str
    summary: str
    options_type: type[OptionsT]
    build: Callable[[DataSpec, OptionsT], Density]
    training: Callable[[DataSpec], dict[str, Any]] = lambda spec: {}
    tables_only: bool = False
    variant: str = "kind"
    kinds: tuple[str, ...] = ()
    training_by_kind: Mapping[str, Callable[[DataSpec], dict[str, Any]]] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)

    def variant_options(self, kind: str) -> Mapping[str, Any]:
        """Return the options that a variant sets."""
        return self.presets.get(kind, {self.variant: kind})

    @property
    def family(self) -> str:
        """The name without a variant."""
        return self.name.partition(":")[0]

    @property
    def options(self) -> dict[str, Option]:
        """Each option by name: its values, default and help."""
        return options_of(self.options_type, self.preset)

    def parse(self, values: Mapping[str, Any]) -> OptionsT:
        """Return the options with these values, or raise ValueError for an unknown name or a wrong value."""
        return self.options_type.parse({**self.preset, **values}, owner=self.name)


def pick(size: Size, small: Value, medium: Value, large: Value) -> Value:
    """Return the value of a size."""
    return {"small": small, "medium": medium, "large": large}[size]


def refuse_unused(options: Options, names: tuple[str, ...], chosen: str, reason: str) -> None:
    """Raise ValueError if one of these options is set (is not None), since the chosen network does not have it."""
    for name in names:
        value = getattr(options, name)
        if value is not None:
            raise ValueError(f"{name}={value} has no effect with {chosen}: leave {name} out, or {reason}")


def conditional_on_inputs(spec: DataSpec, options: OptionsT) -> OptionsT:
    """Return the options of p(targets | inputs), which are conditional; others as they are."""
    return replace(options, **CONDITIONAL) if spec.inputs else options


def context_width(spec: DataSpec, labels: int) -> int:
    """Return the width of a context's vector: of inputs, or `labels` of a label."""
    return INPUT_WIDTH if spec.inputs else labels


def context_network(spec: DataSpec, width: int, conditional: bool) -> nn.Module | None:
    """Return the network from a context to a vector if the density is conditional, else None.

    It embeds a label, or reads the inputs of p(targets | inputs).
    """
    if not conditional:
        return None
    if spec.inputs:
        return InputNetwork(input_features(spec), width)
    if not spec.classes:
        raise Unsuitable('conditional=True needs labels: class folders, label="COLUMN" for a table, or a pair (x, y)')
    return nn.Embedding(len(spec.classes), width)


def input_features(spec: DataSpec) -> ColumnFeatures:
    """Return the features of a spec's inputs."""
    missing = [column.missing for column in spec.inputs]
    return ColumnFeatures([len(column.categories) for column in spec.inputs], missing)


def from_zero(layer: nn.Linear) -> nn.Linear:
    """Set a last layer to zero, so that its density starts as its offsets alone make it: the independent one."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
