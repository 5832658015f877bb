"""Inputs that a density accepts, to trace and check its graph: draws of its own, and of its context's spec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loglik.data.spec import Column, DataSpec
from loglik.density import Density

__all__ = ["example"]

GAPS = 0.2  # the share of missing values where there may be some
ROWS = 16


def example(density: Density, part: str, spec: DataSpec, seed: int = 0) -> dict[str, Tensor]:
    """Return inputs of a part by name, without the noise: 16 rows in the units of the data."""
    random = torch.Generator().manual_seed(seed)
    context = _context(density, spec, random)
    if density.event == "y":
        assert context is not None
        y = torch.randint(len(spec.classes), (ROWS,), generator=random)
        return {"y": y, "x": context} if part == "log_prob" else {"x": context}
    inputs = _event(density, part, spec, context, random)
    return inputs if context is None else inputs | {"context": context}


def _event(
    density: Any, part: str, spec: DataSpec, context: Tensor | None, random: torch.Generator
) -> dict[str, Tensor]:
    if part == "sample":
        return {}
    if part == "decode":
        return {"z": torch.randn(ROWS, density.latent, generator=random)}
    with torch.random.fork_rng([]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=random)))
        x = density.sample(ROWS, context).contiguous()  # other strides would be the graph's
    if part == "denoise":
        v = density.reconstruction.embed(x)
        return {"x_t": torch.randn(v.shape, generator=random), "logsnr": 3 * torch.randn(ROWS, generator=random)}
    return {"x": _with_gaps(x, spec.columns, random) if density.marginalises else x}


def _context(density: Density, spec: DataSpec, random: torch.Generator) -> Tensor | None:
    if density.event == "y":
        return _data(spec, random)
    if not density.conditional:
        return None
    if spec.inputs:
        return _rows(spec.inputs, random)
    return torch.randint(len(spec.classes), (ROWS,), generator=random)


def _data(spec: DataSpec, random: torch.Generator) -> Tensor:
    """Return data without a density: a classifier's input."""
    shape = (ROWS, *spec.event_shape)
    if spec.columns:
        return _rows(spec.columns, random)
    if spec.levels is None:
        return torch.randn(shape, generator=random)
    dtype = torch.uint8 if spec.levels <= 256 and spec.kind != "text" else torch.int64
    return torch.randint(spec.levels, shape, generator=random).to(dtype)


def _rows(columns: Sequence[Column], random: torch.Generator) -> Tensor:
    """Return rows of a table: codes, and numbers within the range of the training data where it is known."""
    values = []
    for column in columns:
        if column.categories:
            values.append(torch.randint(len(column.categories), (ROWS,), generator=random).float())
            continue
        low = 0.0 if column.low is None else column.low
        high = 1.0 if column.high is None else column.high
        x = low + (high - low) * torch.rand(ROWS, generator=random, dtype=torch.float64)
        values.append((x.round() if column.type == "integer" else x).float())
    return _with_gaps(torch.stack(values, 1), columns, random)


def _with_gaps(rows: Tensor, columns: Sequence[Column], random: torch.Generator) -> Tensor:
    """Return rows in which columns that may have missing values have some; the first row is complete."""
    rows = rows.clone()
    for d, column in enumerate(columns):
        if column.missing:
            gaps = torch.rand(ROWS - 1, generator=random) < GAPS
            rows[1:, d] = rows[1:, d].masked_fill(gaps, torch.nan)
    return rows
