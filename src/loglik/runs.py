"""A run: a trained density with its spec, its configuration and its history."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loglik.data.spec import DataSpec
from loglik.density import Density

__all__ = ["Run"]


@dataclass
class Run:
    """A trained density and how it came to be.

    `history` has one row per validation: step, time (s), train_nats, validation_nats, learning_rate, gradient_norm.
    """

    density: Density
    spec: DataSpec
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    path: Path | None = None
