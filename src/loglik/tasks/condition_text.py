"""Conditions as users write them: `carat=1..2`, `cut=Ideal|Premium`, `price<500`, `day=2013-07`; or Python values."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from loglik.conditioning import Condition
from loglik.data.limits import quote, some
from loglik.data.moments import EPOCH, UNITS, origin_of
from loglik.data.spec import Column, DataSpec

__all__ = ["Given", "column_of", "conditions_of", "number_text"]

Given = Mapping[str, Any] | Sequence[str]
Interval = tuple[float, float]

OPERATOR = re.compile(r"\s*(<=|>=|==|=|<|>)\s*")


def conditions_of(given: Given, spec: DataSpec) -> list[Condition]:
    """Return the conditions on a table's columns.

    Args:
        given: texts such as `carat=1..2`, or the value of each column: a value, a (low, high) of numbers or dates with
            None for an open end, a list of values, or a text as on the command line.
        spec: of the table.

    Raises ValueError for an unknown column, a column named twice, and values that the column cannot have.
    """
    if spec.kind != "table" or not spec.columns:
        raise ValueError(f"conditions are on the columns of a table, and this run's data are {spec.describe()}")
    columns = {column.name: d for d, column in enumerate(spec.columns)}
    if isinstance(given, Mapping):
        pairs = [(column_of(name, spec).name, "=", value) for name, value in given.items()]
    else:
        pairs = [_split(text, spec) for text in given]
    found: dict[str, Condition] = {}
    for name, operator, value in pairs:
        column = spec.columns[columns[name]]
        if name in found:
            raise ValueError(f"two conditions on column {quote(name)}: write one, such as {quote(name + '=1..2')}")
        intervals = _intervals(column, operator, value)
        found[name] = _condition(columns[name], column, intervals, f"{name}{operator}{_shown(value)}")
    return list(found.values())


def _split(text: str, spec: DataSpec) -> tuple[str, str, str]:
    """Return the column, the operator and the value of a condition; a column's name may have any characters.

    Raises ValueError for a text without a column's name and an operator.
    """
    names = [c.name for c in spec.columns if text.lstrip().startswith(c.name)]
    for name in sorted(names, key=len, reverse=True):
        rest = text.lstrip()[len(name) :]
        if operator := OPERATOR.match(rest):
            return name, operator[1].replace("==", "="), rest[operator.end() :].strip()
    if not (operator := OPERATOR.search(text)):
        raise ValueError(f"a condition is COLUMN=VALUE, such as 'carat=1..2', got {quote(text)}")
    return column_of(text[: operator.start()].strip(), spec).name, "=", ""


def column_of(name: str, spec: DataSpec) -> Column:
    """Return the column of a name; raise ValueError if a table has no such column."""
    if found := [column for column in spec.columns if column.name == name]:
        return found[0]
    if name in {c.name for c in spec.inputs}:
        raise ValueError(
            f"column {quote(name)} is an input of this run, p(targets | inputs): conditions are on targets"
        )
    if name == spec.label:
        message = f'column {quote(name)} is the label: pass label="CLASS" instead, to a run with conditional=True'
        raise ValueError(message)
    reasons = dict(spec.left_out)
    why = f": it is not modelled ({reasons[name]})" if name in reasons else ""
    raise ValueError(f"no column {quote(name)}{why}; the columns are {some([c.name for c in spec.columns])}")


def _condition(d: int, column: Column, intervals: Iterable[Interval], text: str) -> Condition:
    """Return the condition of intervals on a column, as float32 has its values."""
    kept: list[Interval] = []
    for low, high in sorted(intervals):
        if column.discrete:
            low, high = math.ceil(low) if low > -math.inf else low, math.floor(high) if high < math.inf else high
        else:
            low, high = float(np.float32(low)), float(np.float32(high))
        if low > high:
            raise ValueError(f"{quote(text)}: the range has no {'integer' if column.discrete else 'value'} in it")
        if kept and low <= kept[-1][1] + (1 if column.discrete and not column.categories else 0):
            kept[-1] = (kept[-1][0], max(high, kept[-1][1]))
        else:
            kept.append((low, high))
    if not column.discrete and len({low == high for low, high in kept}) > 1:
        raise ValueError(
            f"{quote(text)}: column {quote(column.name)} has real numbers, of which a single value has probability 0 "
            "beside a range: write values or ranges"
        )
    if len(kept) > 64:
        raise ValueError(f"{quote(text)}: at most 64 values or ranges")
    return Condition(d, tuple(kept), column.discrete)


def _intervals(column: Column, operator: str, value: Any) -> list[Interval]:
    """Return the intervals of a value, of the column's numbers."""
    if isinstance(value, (list, set, frozenset)):
        if not value:
            raise ValueError(f"column {quote(column.name)}: an empty list, which no row meets")
        return [interval for one in value for interval in _intervals(column, operator, one)]
    if column.categories:
        return _codes(column, operator, value)
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ValueError(f"column {quote(column.name)}: a range is (low, high), got {value!r}")
        return [_between(column, *value)]
    text = _shown(value)
    if operator == "=":
        return [_one(column, part.strip()) for part in text.split("|")]
    start, end = _number(column, text)
    below, above = start, end
    if column.discrete:  # the integers beside the ends
        below, above = math.ceil(start) - 1.0, math.floor(end) + 1.0
    ends = {
        "<": (-math.inf, below),
        "<=": (-math.inf, end),
        ">": (above, math.inf),
        ">=": (start, math.inf),
    }
    return [ends[operator]]


