"""Data from files, arrays and named sets: tensors, and a `DataSpec` that describes them.

Importing this package is quick: torch and the readers are imported when they are first needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loglik.data.catalogue import names
from loglik.data.spec import Column, DataSpec, Kind

if TYPE_CHECKING:
    from loglik.data.arrays import from_arrays
    from loglik.data.dataset import Data, Split
    from loglik.data.description import describe
    from loglik.data.image_settings import ImageSettings
    from loglik.data.loading import as_data, load
    from loglik.data.table_settings import TableSettings
    from loglik.data.text_settings import TextSettings

__all__ = [
    "Column", "Data", "DataSpec", "ImageSettings", "Kind", "Split", "TableSettings", "TextSettings", "as_data",
    "describe", "from_arrays", "load", "names",
]  # fmt: skip

_LATE = {
    "Data": "dataset", "ImageSettings": "image_settings", "Split": "dataset", "TableSettings": "table_settings",
    "TextSettings": "text_settings", "as_data": "loading", "describe": "description", "from_arrays": "arrays",
    "load": "loading",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
