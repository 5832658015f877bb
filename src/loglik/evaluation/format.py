"""How results are written: as many decimals as an error needs, and a share with its interval."""

from __future__ import annotations

import math

__all__ = ["decimals", "share", "with_error"]


def decimals(stderr: float | None, least: int) -> int:
    """Return how many decimals show the first two digits of a standard error, and at least `least`.

    >>> decimals(0.5, 3), decimals(0.00012, 3), decimals(None, 3)
    (3, 5, 3)
    """
    if stderr is None or not 0 < stderr < math.inf:
        return least
    return max(least, 1 - math.floor(math.log10(stderr)))


def with_error(value: float, stderr: float | None, least: int) -> str:
    """Write a value with its standard error, alone where there is none that is finite.

    >>> with_error(-80.0, 0.5, 3), with_error(-80.0, float("nan"), 3)
    ('-80.000 ± 0.500', '-80.000')
    """
    digits = decimals(stderr, least)
    return f"{value:.{digits}f}" + (f" ± {stderr:.{digits}f}" if stderr and math.isfinite(stderr) else "")


def share(value: float, interval: tuple[float, float] | None) -> str:
    """Write a share with its 95 % interval.

    >>> share(1.0, (0.806, 1.0))
    '100.0% (95% interval 80.6% to 100.0%)'
    """
    return f"{value:.1%}" + ("" if interval is None else f" (95% interval {interval[0]:.1%} to {interval[1]:.1%})")
