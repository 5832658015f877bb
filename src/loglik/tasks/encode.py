"""Embeddings: the latents of a VAE's examples, as a tensor or a table."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loglik import files
from loglik.data.dataset import Split
from loglik.evaluation.scores import arguments
from loglik.memory import Pieces
from loglik.runs import Run
from loglik.tasks.latents import Latents

__all__ = ["encode", "write_latents"]

BLOCK = 1024  # examples that are encoded together


def encode(run: Run, data: Any = None, *, split: str = "all") -> Float[Tensor, "N L"]:
    """Return the latents of a split's examples, without noise, in the split's order, on the CPU.

    Args:
        run: a run of the family vae.
        data: what `fit` accepts; the run's own data if None.
        split: train, validation, test or all.

    Raises ValueError where the run is not a VAE.
    """
    latents = Latents(run.density)
    part = run.data_for(data).split(split)
    return torch.cat([z for _, z in _blocks(run, latents, part, torch.arange(len(part)))])


def write_latents(run: Run, path: Path, data: Any = None, *, split: str = "all") -> int:
    """Write the latents of a split's examples as CSV (row, label where there is one, z1 ... zL); return their number.

    Rows are in the order of the input; the first is 1. They are encoded and written in blocks, so that memory does not
    grow with their number. Raises ValueError where the run is not a VAE.
    """
    latents = Latents(run.density)
    part = run.data_for(data).split(split)
    index = torch.arange(len(part)) if part.index is None else part.index
    order, names = index.argsort(), run.spec.classes
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for rows, z in _blocks(run, latents, part, order):
            labels = None if part.y is None else [names[y] for y in part.y[rows].tolist()]
            if file.tell() == 0:
                writer.writerow(["row", *(["label"] if labels else []), *(f"z{d + 1}" for d in range(z.shape[1]))])
            numbers = (index[rows] + 1).tolist()
            for i, values in enumerate(z.tolist()):
                cells = [float(f"{value:.7g}") for value in values]
                writer.writerow([numbers[i], *([labels[i]] if labels else []), *cells])
    return len(part)


def _blocks(run: Run, latents: Latents, part: Split, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows of each block, in an order, and their latents on the CPU."""

    def compute(piece: slice) -> tuple[Tensor, Tensor]:
        rows = order[piece]
        return rows, latents.encode(*arguments(run.density, *part.batch(rows))).cpu()

    pieces = Pieces(compute, run.density.device)
    for start in range(0, len(order), BLOCK):
        yield from pieces(slice(start, min(len(order), start + BLOCK)))
