"""The spec of a data set: its kind, the shape and levels of one example, its classes and columns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from loglik.data.limits import quote

if TYPE_CHECKING:  # a spec is quick to import, tokenizers are not
    from loglik.data.tokenizers import Tokenizer

__all__ = ["Column", "DataSpec", "Kind"]

Kind = Literal["image", "table", "array", "text"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    `numeric` has real numbers and a density; `integer` has integers, and `categorical` and `boolean` have codes of
    `categories`; these three have probabilities.

    Attributes:
        name: as in the table.
        type: what the density sees.
        categories: the names of the codes 0, 1, ...; the code after the last one is a category that the model has not
            seen.
        missing: some rows have no value, which is NaN in the data.
        temporal: what the numbers are written as: the moment `origin` plus the number times `unit`.
        unit: of a temporal column, 1d, 1h, 1m, 1s, 1ms or 1us; the density is per unit.
        origin: the moment 0 of a temporal column, in ISO 8601; empty for times of day and durations.
        zone: the time zone of a temporal column, as `Europe/Paris`; empty if it has none.
        decimals: the number of decimals of a numeric column that has at most so many; None if it has more than 7.
        written: the strptime format of a temporal column's texts, as %d/%m/%Y; empty for ISO 8601.
        indicates: the name of the column of which this boolean column says that its value is missing.
        novelty: of a categorical column, the probability of a category that the training data did not have; 0 where it
            is not known.
        low: the smallest value of the training data, of numbers in a table; None where it is not known.
        high: the largest one.
    """

    name: str
    type: Literal["numeric", "integer", "categorical", "boolean"]
    categories: tuple[str, ...] = ()
    missing: bool = False
    temporal: Literal["", "date", "datetime", "time", "duration"] = ""
    unit: str = ""
    origin: str = ""
    zone: str = ""
    decimals: int | None = None
    written: str = ""
    indicates: str = ""
    novelty: float = 0.0
    low: float | None = field(default=None, compare=False)  # two tables of the same columns are alike
    high: float | None = field(default=None, compare=False)

    @property
    def discrete(self) -> bool:
        return self.type != "numeric"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for YAML: name, type, categories, and what differs from the defaults."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return own | {"categories": list(self.categories)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Column:
        """Return the column that `to_dict` described."""
        return cls(**{**plain, "categories": tuple(plain["categories"])})


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The properties of a data set that a recipe needs to build a density for it.

    Attributes:
        kind: `image`, `table`, `array` or `text`.
        event_shape: one example: (C, H, W), (D,), any, or (T,) tokens.
        levels: integers 0 ... levels-1 in every dimension; None where data are continuous or mixed.
        classes: the names of the labels 0, 1, ...; empty where there are none.
        columns: of a table, in the order of the dimensions; the label is not among them.
        label: the name of a table's label column, or the name that the user gave for the labels of images or arrays.
        inputs: the columns that a density of targets p(columns | inputs) is given, in the order of its context; empty
            for p(columns).
        left_out: the table's columns that are not modelled, each with the reason.
        tokenizer: of text; bytes by default where there are 256 levels.
        padded: one text per example, not windows of one text: texts shorter than T end in tokens levels-1,
            which are padding, and longer texts are cut.
    """

    kind: Kind
    event_shape: tuple[int, ...]
    levels: int | None = None
    classes: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    label: str | None = None
    tokenizer: Tokenizer | None = None
    padded: bool = False
    inputs: tuple[Column, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "text" and self.levels == 256 and self.tokenizer is None and not self.padded:
            from loglik.data.tokenizers import Bytes

            object.__setattr__(self, "tokenizer", Bytes())

    @property
    def dims(self) -> int:
        """The number of dimensions of one example, which bits/dim divides by."""
        return math.prod(self.event_shape)

    @property
    def discrete_dims(self) -> tuple[bool, ...]:
        """Whether each dimension has integers, and so a probability."""
        if self.columns:
            return tuple(column.discrete for column in self.columns)
        return (self.levels is not None,) * self.dims

    @property
    def categories(self) -> tuple[int, ...]:
        """The number of codes 0, 1, ... of each dimension; 0 where it is a number."""
        if self.columns:
            return tuple(len(column.categories) for column in self.columns)
        return (0,) * self.dims

    @property
    def incomplete(self) -> bool:
        """Whether rows have missing values, NaN, in the event."""
        return any(column.missing for column in self.columns)

    def describe(self) -> str:
        """Return one phrase for a table's caption.

        >>> DataSpec(kind="image", event_shape=(1, 8, 8), levels=17).describe()
        'images 1×8×8, 17 levels'
        """
        shape = "×".join(map(str, self.event_shape))
        words = {"image": "images", "table": "table", "array": "arrays", "text": "text windows"}[self.kind]
        if self.padded:
            words = "texts of up to"
        parts = [f"{words} {shape}", f"{self.levels} levels" if self.levels else ""]
        if self.tokenizer is not None:
            parts = [f"{words} {shape} tokens", f"{self.levels} tokens ({self.tokenizer.kind})"]
        if self.columns:
            count = sum(column.discrete for column in self.columns)
            gaps = sum(column.missing for column in self.columns)
            parts = [f"table of {self.dims} columns", f"{count} discrete" if count else "all numeric"]
            parts += [f"{gaps} with missing values, which are {self._gaps()}"] if gaps else []
        if self.inputs:
            several = "s" * (self.dims > 1)
            names = ", ".join(quote(column.name) for column in self.columns[:3]) + ", ..." * (self.dims > 3)
            parts = [f"target{several} {names} given {len(self.inputs)} inputs"]
        if self.classes:
            parts.append(f"{len(self.classes)} classes")
        return ", ".join(part for part in parts if part)

    def _gaps(self) -> str:
        own = any(column.indicates for column in self.columns)
        return f"modelled{' with whether they are missing' if own else ''} (missing={'indicator' if own else 'model'})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings, for YAML."""
        plain: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["event_shape"] = list(self.event_shape)
        plain["classes"] = list(self.classes)
        plain["columns"] = [column.to_dict() for column in self.columns]
        plain["inputs"] = [column.to_dict() for column in self.inputs]
        plain["left_out"] = [list(pair) for pair in self.left_out]
        for name in ("inputs", "left_out"):
            if not plain[name]:
                del plain[name]
        plain["tokenizer"] = None if self.tokenizer is None else self.tokenizer.to_dict()
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> DataSpec:
        """Return the spec that `to_dict` described."""
        from loglik.data import tokenizers

        return cls(
            kind=plain["kind"],
            event_shape=tuple(plain["event_shape"]),
            levels=plain["levels"],
            classes=tuple(plain["classes"]),
            columns=tuple(map(Column.from_dict, plain["columns"])),
            label=plain["label"],
            tokenizer=tokenizers.from_dict(plain["tokenizer"]) if plain.get("tokenizer") else None,
            padded=plain.get("padded", False),
            inputs=tuple(map(Column.from_dict, plain.get("inputs", ()))),
            left_out=tuple((name, reason) for name, reason in plain.get("left_out", ())),
        )
