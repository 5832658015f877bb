"""The columns of a table read block by block: their profiles, and from these the spec."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import polars as pl

from loglik.data.codes import check_label
from loglik.data.columns import Read, read_columns, set_decimal_mark
from loglik.data.limits import quote
from loglik.data.profile import Found, Profile, Where
from loglik.data.spec import Column, DataSpec
from loglik.data.table_settings import TableSettings

__all__ = ["Profiles", "empty_rows", "refused"]


class Profiles:
    """Profiles of a table's columns, the label's among them.

    Args:
        source: begins each error.
        typed: whether the columns have types; else they are texts of a CSV file.
        label: the column that becomes the label.
        settings: how the table is read.
        keep: the columns of which all distinct texts are kept.

    Raises ValueError if the table has no column of a name in the settings, or for the label.
    """

    def __init__(
        self, source: str, *, typed: bool, label: str | None, settings: TableSettings, keep: Collection[str] = ()
    ) -> None:
        self.source, self.typed, self.label, self.settings, self.keep = source, typed, label, settings, keep
        self.by_name: dict[str, Profile] = {}

    def add(self, frame: pl.DataFrame) -> None:
        """Add the next rows."""
        if not self.by_name:
            check_label(self.label, frame.columns, self.source)
            self.settings.check_columns(frame.columns, self.source)
            kinds = {name: kind for name, kind in self.settings.columns.items() if name != self.label}
            self.by_name = {
                name: Profile(name, typed=self.typed, kind=kinds.get(name, ""), keep=name in self.keep)
                for name in frame.columns
            }
        for series in frame.iter_columns():
            self.by_name[series.name].add(series)

    @property
    def others(self) -> list[Profile]:
        """The profiles of all columns but the label's."""
        return [profile for name, profile in self.by_name.items() if name != self.label]

    @property
    def is_text(self) -> bool:
        """Whether the only column beside the label has texts that are nearly all distinct."""
        others = self.others
        return self.label is not None and len(others) == 1 and not others[0].kind and others[0].is_text

    def read(self, where: Where) -> Read:
        """Return what the columns are read as; raise ValueError if none is left, or one cannot be read."""
        if not self.others:
            raise ValueError(f"{self.source}: no columns besides the label {quote(self.label)}")
        return read_columns(self.others, self.source, where, missing=self.settings.missing)

    def found(self, columns: Sequence[Column]) -> dict[str, Found]:
        """Return how the texts of each column are read."""
        set_decimal_mark([self.by_name[c.name] for c in columns if c.name in self.by_name])
        return {c.name: self.by_name[c.name].found(c) for c in columns if c.name in self.by_name}


def refused(settings: TableSettings, like: DataSpec | None) -> tuple[str, ...]:
    """Return which of `missing` and `unseen` are errors when rows are encoded; without a model nothing is unseen."""
    unseen = like is None or settings.unseen == "refuse"
    return ("missing",) * (settings.missing == "refuse") + ("unseen",) * unseen


def empty_rows(count: int) -> tuple[str, ...]:
    """Return what is said of rows without values, if there are any."""
    return (f"{count:,} row{'s' * (count > 1)} without any value: log p of nothing is 0",) if count else ()
