"""load: a model from elsewhere, in a local folder of its own library's format or in Python code, as a run."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from loglik.adapters.foreign import fitted_to
from loglik.data import as_data
from loglik.data.columns import OneColumn
from loglik.data.dataset import Data
from loglik.data.limits import quote
from loglik.data.spec import DataSpec
from loglik.data.text import TooShort
from loglik.devices import resolve_device
from loglik.runs import Run

__all__ = ["KINDS", "load", "load_for", "split_name"]

# modules of this room with `load(path, spec, **settings) -> Run`
KINDS = ("diffusers", "python", "transformers")


def load(
    kind: str,
    path: str | Path,
    spec: DataSpec | None = None,
    *,
    device: str | torch.device = "cpu",
    **settings: Any,
) -> Run:
    """Read a model of another library as a run whose density has the units of the data.

    Args:
        kind: one of `KINDS`: a library, or `python`, whose path is FILE.py:NAME or package.module:NAME. `python` runs
            that code; the others run none that comes with a model.
        path: what the library's own `save_pretrained` wrote. Weights are read from safetensors only.
        spec: of the data that will be scored; None where the model says it by itself, as a language model does.
        device: of the density.
        **settings: the adapter's own.

    Raises ValueError for a kind that there is not, for an unknown setting, and where the model does not fit the data.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no adapter {kind!r}: choose {', '.join(KINDS)}")
    read = import_module(f"loglik.adapters.{kind}").load
    path = Path(path)
    try:
        inspect.signature(read).bind(path, spec, **settings)
    except TypeError as error:
        raise ValueError(f"{kind}: {error}") from None
    run: Run = read(path, spec, **settings)
    own = {"model": kind, "source": None, "label": run.spec.label if run.spec.kind == "table" else None}
    name = run.config.get("model") or path.name
    run.config = {
        **own,
        "training": {"seed": 0, "precision": None},
        "text": None,
        "table": None,
        "images": None,
        **run.config,
        "model": name if str(name).startswith(f"{kind}:") else f"{kind}:{name}",
        "adapter": kind,
    }
    run.path = run.path or path
    run.density = fitted_to(run.density, run.spec).to(resolve_device(device)).eval()
    return run


def load_for(
    kind: str,
    path: str | Path,
    data: Any,
    *,
    label: str | None = None,
    target: str | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **settings: Any,
) -> tuple[Run, Data]:
    """Read a model of another library for data, and the data in the codes of its density.

    A language model has a tokenizer of its own, by which text is read again. The arguments are those of `load` and of
    `loglik.data.as_data`.
    """
    try:
        dataset = as_data(data, label=label, target=target, seed=seed)
    except (OneColumn, TooShort) as error:  # a language model reads a column of texts, and texts of any length
        spec = (
            DataSpec(kind="text", event_shape=(1,), levels=257, padded=True) if isinstance(error, OneColumn) else None
        )
        run = load(kind, path, spec, device=device, **settings)
        return run, run.data_for(data)
    run = load(kind, path, dataset.spec, device=device, **settings)
    return run, dataset if run.spec == dataset.spec else run.data_for(data, label=label)


def split_name(word: str) -> tuple[str, str]:
    """Return kind and path of KIND:PATH.

    Raises ValueError where the kind or the path is missing.

    >>> split_name("python:model.py:flow")
    ('python', 'model.py:flow')
    """
    kind, _, path = word.partition(":")
    if not path or kind not in KINDS:
        raise ValueError(f"expected KIND:PATH with a kind among {', '.join(KINDS)}, got {quote(word)}")
    return kind, path
