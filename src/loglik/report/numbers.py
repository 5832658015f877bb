"""Numbers as text: in one unit, and with as many digits as the error allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loglik.data.spec import DataSpec
from loglik.evaluation.format import decimals
from loglik.evaluation.result import Result

__all__ = ["TableRow", "Unit", "count", "duration", "number", "percent", "plus_minus", "unit_of"]


@dataclass(frozen=True)
class Unit:
    """A unit of log-likelihood: a value is nats times `per_nat`."""

    name: str
    per_nat: float

    @property
    def in_nats(self) -> bool:
        return self.per_nat == 1.0


@dataclass(frozen=True)
class TableRow:
    """A model's row in the table of likelihoods, with every cell as text; `order` are the numbers it is sorted by."""

    rank: str
    model: str
    kind: str
    note: str
    in_unit: str
    nats: str
    perplexity: str
    gain: str
    params: str
    time: str
    steps: str
    speed: str
    best: bool
    order: Mapping[str, float | None]


def unit_of(spec: DataSpec, results: Sequence[Result]) -> Unit:
    """Return bits/byte for text if it is known, bits/dim for other discrete data, else nats per example."""
    for result in results:
        if result.event == "x" and result.bits_per_byte is not None and result.nats:
            return Unit("bits/byte", result.bits_per_byte / result.nats)
    if all(spec.discrete_dims):
        return Unit("bits/dim", -1 / (spec.dims * math.log(2)))
    return Unit("nats per example", 1.0)


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Write a number with a minus sign and separated thousands; a dash if it is None or NaN.

    >>> number(-1234.567)
    '−1,234.57'
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    value = round(value, digits) + 0.0  # no negative zero
    return f"{value:{'+' if signed else ''},.{digits}f}".replace("-", "−")


def plus_minus(value: float | None, stderr: float | None, *, signed: bool = False) -> str:
    """Write a value with its standard error, to two digits of the error; without it if it is 0 or None.

    >>> plus_minus(-103.4567, 0.84)
    '−103.46 ± 0.84'
    >>> plus_minus(-103.4567, 0.00000123)
    '−103.45670 ± 1e-06'
    """
    if value is None or not stderr or not math.isfinite(value + stderr):
        return number(value, signed=signed)
    digits = decimals(stderr, 0)
    error = f"{stderr:,.{digits}f}" if digits <= 5 else f"{stderr:.0e}"
    return f"{number(value, min(digits, 5), signed=signed)} ± {error}"


def percent(value: float | None, interval: tuple[float, float] | None) -> str:
    """Write a fraction in per cent with its interval.

    >>> percent(1.0, (0.806, 1.0))
    '100.0 % (80.6 to 100.0 %)'
    """
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" + (f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f} %)" if interval else "")


def count(value: int) -> str:
    """Write a count with few digits.

    >>> count(812), count(45_300), count(3_200_000)
    ('812', '45.3 k', '3.2 M')
    """
    for minimum, size, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= minimum:
            return f"{value / size:.1f} {suffix}"
    return f"{value:,}"


def duration(seconds: float) -> str:
    """Write a time in seconds, minutes or hours.

    >>> duration(4.25), duration(75), duration(7320)
    ('4.2 s', '75 s', '2 h 2 min')
    """
    if seconds < 120:
        return f"{seconds:.{int(seconds < 10)}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
