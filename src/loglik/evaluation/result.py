"""One row of a comparison: a density's score on a split and its cost; and the same as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from loglik import files
from loglik.notebook import facts

__all__ = ["Result", "bits_per_dim", "write_json"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """A density's score on a split.

    Attributes:
        model: the model's name.
        bound: `exact`, `lower` or `estimate`: what `nats` averages.
        nats: mean log p per `unit`; higher is better.
        bits_per_dim: -nats / (dims · ln 2) for discrete data, else None; lower is better. Of a text, bits per token.
        gain, gain_stderr: nats over the baseline on the same examples, and the standard error of that mean of
            paired differences; None where there is no baseline. The error is also None where all differences are equal.
        stderr: the standard error of `nats`, of a mass at least `unseen_error`; None where there is one number for the
            whole set, one example, or the same score for all.
        n: the number of examples, or of a text's tokens.
        event: `x` where the data are the event, `y` for a label given the data.
        samples: Monte Carlo samples per example; 1 where the number is exact.
        params: trainable parameters.
        train_seconds, steps: the duration of the training.
        samples_per_second: draws of `sample`, measured once; None where the row cannot draw.
        terms: the named terms of a bound, mean nats over the same examples and draws: they sum to `nats`. Empty for an
            exact density, and for a text.
        accuracy, calibration_error: of a classifier, as fractions.
        accuracy_interval, calibration_interval: 95 % intervals of the two: Wilson's, and `Reliability.error_interval`.
        confusion: of a classifier: the number of examples of class i (a row) that were predicted as class j.
        bits_per_byte: of text; tokenizers are compared in it.
        unit: `nats` is a mean over: `example`s, or `token`s of a text, each given at least half a window before it.
        numerical_error: the error of a solver's finite steps, mean nats per example; None where nothing is solved.
        perplexity: exp(-nats) where the unit is a token.
        rank: the rank by `nats` in a comparison, 1 is best, among all rows of log p(x), compressors too; None
            elsewhere, and for a number given the label, unless all numbers are.
        incomplete: the number of rows with missing values or unseen categories.
        nats_per_cell: mean log p per observed value, where rows are incomplete; None elsewhere.
        targets: of targets given inputs, each target's `rmse`, `mae`, `crps` and `coverage` of the 90 % interval, or
            its `accuracy`.
        notes: reasons to doubt the number: the model is undertrained, its posterior collapsed.
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
    incomplete: int = 0
    nats_per_cell: float | None = None
    targets: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        from loglik.evaluation.format import summary

        return f"Result({summary(self)})"

    def _repr_html_(self) -> str:
        hidden = ("confusion",)  # a page shows it
        known = {
            name: value for name, value in self.to_dict().items() if value not in (None, {}, ()) and name not in hidden
        }
        return facts({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in known.items()}, caption="result")


@runtime_checkable
class HasDict(Protocol):
    """A result as plain values."""

    def to_dict(self) -> dict[str, Any]:
        """Return numbers, strings and lists by name."""
        ...


def bits_per_dim(nats: float, dims: int) -> float:
    """Return -nats / (dims · ln 2).

    >>> round(bits_per_dim(-math.log(2) * 10, dims=5), 6)
    2.0
    """
    return -nats / (dims * math.log(2)) + 0.0  # no negative zero


def write_json(results: Sequence[HasDict], path: Path) -> None:
    """Write a list of objects, one a model; numbers that are not finite become null."""
    plain = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.to_dict().items()}
        for r in results
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.naming(path):
        path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
