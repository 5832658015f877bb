"""Dates, times and durations as numbers of a unit, and back.

A moment is an integer number of microseconds: since 1970-01-01 (in UTC, where there is a zone), since midnight for a
time of day, in all for a duration.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from loglik.data.spec import Column

__all__ = [
    "EPOCH",
    "EXACT",
    "UNITS",
    "Form",
    "Span",
    "ambiguous",
    "forms_of",
    "from_numbers",
    "moments_of",
    "origin_of",
    "parse_text",
    "to_numbers",
]

EXACT = 2**23  # integers up to here, and halves between them, are exact in float32
UNITS = {
    "1d": 86_400_000_000, "1h": 3_600_000_000, "1m": 60_000_000, "1s": 1_000_000, "1ms": 1000, "1us": 1,
}  # fmt: skip
FINER = {"1d": "1s", "1h": "1s", "1m": "1s", "1s": "1ms", "1ms": "1us", "1us": "1us"}  # to which real numbers are read
DAY = UNITS["1d"]
ENOUGH = 100  # units in the range of a real-valued column
EPOCH = datetime.datetime(1970, 1, 1)


@dataclass(frozen=True)
class Form:
    """How moments are written: the kind, the strptime format (empty for ISO 8601), and whether there is an offset."""

    kind: str
    format: str = ""
    zone: str = ""


_DATES = [
    "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d.%m.%Y", "%d %b %Y", "%d-%b-%Y", "%b %d, %Y",
    "%d %B %Y", "%B %d, %Y",
]  # fmt: skip
_CLOCKS = ["%H:%M", "%H:%M:%S%.f", "%I:%M %p", "%I:%M:%S %p"]
_FORMS = (
    [Form("date"), Form("datetime"), Form("datetime", zone="UTC"), Form("time"), Form("duration")]
    + [Form("date", date) for date in _DATES]
    + [Form("datetime", f"{date} {clock}") for date in _DATES for clock in _CLOCKS]
)
_ISO = {
    "date": r"^\d{4}-\d{2}-\d{2}$",
    "datetime": r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?$",
    "UTC": r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)? ?(Z|[-+]\d{2}(:?\d{2})?)$",
    "time": r"^([01]?\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,9})?)?$",
    "duration": (
        r"^[-+]?P(?:(?P<d>\d+)D)?(?:T(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?$"
        r"|^(?P<d2>-?\d+) days?,?(?: \+?(?P<h2>\d{1,2}):(?P<m2>\d{2}):(?P<s2>\d{2}(?:\.\d+)?))?$"
    ),
}


def forms_of(texts: pl.Series) -> list[Form]:
    """Return the forms that all of some texts have."""
    return [form for form in _FORMS if not parse_text(texts, form).null_count()]


def parse_text(texts: pl.Series, form: Form) -> pl.Series:
    """Return texts as moments, null where a text does not have this form."""
    if form.format:
        texts = texts.set(~texts.str.contains(r"\d{4}").fill_null(False), None) if "%Y" in form.format else texts
        return moments_of(texts.str.strptime(pl.Datetime("us"), form.format, strict=False))
    pattern = _ISO["UTC" if form.zone else form.kind]
    texts = texts.set(~texts.str.contains(pattern).fill_null(False), None)
    if form.kind == "duration":
        return _durations(texts, pattern)
    if form.kind == "time":
        return _seconds(texts, r"^(?P<h>\d+):(?P<m>\d+)(?::(?P<s>[\d.]+))?$")
    day = texts.str.slice(0, 10).str.strptime(pl.Date, "%Y-%m-%d", strict=False).cast(pl.Int64) * DAY
    if form.kind == "date":
        return day
    clock = _seconds(texts.str.slice(11), r"^(?P<h>\d+):(?P<m>\d+)(?::(?P<s>\d+(?:[.,]\d+)?))?")
    return day + clock - (_offset(texts) if form.zone else 0)


def _seconds(texts: pl.Series, pattern: str) -> pl.Series:
    """Return the hours, minutes and seconds of texts as microseconds."""
    parts = texts.str.extract_groups(pattern).struct.unnest()
    seconds = parts["s"].fill_null("0").str.replace(",", ".", literal=True).cast(pl.Float64)
    whole = parts["h"].cast(pl.Int64) * UNITS["1h"] + parts["m"].cast(pl.Int64) * UNITS["1m"]
    return whole + (seconds * UNITS["1s"]).round().cast(pl.Int64)


def _offset(texts: pl.Series) -> pl.Series:
    parts = texts.str.extract_groups(r"(?P<sign>[-+])(?P<h>\d{2}):?(?P<m>\d{2})?$").struct.unnest()
    hours, minutes = (parts[name].fill_null("0").cast(pl.Int64) for name in ("h", "m"))
    sign = 1 - 2 * (parts["sign"] == "-").fill_null(False).cast(pl.Int64)
    return (hours * UNITS["1h"] + minutes * UNITS["1m"]) * sign


def _durations(texts: pl.Series, pattern: str) -> pl.Series:
    parts = texts.str.extract_groups(pattern).struct.unnest()
    total = pl.Series([0.0]).new_from_index(0, len(texts))
    for name, unit in (("d", "1d"), ("h", "1h"), ("m", "1m"), ("s", "1s")):
        total = total + parts[name].fill_null(parts[f"{name}2"]).cast(pl.Float64).fill_null(0) * UNITS[unit]
    sign = 1 - 2 * (texts.str.starts_with("-") & parts["d2"].is_null()).fill_null(False).cast(pl.Int64)
    moments = total.round().cast(pl.Int64) * sign
    return moments.set(texts.is_null(), None)


def moments_of(series: pl.Series) -> pl.Series:
    """Return dates, datetimes, times or durations as moments."""
    dtype = series.dtype
    if dtype == pl.Date:
        return series.cast(pl.Int64) * DAY
    if dtype == pl.Time:
        return series.cast(pl.Int64) // 1000
    return series.cast(pl.Duration("us") if dtype == pl.Duration else pl.Datetime("us", dtype.time_zone)).cast(pl.Int64)  # type: ignore[attr-defined]


class Span:
    """The range of moments, and the units of which all of them are multiples."""

    def __init__(self) -> None:
        self.low: int | None = None
        self.high: int | None = None
        self.units = list(UNITS)

    def add(self, moments: pl.Series) -> None:
        """Add moments, none of them null."""
        if not len(moments):
            return
        low, high = int(moments.min()), int(moments.max())  # type: ignore[arg-type]
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
        values = moments.to_numpy()
        while len(self.units) > 1 and (values % UNITS[self.units[0]]).any():
            self.units = self.units[1:]

    def column(self, name: str, form: Form, *, missing: bool) -> tuple[Column, str]:
        """Return a column of these moments, and what float32 loses of them."""
        assert self.low is not None and self.high is not None
        dated = form.kind in ("date", "datetime")
        unit = self.units[0] if form.kind != "date" else "1d"
        step = UNITS[unit]
        origin = self.low if dated else 0
        if dated and (self.high - origin) // step > EXACT:
            origin += (self.high - origin) // step // 2 * step
        column = Column(
            name=name,
            type="integer",
            missing=missing,
            temporal=form.kind,  # type: ignore[arg-type]
            unit=unit,
            origin=_iso(origin, form.kind) if dated else "",
            zone=form.zone,
            written=form.format,
        )
        if max(self.high - origin, origin - self.low) <= EXACT * step:
            return column, ""
        extent = max(self.high - origin, origin - self.low)
        coarse = next((u for u, size in UNITS.items() if 2 * extent >= ENOUGH * size), unit)
        largest = extent / UNITS[coarse]
        lost = 2.0 ** (np.floor(np.log2(largest)) - 23) * UNITS[coarse]
        words = f"real numbers in {coarse}, read to {_readable(lost)}: too many {unit} for integers"
        return replace(column, type="numeric", unit=coarse), words


def _readable(moment: float) -> str:
    unit, size = next(((u, s) for u, s in UNITS.items() if moment >= s), ("1us", 1))
    return f"{moment / size:.2g} {unit[1:]}"


def _iso(moment: int, kind: str) -> str:
    at = EPOCH + datetime.timedelta(microseconds=moment)
    return at.date().isoformat() if kind == "date" else at.isoformat()


def origin_of(column: Column) -> int:
    """Return the moment 0 of a temporal column."""
    if not column.origin:
        return 0
    return round((datetime.datetime.fromisoformat(column.origin) - EPOCH) / datetime.timedelta(microseconds=1))


def to_numbers(moments: pl.Series, column: Column) -> np.ndarray:
    """Return moments as numbers of the column's unit from its origin, in float64, NaN where null."""
    known = moments.is_not_null().to_numpy()
    offset = moments.fill_null(origin_of(column)).to_numpy() - origin_of(column)  # in integers, which lose nothing
    return np.where(known, offset / UNITS[column.unit], np.nan)


def from_numbers(values: np.ndarray, column: Column) -> pl.Series:
    """Return numbers of a column's unit as dates, datetimes, times or durations; null where NaN."""
    known, unit = np.isfinite(values), UNITS[column.unit]
    step = unit if column.type == "integer" else UNITS[FINER[column.unit]]
    moments = np.where(known, np.round(np.where(known, values, 0).astype(np.float64) * unit / step) * step, 0)
    series = pl.Series(column.name, moments.astype(np.int64) + origin_of(column)).set(pl.Series(~known), None)
    if column.temporal == "date":
        return (series // DAY).cast(pl.Int32).cast(pl.Date)
    if column.temporal == "time":
        return (series % DAY * 1000).cast(pl.Time)
    if column.temporal == "duration":
        return series.cast(pl.Duration("us"))
    if column.zone:
        return series.cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(column.zone)
    return series.cast(pl.Datetime("us"))


def ambiguous(forms: Sequence[Form]) -> bool:
    """Return whether forms differ in the order of day and month."""
    return len({form.format.replace("%B", "%b") for form in forms}) > 1
