"""What a training continues from, beside its tensors: the part of a checkpoint that is JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from loglik.runs import METRICS

__all__ = ["TrainerState"]

Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """A training after `step` steps.

    Attributes:
        step: steps made.
        elapsed: seconds of training so far.
        best_nats, best_train, best_step: the best validation: its mean log-likelihood, the training's, and its step;
            -inf, -inf and -1 before there is one.
        worse: validations since the best that show overfitting.
        history: one row per validation, with the names of `loglik.runs.METRICS`.
    """

    step: int = 0
    elapsed: float = 0.0
    best_nats: float = -math.inf
    best_train: float = -math.inf
    best_step: int = -1
    worse: int = 0
    history: tuple[Row, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Any) -> TrainerState:
        """Return the state of what `to_dict` returned, also after JSON.

        Raises ValueError, in one line, for a missing or unknown name and for a value of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"expected an object with the fields of a training's state, got {type(values).__name__}")
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"{missing[0]} is missing")
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"unknown field {unknown[0]!r}: expected {', '.join(names)}")
        for name in ("step", "best_step", "worse"):
            if type(values[name]) is not int:
                raise ValueError(f"{name} must be an integer, got {values[name]!r:.100}")
        for name in ("elapsed", "best_nats", "best_train"):
            if not _is_number(values[name]):
                raise ValueError(f"{name} must be a number, got {values[name]!r:.100}")
        if not (values["step"] >= 0 and -1 <= values["best_step"] <= values["step"] and values["worse"] >= 0):
            raise ValueError("step, best_step and worse must be at least 0, -1 and 0, and best_step at most step")
        if not 0 <= values["elapsed"] < math.inf:
            raise ValueError(f"elapsed must be a number of seconds, got {values['elapsed']!r}")
        return cls(**{**values, "history": tuple(_rows(values["history"]))})


def _rows(values: Any) -> list[Row]:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"history must be a list of rows, got {type(values).__name__}")
    for number, row in enumerate(values):
        if not isinstance(row, Mapping) or set(row) != set(METRICS) or not all(map(_is_number, row.values())):
            raise ValueError(f"row {number} of history must hold the numbers {', '.join(METRICS)}, got {row!r:.100}")
    return [dict(row) for row in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
