"""Embeddings: the latents of a VAE's examples, as a tensor or a table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loglik import files
from loglik.data.dataset import Split
from loglik.evaluation.scores import arguments
from loglik.runs import Run
from loglik.tasks.latents import Latents

__all__ = ["encode", "write_latents"]


def encode(run: Run, data: Any = None, *, split: str = "all") -> Float[Tensor, "N L"]:
    """Return the latents of a split's examples, without noise, in the split's order.

    Args:
        run: a run of the family vae.
        data: what `fit` accepts; the run's own data if None.
        split: train, validation, test or all.

    Raises ValueError where the run is not a VAE.
    """
    latents = Latents(run.density)
    return _encode(run, latents, run.data_for(data).split(split))


def write_latents(run: Run, path: Path, data: Any = None, *, split: str = "all") -> int:
    """Write the latents of a split's examples as CSV (row, label where there is one, z1 ... zL); return their number.

    Rows are in the order of the input; the first is 1. Raises ValueError where the run is not a VAE.
    """
    latents = Latents(run.density)
    part = run.data_for(data).split(split)
    z = _encode(run, latents, part)
    index = torch.arange(len(z)) if part.index is None else part.index
    names = run.spec.classes
    labels = None if part.y is None else [names[y] for y in part.y.tolist()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.naming(path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", *(["label"] if labels else []), *(f"z{d + 1}" for d in range(z.shape[1]))])
        for i in index.argsort().tolist():
            values = [float(f"{value:.7g}") for value in z[i].tolist()]
            writer.writerow([int(index[i]) + 1, *([labels[i]] if labels else []), *values])
    return len(z)


def _encode(run: Run, latents: Latents, part: Split) -> Tensor:
    return latents.encode(*arguments(run.density, part.tensor(), part.y)).cpu()
