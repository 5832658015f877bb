"""The type of a table's column, from its rows in one or many blocks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import polars as pl

from loglik.data.labels import natural
from loglik.data.limits import quote
from loglik.data.spec import Column

__all__ = ["EXACT", "STRINGS", "Profile", "Where", "check_missing"]

EXACT = 2**23  # integers up to here, and halves between them, are exact in float32
LONGEST_CATEGORY = 1000  # characters: config.yaml holds all categories
KEPT = 10_000  # distinct texts of a column that may still be numbers
STRINGS = (pl.String, pl.Categorical, pl.Enum)

Where = Callable[[int, str], str]

_WRITTEN = re.compile(
    r"\s*[-+]?(\d+|\d{1,3}([.,'\u2019\s]\d{3})+)([.,]\d*)?(e[-+]?\d+)?\s*", re.I
)  # 1.234,5 is a number too


class Profile:
    """What blocks of a column show of its type.

    Args:
        name: of the column.
        typed: whether the blocks have the column's type; else they are texts of a CSV file, typed by their values.
        keep: keep the distinct texts of a column however many they are while it may still be numbers.
    """

    def __init__(self, name: str, *, typed: bool = True, keep: bool = False) -> None:
        self.name, self.typed, self.keep = name, typed, keep
        self.rows = 0
        self.dtype: pl.DataType = pl.String()
        self.categories: pl.Series | None = pl.Series([], dtype=pl.String)
        self._possible = {"integer", "numeric", "boolean"}
        self._exact = True
        self._odd, self._first_odd = 0, (0, "")  # texts that are not numbers
        self._nan: int | None = None

    @property
    def complete(self) -> bool:
        """Whether all distinct texts of a column of texts were kept."""
        return self.categories is not None or self.type not in STRINGS

    @property
    def type(self) -> Any:  # repr(pl.DataType) misleads beartype
        """The column's type, or the one that all of its texts have."""
        if self.typed:
            return self.dtype
        if "integer" in self._possible:
            return pl.Int64()
        return pl.Float64() if "numeric" in self._possible else pl.Boolean() if self._possible else pl.String()

    def add(self, series: pl.Series, where: Where) -> None:
        """Add the next rows; `where` describes a row of these. Raises ValueError where a value is missing."""
        check_missing(series, where)
        self.dtype = series.dtype
        if self.dtype.is_integer():
            self._add_integers(series)
        elif self.dtype in STRINGS:
            self._add_texts(series.cast(pl.String))
        self.rows += series.len()

    def _add_integers(self, series: pl.Series) -> None:
        self._exact = self._exact and bool(series.cast(pl.Float64).is_between(-EXACT, EXACT).all())

    def _add_texts(self, series: pl.Series) -> None:
        numbers = series.cast(pl.Float64, strict=False)
        odd = numbers.is_null()
        if odd.any() and not self._odd:
            row = int(odd.arg_max() or 0)
            self._first_odd = self.rows + row, series[row]
        self._odd += int(odd.sum())
        if not self.typed:
            self._type_by_values(series, numbers)
        if self.categories is not None:
            self.categories = pl.concat([self.categories, series.rename("").unique()]).unique()
            if not self.typed and not self.keep and self._possible and len(self.categories) > KEPT:
                self.categories = None

    def _type_by_values(self, series: pl.Series, numbers: pl.Series) -> None:
        """Remove the types that a text of the block does not have."""
        if "integer" in self._possible:
            integers = series.cast(pl.Int64, strict=False)
            if integers.null_count():
                self._possible.discard("integer")
            else:
                self._add_integers(integers)
        if numbers.null_count():
            self._possible.discard("numeric")
        elif self._nan is None and numbers.is_nan().any():
            self._nan = self.rows + int(numbers.is_nan().arg_max() or 0)
        if "boolean" in self._possible and not series.str.to_lowercase().is_in(["true", "false"]).all():
            self._possible.discard("boolean")

    def column(self, source: str, where: Where) -> Column:
        """Return the column with its type and categories; raise ValueError if it has none that loglik models."""
        name, dtype = self.name, self.type
        if dtype == pl.Boolean:
            return Column(name=name, type="boolean", categories=("false", "true"))
        if dtype.is_integer():
            return Column(name=name, type="integer" if self._exact else "numeric")
        if dtype.is_numeric():
            if self._nan is not None:
                raise ValueError(_missing(where(self._nan, name)))
            return Column(name=name, type="numeric")
        if dtype in STRINGS:
            return Column(name=name, type="categorical", categories=self._checked_categories(source, where))
        raise ValueError(
            f"{source}: column {quote(name)} holds {dtype}: loglik reads numbers, strings and booleans; "
            "convert or remove it"
        )

    def _checked_categories(self, source: str, where: Where) -> tuple[str, ...]:
        assert self.categories is not None
        name, categories = self.name, self.categories.to_list()
        written = [text for text in categories if _WRITTEN.fullmatch(text)]
        strange = next((text for text in written if re.search(r"[,'\u2019\s]|\..*\.", text.strip())), None)
        if strange and len(written) == len(categories):
            raise ValueError(
                f"{source}: column {quote(name)} has numbers written as {quote(strange)}: write them with a decimal "
                "point and without separators of thousands"
            )
        if (odd := self.odd_one_out) and len(categories) > 10:
            raise ValueError(f"{where(odd[0], name)}: {quote(odd[1])} is not a number, though most of the column is")
        if len(categories) > max(20, self.rows // 2):
            raise ValueError(
                f"{source}: column {quote(name)} has {len(categories)} distinct texts in {self.rows} rows: "
                "too many for categories: remove the column or group its values (a column of text beside the label's, "
                "and no other column, can be classified)"
            )
        if long := next((text for text in categories if len(text) > LONGEST_CATEGORY), None):
            raise ValueError(
                f"{source}: column {quote(name)} has the text {quote(long)}: a category has at most "
                f"{LONGEST_CATEGORY:,} characters"
            )
        return tuple(sorted(categories, key=natural))

    @property
    def odd_one_out(self) -> tuple[int, str] | None:
        """The first text that is not a number, with its row, where nine in ten texts are numbers."""
        return self._first_odd if 0 < self._odd * 10 <= self.rows else None

    @property
    def is_text(self) -> bool:
        """Whether the column holds texts that are nearly all distinct."""
        if self.type != pl.String or self.odd_one_out or self.categories is None:
            return False
        return len(self.categories) > max(20, self.rows // 2)


def check_missing(series: pl.Series, where: Where) -> None:
    """Raise ValueError where a value is missing."""
    missing = series.is_null()
    if series.dtype.is_float():
        missing = missing | series.is_nan().fill_null(True)
    if missing.any():
        raise ValueError(_missing(where(int(missing.arg_max() or 0), series.name)))


def _missing(where: str) -> str:
    return (
        f"{where}: the value is missing: fill it in or remove the row "
        "(`loglik fill` draws missing values, from a run on the complete rows)"
    )
