"""How tables are read: what becomes of missing values, of unseen categories, and of each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loglik.data.limits import quote
from loglik.data.read_settings import ReadSettings

__all__ = ["KINDS", "TableSettings"]

KINDS = ("category", "integer", "numeric", "boolean", "date", "ignore")
CHOICES = {"missing": ("model", "refuse", "indicator"), "unseen": ("score", "refuse")}


@dataclass(frozen=True, kw_only=True)
class TableSettings(ReadSettings):
    """How a table is read.

    Attributes:
        missing: `model`, missing values are NaN, and densities model what is observed; `indicator`, the same, and
            whether a value is missing is a column of its own; `refuse`, a missing value is an error.
        columns: what a column is read as: category, integer, numeric, boolean, date, ignore, or the form of its dates
            as strptime writes it, such as %d/%m/%Y. The other columns are read as their values tell.
        unseen: at evaluation, a category that the model has not seen is scored (`score`) or an error (`refuse`).
    """

    missing: str = "model"
    columns: Mapping[str, str] = field(default_factory=dict)
    unseen: str = "score"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}= must be one of {', '.join(choices)}, got {quote(getattr(self, name))}")
        if not isinstance(self.columns, Mapping):
            raise ValueError(f'columns must be a dictionary such as {{"zip": "category"}}, got {quote(self.columns)}')
        for column, kind in self.columns.items():
            if not isinstance(column, str) or not isinstance(kind, str) or not (kind in KINDS or "%" in kind):
                raise ValueError(
                    f"column {quote(column)} cannot be read as {quote(kind)}: use {', '.join(KINDS)}, or a form of "
                    "dates such as %d/%m/%Y"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for YAML."""
        return {"missing": self.missing, "columns": dict(self.columns), "unseen": self.unseen}

    def check_columns(self, names: Sequence[str], source: str) -> None:
        """Raise ValueError if a table has no column of a name in `columns`."""
        if absent := next((name for name in self.columns if name not in names), None):
            from loglik.data.limits import some

            raise ValueError(f"{source}: no column {quote(absent)} to read as requested; found {some(list(names))}")
