"""Results in words: as many decimals as an error needs, a fraction with its interval, one line for a result."""

from __future__ import annotations

import math

from loglik.evaluation.result import Result

__all__ = ["decimals", "score_in_words", "share", "summary", "with_error"]


def decimals(stderr: float | None, minimum: int) -> int:
    """Return the number of decimals that show two digits of a standard error, at least `minimum`.

    >>> decimals(0.5, 3), decimals(0.00012, 3), decimals(None, 3)
    (3, 5, 3)
    """
    if stderr is None or not 0 < stderr < math.inf:
        return minimum
    return max(minimum, 1 - math.floor(math.log10(stderr)))


def with_error(value: float, stderr: float | None, minimum: int) -> str:
    """Return a value with its standard error, or the value alone where the error is not finite.

    >>> with_error(-80.0, 0.5, 3), with_error(-80.0, float("nan"), 3)
    ('-80.000 ± 0.500', '-80.000')
    """
    digits = decimals(stderr, minimum)
    return f"{value:.{digits}f}" + (f" ± {stderr:.{digits}f}" if stderr and math.isfinite(stderr) else "")


def share(value: float, interval: tuple[float, float] | None) -> str:
    """Return a fraction in percent with its 95 % interval.

    >>> share(1.0, (0.806, 1.0))
    '100.0% (95% interval 80.6% to 100.0%)'
    """
    return f"{value:.1%}" + ("" if interval is None else f" (95% interval {interval[0]:.1%} to {interval[1]:.1%})")


def score_in_words(name: str, value: float) -> str:
    """Return a target's score with its name.

    >>> score_in_words("rmse", 4.3211), score_in_words("coverage", 0.9)
    ('rmse 4.321', '90.0% within the 90% interval')
    """
    if name == "coverage":
        return f"{value:.1%} within the 90% interval"
    return f"accuracy {value:.1%}" if name == "accuracy" else f"{name} {value:.4g}"


def summary(result: Result) -> str:
    """Return one line for a result.

    >>> summary(Result(model="flow", bound="lower", nats=-80.0, bits_per_dim=1.8, stderr=0.5, n=100, steps=10))
    'flow: -80.000 ± 0.500 nats (lower), 1.800 bits/dim, 10 steps in 0.0 s'
    """
    minimum, per = (4, " per token") if result.unit == "token" else (3, "")
    bits = "" if result.bits_per_dim is None else f", {result.bits_per_dim:.3f} bits/dim"
    if result.bits_per_byte is not None:
        bits = f", {result.bits_per_byte:.3f} bits/byte"
    if result.perplexity is not None:
        bits = f", perplexity {result.perplexity:.3f}{bits}"
    accuracy = "" if result.accuracy is None else f", accuracy {share(result.accuracy, result.accuracy_interval)}"
    nats = with_error(result.nats, result.stderr, minimum)
    if result.nats_per_cell is not None:
        bits = f", {result.nats_per_cell:.3f} per observed value{bits}"
    trained = f", {result.steps} steps in {result.train_seconds:.1f} s" if result.steps else ""
    return f"{result.model}: {nats} nats{per} ({result.bound}){bits}{accuracy}{trained}"
