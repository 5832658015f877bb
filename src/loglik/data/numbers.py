"""Numbers in texts: with a decimal point, a decimal comma, or separators of thousands.

A column has one form. `1,234` alone has two: a decimal comma, or a separator of thousands.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import polars as pl

__all__ = ["FORMS", "MAX_DECIMALS", "NOT_GIVEN", "WRITTEN", "NumberForms", "Numbers", "numbers"]

MAX_DECIMALS = 7
NOT_GIVEN = ["?", "-", "--", ".", "n/a", "none", "None", "unknown", "missing"]  # among numbers or dates
EXPONENT = r"(?:[eE][-+]?\d+)?"
_GROUPS = {
    "comma": r"(?:[1-9]\d{0,2}(?:\.\d{3})+|\d+)(?:,\d*)?|,\d+",
    "thousands": r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+",
    "blanks": r"(?:[1-9]\d{0,2}(?:[ '\x{2019}\x{a0}\x{202f}]\d{3})+|\d+)(?:[.,]\d*)?",
}
FORMS = {
    "point": "a decimal point",
    "comma": "a decimal comma",
    "thousands": "commas between thousands",
    "blanks": "blanks or apostrophes between thousands",
}
_MARKS = r"[,'\x{2019} \x{a0}\x{202f}]"  # that a float in the form "point" does not have
WRITTEN = re.compile(
    r"\s*[-+]?(\d+|\d{1,3}([.,'\u2019\s]\d{3})+)([.,]\d*)?(e[-+]?\d+)?\s*", re.I
)  # 1.234,5 is a number too


def numbers(series: pl.Series, form: str = "point") -> pl.Series:
    """Return texts as float64, null where a text is not a number of this form."""
    if form != "point":
        fits = series.str.contains(f"^[-+]?(?:{_GROUPS[form]}){EXPONENT}$")
        plain = series.set(~fits.fill_null(False), None)
        if form == "comma":
            series = plain.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        elif form == "thousands":
            series = plain.str.replace_all(",", "", literal=True)
        else:
            series = plain.str.replace_all(r"['\x{2019} \x{a0}\x{202f}]", "").str.replace(",", ".", literal=True)
    return series.cast(pl.Float64, strict=False)


@dataclass
class Numbers:
    """What numbers show: their range, whether all are integers, and how many decimals they have, at most 8."""

    low: float = math.inf
    high: float = -math.inf
    integral: bool = True
    decimals: int = 0
    nan: int = 0

    @classmethod
    def of(cls, values: pl.Series) -> Numbers:
        """Return what these numbers show."""
        single, doubles = values.dtype == pl.Float32, values.cast(pl.Float64)
        finite = doubles.filter(doubles.is_finite())
        nan, decimals = int(doubles.is_nan().sum()), 0
        if not len(finite):
            return cls(integral=len(doubles) == nan, nan=nan)
        integral = len(finite) + nan == len(doubles) and bool((finite == finite.floor()).all())
        while not integral and decimals <= MAX_DECIMALS:
            rounded = finite.round(decimals)
            if bool((rounded.cast(pl.Float32) == finite.cast(pl.Float32) if single else rounded == finite).all()):
                break
            decimals += 1
        return cls(float(finite.min()), float(finite.max()), integral, decimals, nan)  # type: ignore[arg-type]

    def join(self, other: Numbers) -> Numbers:
        """Return what the numbers of both show."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        integral, decimals = self.integral and other.integral, max(self.decimals, other.decimals)
        return Numbers(low, high, integral, decimals, self.nan + other.nan)


class NumberForms:
    """Find the forms that all numbers of a column have, from blocks of texts.

    Attributes:
        possible: the forms that all texts so far have, and what the numbers show if they have that form.
        first: the first number with a comma or another mark; empty if there is none.
        dotted: whether a number has a point.
        zeros: the first number that begins with a zero before another digit, as codes do; empty if there is none.
    """

    def __init__(self) -> None:
        self.possible = {form: Numbers() for form in FORMS}
        self.first, self.dotted, self.zeros = "", False, ""

    def add(self, texts: pl.Series) -> None:
        """Add texts, none of them missing."""
        marked = texts.str.contains(_MARKS)
        has_points = bool(texts.str.contains(".", literal=True).any())
        if marked.any():
            self.first = self.first or texts.filter(marked).item(0)
        self.dotted = self.dotted or has_points
        if not self.zeros and (zeros := texts.filter(texts.str.contains(r"^0\d"))).len():
            self.zeros = zeros.item(0)
        found: Numbers | None = None
        for form in list(self.possible):
            plain = found is not None and not marked.any() and not (form == "comma" and has_points)
            if not plain:  # else the texts are the same numbers in this form
                values = numbers(texts, form)
                if values.null_count():
                    del self.possible[form]
                    continue
                found = Numbers.of(values)
            assert found is not None
            self.possible[form] = self.possible[form].join(found)
