"""One row of a comparison: what a density scores on a split, and what it took."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Result"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A density's score on a split.

    Attributes:
        model: its name.
        bound: `exact`, `lower` or `estimate`: what `nats` is a mean of.
        nats: mean log p per `unit`; higher is better.
        bits_per_dim: -nats / (dims · ln 2) for discrete data, else None; lower is better. Of a text, bits per token.
        gain, gain_stderr: nats over the baseline on the same examples, and the standard error of that mean of
            paired differences; None where there is no baseline. The error is also None where all differences are equal.
        stderr: the standard error of `nats`, of a mass at least `unseen_error`; None where there is one number for the
            whole set, one example, or the same score for all.
        n: how many examples, or tokens of a text.
        event: `x` where the data are the event, `y` for a label given the data.
        samples: Monte Carlo samples per example; 1 where the number is exact.
        params: trainable parameters.
        train_seconds, steps: what training took.
        samples_per_second: draws of `sample`, measured once; None where the row cannot draw.
        terms: the named terms of a bound, mean nats over the same examples and draws: they sum to `nats`. Empty for an
            exact density, and for a text.
        accuracy, calibration_error: of a classifier, as fractions.
        accuracy_interval, calibration_interval: 95 % intervals of the two: Wilson's, and `Reliability.error_interval`.
        confusion: of a classifier: how many examples of class i (a row) were predicted as class j.
        bits_per_byte: of text; tokenizers are compared in it.
        unit: what `nats` is a mean over: an `example`, or a `token` of a text given at least half a window before it.
        numerical_error: what a solver's finite steps leave open, mean nats per example; None where nothing is solved.
        perplexity: exp(-nats) where the unit is a token.
        rank: the place by `nats` in a comparison, best first, from 1, among all rows of log p(x), compressors too; None
            elsewhere, and for a number given the label, unless all are.
        notes: what to know before the number is believed: that the model is undertrained, that its posterior collapsed.
    """

    model: str
    bound: str
    nats: float
    bits_per_dim: float | None = None
    stderr: float | None = None
    gain: float | None = None
    gain_stderr: float | None = None
    n: int
    event: str = "x"
    samples: int = 1
    params: int = 0
    train_seconds: float = 0.0
    steps: int = 0
    samples_per_second: float | None = None
    terms: dict[str, float] = field(default_factory=dict)
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    calibration_error: float | None = None
    calibration_interval: tuple[float, float] | None = None
    confusion: list[list[int]] | None = None
    bits_per_byte: float | None = None
    unit: str = "example"
    perplexity: float | None = None
    numerical_error: float | None = None
    rank: int | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)
