"""What the settings of text, of tables and of image files share: they travel among the options of `fit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

__all__ = ["ReadSettings"]

Settings = TypeVar("Settings", bound="ReadSettings")


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """How data of some kind are read; the fields are the settings."""

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the settings."""
        return [f.name for f in fields(cls)]

    @classmethod
    def split_options(cls: type[Settings], options: Mapping[str, Any]) -> tuple[Settings | None, dict[str, Any]]:
        """Return these settings among the options, None if there are none, and the other options."""
        chosen = {k: v for k, v in options.items() if k in cls.names()}
        return cls(**chosen) if chosen else None, {k: v for k, v in options.items() if k not in chosen}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for YAML."""
        return asdict(self)
