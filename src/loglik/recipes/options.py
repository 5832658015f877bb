"""Options: fields of frozen dataclasses that declare their type, bounds and help once, and are checked from these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["Option", "Options", "Size", "as_text", "check_types", "check_values", "option", "options_of"]

Size = Literal["small", "medium", "large"]
OptionsT = TypeVar("OptionsT", bound="Options")
MAX_INTEGER = 2**63 - 1  # torch's integers
WORDS: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def option(
    default: Any, *, help: str, min: float | None = None, above: float | None = None, below: float | None = None
) -> Any:
    """Return a dataclass field with its help and its bounds: min ≤ value, above < value, value < below.

    The bounds hold for numbers; None and texts have none.
    """
    return field(default=default, metadata={"help": help, "min": min, "above": above, "below": below})


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option as a person reads it: its name, its values in words, its default and its effect."""

    name: str
    values: str
    default: Any
    help: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """The base of each recipe's options, whose fields are declared with `option` and checked on construction.

    Raises ValueError, naming the field, what it received and what it accepts.
    """

    size: Size = option("small", help="Size of the networks, where no width or depth is set.")

    def __post_init__(self) -> None:
        check_types(self)

    @classmethod
    def parse(cls: type[OptionsT], values: Mapping[str, Any], owner: str = "this model") -> OptionsT:
        """Return the options with these values; `owner` names the model in the error for an unknown option."""
        names = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise ValueError(f"{owner} has no option {unknown[0]!r}: it has {', '.join(names)}")
        check_values(cls, values)  # before __init__, where a checker of signatures would use words of its own
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """The values that a field accepts: its types, its choices among texts, and the bounds of its numbers."""

    types: tuple[type, ...]
    choices: tuple[str, ...] = ()
    min: float | None = None
    above: float | None = None
    below: float | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError unless the field of this name accepts the value."""
        if self._accepts(value):
            return
        if callable(value):
            raise ValueError(
                f"{name} must be {self}, got a function, which config.yaml cannot hold: build the density in Python "
                "and pass it to fit"
            )
        if self.choices:
            raise ValueError(f"unknown {name} {value!r}: use {self}")
        raise ValueError(f"{name} must be {self}, got {value!r}")

    def _accepts(self, value: Any) -> bool:
        if type(value) is str and value in self.choices:
            return True
        if type(value) not in self.types and not (type(value) is int and float in self.types):
            return False
        if type(value) not in (int, float):
            return True
        if math.isnan(value) or (type(value) is int and abs(value) > MAX_INTEGER):
            return False
        above_low = (self.min is None or value >= self.min) and (self.above is None or value > self.above)
        return above_low and (self.below is None or value < self.below)

    def __str__(self) -> str:
        if self.choices:
            return ", ".join([*(["true", "false"] if bool in self.types else []), *self.choices])
        words = " or ".join(WORDS[kind] for kind in self.types if kind in WORDS)
        positive = self.types[0] is int and self.min == 1
        bounds = {"of at least": None if positive else self.min, "above": 0 if positive else self.above}
        limits = {word: bound for word, bound in {**bounds, "below": self.below}.items() if bound is not None}
        return f"{words} {' and '.join(f'{word} {bound:g}' for word, bound in limits.items())}".rstrip()


def _rules(cls: type) -> dict[str, _Rule]:
    """The rule of each field of a dataclass, from its type and its metadata."""
    hints, rules = get_type_hints(cls), {}
    for f in fields(cls):
        hint = hints[f.name]
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        literals = [part for part in parts if get_origin(part) is Literal]
        rules[f.name] = _Rule(
            types=tuple(part for part in parts if part not in literals),
            choices=tuple(choice for literal in literals for choice in get_args(literal)),
            **{key: bound for key, bound in f.metadata.items() if key != "help"},
        )
    return rules


def check_types(settings: Any) -> None:
    """Raise ValueError unless each field of a dataclass's instance has its declared type, choice and bounds.

    >>> @dataclass
    ... class Settings:
    ...     width: int = option(8, help="Units.", min=1)
    ...     def __post_init__(self): check_types(self)
    >>> Settings(width=0)
    Traceback (most recent call last):
    ValueError: width must be an integer above 0, got 0
    """
    check_values(type(settings), {name: getattr(settings, name) for name in _rules(type(settings))})


def check_values(cls: type, values: Mapping[str, Any]) -> None:
    """Raise ValueError unless the fields of a dataclass accept these values, by their names."""
    rules = _rules(cls)
    for name, value in values.items():
        rules[name].check(name, value)


def options_of(cls: type[Options], preset: Mapping[str, Any]) -> dict[str, Option]:
    """Return the options of a dataclass by name; `preset` replaces defaults."""
    rules = _rules(cls)
    return {
        f.name: Option(
            name=f.name,
            values=str(rules[f.name]),
            default=preset.get(f.name, f.default),
            help=f.metadata["help"],
        )
        for f in fields(cls)
    }


def as_text(value: Any) -> str:
    """Return a value as `--set` reads it: true, false and null as YAML spells them."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
