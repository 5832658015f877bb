"""Models from elsewhere as densities, and densities for other libraries: one file for each library.

`from_NAME` of a module NAME wraps a model that is in memory; `load` reads one from a local folder. A library is
imported when its adapter is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loglik.adapters.loading import load
    from loglik.adapters.sbi import sbi_builder

_HOME = {
    "load": "loading",
    "sbi_builder": "sbi",
}

__all__ = [
    "load",
    "sbi_builder",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"loglik.adapters.{_HOME[name]}"), name)
    raise AttributeError(f"module 'loglik.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