def _one(column: Column, text: str) -> Interval:
    """Return a value, or the ends of a range `a..b`, `a..` or `..b`."""
    low, dots, high = text.partition("..")
    if dots:
        return _between(column, low.strip() or None, high.strip() or None)
    start, end = _number(column, text)
    if column.discrete and start == end != round(start):
        raise ValueError(f"column {quote(column.name)} has integers: no row has {text}")
    return start, end


def _between(column: Column, low: Any, high: Any) -> Interval:
    start = -math.inf if low is None else _number(column, _shown(low))[0]
    end = math.inf if high is None else _number(column, _shown(high))[1]
    if start > end:
        raise ValueError(
            f"column {quote(column.name)}: the range {_shown(low)}..{_shown(high)} is empty: its ends are swapped"
        )
    return start, end


def _codes(column: Column, operator: str, value: Any) -> list[Interval]:
    """Return the codes of categories."""
    if operator != "=":
        raise ValueError(f"column {quote(column.name)} has categories: write {column.name}=A|B, got {operator}{value}")
    text = str(value).lower() if isinstance(value, (bool, np.bool_)) or column.type == "boolean" else str(value)
    names = [text] if text in column.categories else [part.strip() for part in text.split("|")]
    for name in names:
        if name not in column.categories:
            raise ValueError(
                f"column {quote(column.name)}: no category {quote(name)}; they are {some(column.categories)}"
            )
    codes = [float(column.categories.index(name)) for name in names]
    return [(code, code) for code in codes]


def _number(column: Column, text: str) -> Interval:
    """Return the lowest and highest number that a text stands for: the same, or the ends of a day, month or year."""
    if column.temporal:
        return _moment(column, text)
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"column {quote(column.name)}: {quote(text)} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"column {quote(column.name)}: {quote(text)} is not a finite number")
    return number, number


def _moment(column: Column, text: str) -> Interval:
    """Return a date, time or duration as numbers of the column's unit; a day, month or year has two ends."""
    unit = UNITS[column.unit]
    for span in (_period, _clock):
        if (ends := span(column, text)) is not None:
            start, end = (at / unit for at in ends)
            if start == end:
                return start, end
            return (math.ceil(start), math.ceil(end) - 1) if column.discrete else (start, end)
    example = {"time": "08:30", "duration": "01:30:00"}.get(column.temporal, "2013-07-04, 2013-07 or 2013")
    raise ValueError(f"column {quote(column.name)}: {quote(text)} is not a {column.temporal}: write {example}")


def _period(column: Column, text: str) -> tuple[int, int] | None:
    """Return the microseconds from the origin of the beginning and the end of a date, month, year or moment."""
    if column.temporal not in ("date", "datetime"):
        return None
    try:
        if re.fullmatch(r"\d{4}(-\d{2})?(-\d{2})?", text):
            parts = [int(part) for part in text.split("-")]
            first = datetime.datetime(*([*parts, 1, 1])[:3])  # type: ignore[arg-type]
            last = _next(first, len(parts))
            if column.temporal == "date" and len(parts) == 3:
                last = first
        else:
            first = last = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return _since_origin(first, column), _since_origin(last, column)


def _next(first: datetime.datetime, parts: int) -> datetime.datetime:
    """Return the end of a year, a month or a day."""
    if parts == 1:
        return first.replace(year=first.year + 1)
    if parts == 2:
        return (first + datetime.timedelta(days=32)).replace(day=1)
    return first + datetime.timedelta(days=1)


def _since_origin(moment: datetime.datetime, column: Column) -> int:
    """Return the microseconds from a column's origin, which is in UTC if the column has a zone."""
    if column.zone:
        moment = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(column.zone))
        moment = moment.astimezone(datetime.timezone.utc)
    since_epoch = moment.replace(tzinfo=None) - EPOCH
    return round(since_epoch / datetime.timedelta(microseconds=1)) - origin_of(column)


def _clock(column: Column, text: str) -> tuple[int, int] | None:
    """Return the microseconds of a time of day, or of a duration in hours, minutes and seconds or days."""
    if column.temporal not in ("time", "duration"):
        return None
    days = re.fullmatch(r"(-?\d+) days?,?\s*(.*)", text)
    text, sign = (days[2] or "00:00", 1) if days else (text.lstrip("-"), -1 if text.startswith("-") else 1)
    if not (clock := re.fullmatch(r"(\d+):(\d{2})(?::(\d{2}(?:\.\d+)?))?", text)):
        return None
    at = int(clock[1]) * UNITS["1h"] + int(clock[2]) * UNITS["1m"] + round(float(clock[3] or 0) * UNITS["1s"])
    at = sign * at + (int(days[1]) * UNITS["1d"] if days else 0)
    return at, at


def number_text(column: Column, number: float) -> str:
    """Return a number of a column as a user writes it; a date or time in ISO 8601."""
    if not column.temporal:
        return f"{number:.4g}"
    span = datetime.timedelta(microseconds=round(number * UNITS[column.unit]))
    if column.temporal == "duration":
        return str(span)
    if column.temporal == "time":
        return str((datetime.datetime.min + span % datetime.timedelta(days=1)).time())
    moment = datetime.datetime.fromisoformat(column.origin) + span
    if column.zone:
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)).astimezone(
            ZoneInfo(column.zone)
        )
    return (moment.date() if column.temporal == "date" else moment).isoformat()


def _shown(value: Any) -> str:
    """Return a value as a text; dates and times in ISO 8601."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return f"{value.days} days {value - datetime.timedelta(days=value.days)}"
    return "" if value is None else str(value)
