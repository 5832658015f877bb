"""What the values of a table's column show of its type, from its rows in one or many blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from loglik.data.moments import Form, Span, ambiguous, forms_of, moments_of, parse_text
from loglik.data.numbers import NOT_GIVEN, NumberForms, Numbers
from loglik.data.spec import Column

__all__ = ["Found", "Profile", "STRINGS", "TEMPORAL", "Where", "as_texts", "check_missing", "is_missing"]

MAX_CATEGORIES = 2**15
KEPT = 10_000  # distinct texts of a column that may still be numbers
SEEN = 100  # texts that tell which forms of dates are tried
EXAMPLES = 3
STRINGS = (pl.String, pl.Categorical, pl.Enum)
TEMPORAL = (pl.Date, pl.Datetime, pl.Time, pl.Duration)
TRUE_FALSE = (("false", "true"), ("no", "yes"))

Where = Callable[[int, str], str]


@dataclass(frozen=True)
class Found:
    """How the texts of a column are read: the form of their numbers, and that of their moments."""

    number: str = "point"
    moment: Form | None = None


class Profile:
    """What blocks of a column show of its type.

    Args:
        name: of the column.
        typed: whether the blocks have the column's type; else they are texts of a CSV file, typed by their values.
        kind: what the user wants the column to be read as; empty to decide by the values.
        keep: keep the distinct texts of a column however many they are while it may still be numbers.

    Attributes:
        rows, missing: the number of rows, and of those without a value.
        categories: the distinct texts; None where they are too many to keep.
        too_many_at: the number of values in which there were too many distinct texts for categories; None if not.
        words: of TRUE_FALSE, the pairs that hold all texts.
        forms: of numbers, and what these show.
        spans: the range of moments in each form that all values have.
        not_given: the number of texts such as `?`, which are missing values among numbers and moments.
        decimal_mark: that of the table's other columns, for `1,234`.
    """

    def __init__(self, name: str, *, typed: bool = True, kind: str = "", keep: bool = False) -> None:
        self.name, self.typed, self.keep, self.kind = name, typed, keep, kind
        self.rows = self.missing = 0
        self.dtype: Any = pl.Null()  # repr(pl.DataType) misleads beartype
        self.categories: pl.Series | None = pl.Series([], dtype=pl.String)
        self.too_many_at: int | None = None
        self.words = list(TRUE_FALSE)
        self.examples: list[str] = []
        self.forms = NumberForms()
        self.spans: dict[Form, Span] | None = None
        self.not_given: dict[str, int] = {}
        self.decimal_mark = ""
        self._odd, self._first_odd = 0, (0, "")  # texts that are not numbers

    @property
    def present(self) -> int:
        """The number of values that are not missing."""
        return self.rows - self.missing

    def gaps(self, *, categorical: bool) -> int:
        """Return the number of missing values; a text such as `?` is one unless it is a category."""
        nan = self.forms.possible["point"].nan if "point" in self.forms.possible else 0
        return self.missing if categorical else self.missing + sum(self.not_given.values()) + nan

    @property
    def complete(self) -> bool:
        """Whether all distinct texts of a column of texts were kept, or are not needed."""
        return self.categories is not None or self.too_many_at is not None or self.reads_as != "category"

    @property
    def numeric(self) -> bool:
        """Whether texts may be numbers: those of a CSV file, or as the user wants."""
        return not self.typed or self.kind in ("integer", "numeric")

    @property
    def dated(self) -> bool:
        """Whether the user wants dates."""
        return self.kind == "date" or "%" in self.kind

    def add(self, series: pl.Series) -> None:
        """Add the next rows."""
        if self.dtype == pl.Null:
            self.dtype = series.dtype
        gaps = is_missing(series)
        first, values = self.rows, series.filter(~gaps)
        self.rows += len(series)
        self.missing += len(series) - len(values)
        if not len(values) or not _is_flat(values.dtype):
            return
        if len(self.examples) < EXAMPLES:
            new = as_texts(values.head(SEEN)).unique(maintain_order=True).to_list()
            self.examples = list(dict.fromkeys([*self.examples, *new]))[:EXAMPLES]
        if self.kind in ("category", "boolean"):
            self._add_categories(as_texts(values))
        elif values.dtype in STRINGS or (self.dated and values.dtype.is_numeric()):
            self._add_texts(as_texts(values), gaps, first)
        elif values.dtype in TEMPORAL:
            form = form_of(values.dtype)
            self.spans = {form: Span()} if self.spans is None else self.spans
            self.spans[form].add(moments_of(values))
        elif values.dtype.is_numeric():
            self.forms.possible = {"point": self.forms.possible["point"].join(Numbers.of(values))}

    def _add_texts(self, texts: pl.Series, gaps: pl.Series, first: int) -> None:
        not_given = texts.is_in(NOT_GIVEN)
        for text in texts.filter(not_given).unique().to_list():
            self.not_given[text] = self.not_given.get(text, 0) + int((texts == text).sum())
        self._type_by_values(texts.filter(~not_given))
        if not self.typed:
            odd = texts.cast(pl.Float64, strict=False).is_null()
            if odd.any() and not self._odd:
                at = int(odd.arg_max() or 0)
                self._first_odd = first + int((~gaps).arg_true()[at]), texts[at]
            self._odd += int(odd.sum())
        self._add_categories(texts)

    def _type_by_values(self, texts: pl.Series) -> None:
        """Remove the forms of numbers and moments that a text of the block does not have."""
        if not len(texts):
            return
        if self.spans is None:
            self.spans = {form: Span() for form in self._candidates(texts.head(SEEN))}
        for form in list(self.spans):
            moments = parse_text(texts, form)
            if moments.null_count():
                del self.spans[form]
            else:
                self.spans[form].add(moments)
        if self.numeric and self.forms.possible:
            self.forms.add(texts)

    def _candidates(self, texts: pl.Series) -> list[Form]:
        if "%" in self.kind:
            clock = any(f"%{letter}" in self.kind for letter in "HIMSTRXcr")
            return [Form("datetime" if clock else "date", self.kind)]
        if self.kind == "date" and texts.str.contains(r"^\d{8}$").all():
            return [Form("date", "%Y%m%d")]
        return [form for form in forms_of(texts) if self.kind != "date" or form.kind in ("date", "datetime")]

    def _add_categories(self, texts: pl.Series) -> None:
        if self.words:
            lower = texts.str.to_lowercase()
            self.words = [pair for pair in self.words if lower.is_in(list(pair)).all()]
        if self.categories is None:
            return
        self.categories = pl.concat([self.categories, texts.rename("").unique()]).unique()
        numbers_yet = self.numeric and bool(self.forms.possible)
        if numbers_yet and not self.keep and len(self.categories) > KEPT:
            self.categories = None
        elif not numbers_yet and len(self.categories) > MAX_CATEGORIES:
            self.categories, self.too_many_at = None, self.present

    @property
    def reads_as(self) -> str:
        """What the values tell: number, moment, boolean, category, nothing, or the name of another type."""
        dtype = self.dtype
        if not _is_flat(dtype):
            return str(dtype)
        if not self.present or dtype == pl.Null:
            return "nothing"
        if self.kind in ("category", "boolean"):
            return "category"
        if dtype in TEMPORAL or (self.dated and self.spans):
            return "moment"
        if dtype.is_numeric():
            return "number"
        if dtype == pl.Boolean:
            return "boolean"
        given = self.present > sum(self.not_given.values())
        if given and self.numeric and self.forms.possible:
            return "number"
        if given and self.spans and dtype == pl.String:
            return "moment"
        return "boolean" if self.words and dtype == pl.String else "category"

    @property
    def number_form(self) -> str:
        """The form of numbers in texts; empty if they have two, and the other columns do not tell which."""
        forms = list(self.forms.possible)
        if "point" in forms or len(forms) == 1:
            return "point" if "point" in forms else forms[0]
        if not {"comma", "thousands"} <= set(forms):
            return forms[0] if forms else ""
        return {".": "thousands", ",": "comma"}.get(self.decimal_mark, "")

    @property
    def numbers(self) -> Numbers:
        """What the numbers show in their form."""
        return self.forms.possible[self.number_form]

    @property
    def mark(self) -> str:
        """The decimal mark that the numbers of this column tell; empty if they tell none."""
        if self.reads_as != "number" or self.dtype not in STRINGS or not self.number_form:
            return ""
        if self.number_form == "comma":
            return ","
        return "." if self.number_form == "thousands" or self.forms.dotted else ""

    def found(self, column: Column | None = None) -> Found:
        """Return how the texts are read; for a model, in the form of its `column` where that is possible."""
        forms = list(self.spans or ())
        if column is not None:
            kinds = ("date", "datetime") if column.temporal == "datetime" else (column.temporal,)
            forms = [form for form in forms if form.kind in kinds]
            forms = [form for form in forms if form.format == column.written] or forms
        return Found(self.number_form or "point", None if ambiguous(forms) or not forms else forms[0])

    @property
    def odd_one_out(self) -> tuple[int, str] | None:
        """The first text that is not a number, with its row, where nine in ten texts are numbers."""
        return self._first_odd if 0 < self._odd * 10 <= self.present else None

    @property
    def is_text(self) -> bool:
        """Whether the column holds texts that are nearly all distinct."""
        if self.reads_as != "category" or self.dtype != pl.String or self.odd_one_out:
            return False
        count, among = (MAX_CATEGORIES, self.too_many_at) if self.too_many_at else (self.distinct, self.present)
        return count > max(20, among // 2)

    @property
    def distinct(self) -> int:
        """The number of distinct texts, as far as they were kept."""
        return MAX_CATEGORIES if self.categories is None else len(self.categories)


def form_of(dtype: Any) -> Form:
    """Return the form of moments that have a type of polars."""
    kinds = {pl.Date: "date", pl.Datetime: "datetime", pl.Time: "time", pl.Duration: "duration"}
    return Form(kinds[dtype.base_type()], zone=getattr(dtype, "time_zone", None) or "")


def _is_flat(dtype: Any) -> bool:
    """Return whether values of a type can be numbers, categories or moments."""
    return bool(dtype.is_numeric() or dtype in (*STRINGS, *TEMPORAL, pl.Boolean, pl.Null))


def as_texts(series: pl.Series) -> pl.Series:
    """Return values as texts; integers in a floating-point type have no decimals."""
    if series.dtype.is_float() and bool((series.fill_null(0) == series.fill_null(0).floor()).all()):
        series = series.cast(pl.Int64, strict=False)
    return series.dt.to_string("iso") if series.dtype in TEMPORAL else series.cast(pl.String)


def is_missing(series: pl.Series) -> pl.Series:
    """Return where a value is null or NaN."""
    return series.is_null() | series.is_nan().fill_null(True) if series.dtype.is_float() else series.is_null()


def check_missing(series: pl.Series, where: Where) -> None:
    """Raise ValueError where a value is missing."""
    missing = is_missing(series)
    if missing.any():
        at = where(int(missing.arg_max() or 0), series.name)
        raise ValueError(
            f'{at}: the value is missing, and missing="refuse": fill it in, remove the row, or use missing="model"'
        )
