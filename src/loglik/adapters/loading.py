"""load: a model from elsewhere, in a local folder of its own library's format, as a run."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loglik.devices import resolve_device
from loglik.runs import Run

if TYPE_CHECKING:
    from loglik.data.spec import DataSpec

__all__ = ["KINDS", "load"]

# the module of each kind has `load(path, spec, **settings) -> Run`
KINDS: dict[str, str] = {
    "transformers": "transformers",
}


def load(
    kind: str,
    path: str | Path,
    spec: DataSpec | None = None,
    *,
    device: str | torch.device = "cpu",
    **settings: Any,
) -> Run:
    """Read a model of another library from a local folder, as a run whose density has the units of the data.

    Args:
        kind: the library: a key of `KINDS`.
        path: what the library's own `save_pretrained` wrote. Weights are read from safetensors only.
        spec: of the data that will be scored; None where the model says it by itself, as a language model does.
        device: of the density.
        **settings: the adapter's own.

    Raises ValueError for a kind that there is not, and where the model does not fit the data.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no adapter {kind!r}: choose {', '.join(sorted(KINDS))}")
    run: Run = import_module(f"loglik.adapters.{KINDS[kind]}").load(Path(path), spec, **settings)
    run.density.to(resolve_device(device)).eval()
    return run
