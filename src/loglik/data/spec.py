"""The spec of a data set: its kind, the shape and levels of one example, its classes and columns."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # a spec is quick to import, tokenizers are not
    from loglik.data.tokenizers import Tokenizer

__all__ = ["Column", "DataSpec", "Kind"]

Kind = Literal["image", "table", "array", "text"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    `numeric` has real numbers and a density; `integer` has integers, and `categorical` and `boolean` have codes of
    `categories`; these three have probabilities.
    """

    name: str
    type: Literal["numeric", "integer", "categorical", "boolean"]
    categories: tuple[str, ...] = ()

    @property
    def discrete(self) -> bool:
        return self.type != "numeric"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The properties of a data set that a recipe needs to build a density for it.

    Attributes:
        kind: `image`, `table`, `array` or `text`.
        event_shape: one example: (C, H, W), (D,), any, or (T,) tokens.
        levels: integers 0 ... levels-1 in every dimension; None where data are continuous or mixed.
        classes: the names of the labels 0, 1, ...; empty where there are none.
        columns: of a table, in the order of the dimensions; the label is not among them.
        label: the name of a table's label column.
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
            parts = [f"table of {self.dims} columns", f"{count} discrete" if count else "all numeric"]
        if self.classes:
            parts.append(f"{len(self.classes)} classes")
        return ", ".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings, for YAML."""
        plain: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["event_shape"] = list(self.event_shape)
        plain["classes"] = list(self.classes)
        plain["columns"] = [{"name": c.name, "type": c.type, "categories": list(c.categories)} for c in self.columns]
        plain["tokenizer"] = None if self.tokenizer is None else self.tokenizer.to_dict()
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> DataSpec:
        """Return the spec that `to_dict` described."""
        from loglik.data import tokenizers

        columns = tuple(
            Column(name=c["name"], type=c["type"], categories=tuple(c["categories"])) for c in plain["columns"]
        )
        return cls(
            kind=plain["kind"],
            event_shape=tuple(plain["event_shape"]),
            levels=plain["levels"],
            classes=tuple(plain["classes"]),
            columns=columns,
            label=plain["label"],
            tokenizer=tokenizers.from_dict(plain["tokenizer"]) if plain.get("tokenizer") else None,
            padded=plain.get("padded", False),
        )
