"""Models from elsewhere as densities, and densities for other libraries: one file for each library.

`from_NAME` of a module NAME wraps a model that is in memory; `load` reads one from a local folder. A library is
imported when its adapter is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loglik.adapters.callables import Units, denoiser, score, velocity
    from loglik.adapters.classifiers import classifier
    from loglik.adapters.copulas import from_copulas
    from loglik.adapters.diffusers import from_diffusers
    from loglik.adapters.distributions import from_distribution, from_scipy
    from loglik.adapters.foreign import preprocessed
    from loglik.adapters.loading import load
    from loglik.adapters.nflows import from_nflows
    from loglik.adapters.normflows import from_normflows
    from loglik.adapters.pythae import from_pythae
    from loglik.adapters.python import as_density
    from loglik.adapters.sbi import sbi_builder
    from loglik.adapters.sklearn import from_sklearn
    from loglik.adapters.transformers import from_transformers
    from loglik.adapters.zuko import from_zuko

_HOME = {
    "Units": "callables",
    "as_density": "python",
    "classifier": "classifiers",
    "denoiser": "callables",
    "from_copulas": "copulas",
    "from_diffusers": "diffusers",
    "from_distribution": "distributions",
    "from_nflows": "nflows",
    "from_normflows": "normflows",
    "from_pythae": "pythae",
    "from_scipy": "distributions",
    "from_sklearn": "sklearn",
    "from_transformers": "transformers",
    "from_zuko": "zuko",
    "load": "loading",
    "preprocessed": "foreign",
    "sbi_builder": "sbi",
    "score": "callables",
    "velocity": "callables",
}

__all__ = [
    "Units",
    "as_density",
    "classifier",
    "denoiser",
    "from_copulas",
    "from_diffusers",
    "from_distribution",
    "from_nflows",
    "from_normflows",
    "from_pythae",
    "from_scipy",
    "from_sklearn",
    "from_transformers",
    "from_zuko",
    "load",
    "preprocessed",
    "sbi_builder",
    "score",
    "velocity",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"loglik.adapters.{_HOME[name]}"), name)
    raise AttributeError(f"module 'loglik.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
