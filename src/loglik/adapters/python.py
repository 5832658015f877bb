"""Models that are named in Python code: FILE.py:NAME or package.module:NAME, and the adapter of each type."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import loglik.adapters
from loglik.adapters.foreign import fitted_to
from loglik.data.limits import first_line, quote
from loglik.data.spec import DataSpec, Kind
from loglik.density import Density
from loglik.runs import Run

__all__ = ["as_density", "load"]

# the module in which a class of the model is defined, and the adapter's function
ADAPTERS = {
    "zuko": "from_zuko",
    "nflows": "from_nflows",
    "normflows": "from_normflows",
    "torch.distributions": "from_distribution",
    "pyro.distributions": "from_distribution",
    "sklearn": "from_sklearn",
    "scipy.stats": "from_scipy",
    "copulas": "from_copulas",
    "pythae": "from_pythae",
    "diffusers": "from_diffusers",
    "transformers": "from_transformers",
}


def load(path: Path, spec: DataSpec | None, **settings: Any) -> Run:
    """Run the user's own code and return the density that it names, as a run.

    Args:
        path: FILE.py:NAME or package.module:NAME: a density, a model that an adapter knows, or a function that returns
            one, which is called with the spec of the data if it has a parameter.
        spec: of the data; an array's of the density's shape if None.
        **settings: of the model's adapter, and `dequantize`.

    Raises ValueError where there is no such name, and where the code or the model fails.
    """
    where, _, name = str(path).rpartition(":")
    if not where or not name:
        raise ValueError(f"python needs FILE.py:NAME or package.module:NAME, got {quote(str(path))}")
    with _importable(where):
        model = _named(_module(where), where, name)
        if inspect.isroutine(model) or isinstance(model, partial):
            model = _called(model, spec, f"{where}:{name}")
    density = as_density(model, spec, **settings)
    if spec is None:
        kind: Kind = "image" if len(density.event_shape) == 3 and density.discrete else "array"
        spec = DataSpec(kind=kind, event_shape=density.event_shape, levels=getattr(density, "levels", None))
    return Run(density, spec, {"model": name}, path=path)


def as_density(model: Any, spec: DataSpec | None = None, *, dequantize: bool = False, **settings: Any) -> Density:
    """Return a model in memory as a density, by the adapter of its library.

    Args:
        model: a density, or a model of a library in `loglik.adapters`.
        spec: of the data that it will score: a density of flattened events is reshaped.
        dequantize: add uniform noise to the integers of the data, for a model of real numbers: a lower bound.
        **settings: of the adapter.

    Raises ValueError for a model that no adapter knows, and where it does not fit the data.
    """
    if isinstance(model, Density):
        if settings:
            raise ValueError(f"{type(model).__name__} is a density, which has no setting {quote(next(iter(settings)))}")
        density = model
    else:
        adapter = _adapter_of(model)
        if adapter is loglik.adapters.classifier:
            settings["spec"] = settings.get("spec", spec)
        try:
            density = adapter(model, **settings)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            name = str(error).rpartition("argument ")[2]
            raise ValueError(f"{adapter.__name__} has no setting {name}") from error
    return density if spec is None else fitted_to(density, spec, dequantize=dequantize)


def _adapter_of(model: Any) -> Any:
    if hasattr(model, "classes_") and hasattr(model, "predict"):  # of scikit-learn or an estimator like its
        return loglik.adapters.classifier
    for cls in type(model).__mro__:
        for module, name in ADAPTERS.items():
            if f"{cls.__module__}.".startswith(f"{module}."):
                return getattr(loglik.adapters, name)
    kind = "the class" if isinstance(model, type) else "an object of the class"
    cls = model if isinstance(model, type) else type(model)
    methods = [name for name in ("log_prob", "score_samples", "sample", "forward") if hasattr(cls, name)]
    has = f"has {' and '.join(methods)}" if methods else "has neither log_prob nor sample"
    libraries = ", ".join(ADAPTERS)
    more = ": pass an object of it" if isinstance(model, type) else ""
    raise ValueError(
        f"{kind} {cls.__module__}.{cls.__qualname__}, which {has}, is no density that is known here{more}: it must be "
        f"a loglik.Density or a model of {libraries}; loglik.adapters also wraps functions"
    )


@contextmanager
def _importable(where: str) -> Iterator[None]:
    """Let a file import its neighbours, or a module be found in the current folder."""
    folder = str(Path(where).expanduser().resolve().parent) if where.endswith(".py") else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _module(where: str) -> ModuleType:
    file = Path(where).expanduser()
    try:
        if not where.endswith(".py"):
            return import_module(where)
        if not file.is_file():
            raise FileNotFoundError(f"{where}: no such file")
        spec = util.spec_from_file_location(f"loglik_model_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[spec.name] = util.module_from_spec(spec)  # where a dataclass looks for its module
        spec.loader.exec_module(module)
        return module
    except (FileNotFoundError, KeyboardInterrupt):
        raise
    except Exception as error:  # the user's code may raise anything
        raise _failed(where, error) from error


def _named(module: ModuleType, where: str, name: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        own = [key for key in vars(module) if not key.startswith("_") and not inspect.ismodule(getattr(module, key))]
        raise ValueError(f"{where} has no {quote(name)}: it has {', '.join(own[:20]) or 'no names'}") from None


def _called(function: Any, spec: DataSpec | None, what: str) -> Any:
    """Return what a function makes of the spec, or of nothing where it has no parameter."""
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind in (0, 1, 2)
    ]
    if required and spec is None:
        raise ValueError(f"{what} makes a model of the spec of data: pass data")
    try:
        return function(spec) if required else function()
    except Exception as error:  # the user's code may raise anything
        raise _failed(what, error) from error


def _failed(what: str, error: Exception) -> ValueError:
    name, line = type(error).__name__, first_line(error)
    return ValueError(f"{what} fails: {name}" if line == name else f"{what} fails: {name}: {line}")
