"""evaluate: the score of a run or a density on data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from loglik.adapters import as_density
from loglik.adapters.foreign import fitted_to
from loglik.data import as_data
from loglik.density import Bound, Density
from loglik.devices import resolve_device
from loglik.diffusion import with_likelihood
from loglik.evaluation.incomplete import scorable
from loglik.evaluation.result import Result
from loglik.evaluation.rows import row_scores, write_rows
from loglik.evaluation.split import evaluate_split
from loglik.runs import Run

__all__ = ["evaluate"]


def evaluate(
    model: Run | Density | Any,
    data: Any = None,
    *,
    split: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    per_row: str | Path | None = None,
    method: str | None = None,
    steps: int | None = None,
    unseen: str | None = None,
    device: str | torch.device | None = None,
) -> Result:
    """Score a run or a density on data, in nats per example or token.

    Args:
        model: a run, a density, or a model of a library that `loglik.adapters` knows.
        data: what `fit` accepts; if None, the run's own data, where they can be found again.
        split: train, validation, test or all; if None, all of the data that are passed, or the run's own test split.
        samples: Monte Carlo samples per example where `log_prob` is a bound; chosen by the split's size if None.
        seed: of the Monte Carlo noise.
        per_row: a CSV file to write, in the order of the input: each example's row in the input (the first is 1), its
            log-probability in nats, and its standard error. `row_scores` says how many draws each row needs.
        method: of a diffusion: `vlb`, a lower bound, or `ode`, an estimate; the density's own if None.
        steps: of the method: T for `vlb` (continuous time if None), or the solver steps for `ode`.
        unseen: of a table, whether a category that the run has not seen is scored (`score`) or an error (`refuse`).
        device: the density is moved there first, and stays there: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for a CUDA
            GPU if there is one, else the CPU; where it is if None.

    Raises ValueError where data are needed, where the split is empty, and where an option does not fit the
    density or the machine.
    """
    run = model if isinstance(model, Run) else None
    if not isinstance(model, (Run, Density)):
        model = as_density(model)
    density = model.density if isinstance(model, Run) else model
    if device is not None:
        density.to(resolve_device(device))
    if method is not None or steps is not None:
        density = with_likelihood(density, method or "vlb", steps)
    if run is not None:
        dataset = run.data_for(data, unseen=unseen)
    elif data is not None:
        own = getattr(density, "data_spec", None)  # of a language model, which has a tokenizer of its own
        dataset = as_data(data, like=own)
        density = density if own is not None else fitted_to(density, dataset.spec)
    else:
        raise ValueError("pass data: a density by itself does not know what it was trained on")
    split = split or ("test" if data is None else "all")
    part, rows = dataset.split(split), None
    if len(part) == 0 and data is None:
        raise ValueError(f'the run\'s {split} split is empty: use split="validation", or pass data')
    if per_row is not None and len(part):
        if part.unit == "token":
            raise ValueError("per_row= accepts tables, images and arrays: a text has no rows")
        rows = row_scores(scorable(density, part, dataset.spec)[0], part, samples=samples, seed=seed)
        write_rows(rows, part.index, Path(per_row))
    elif samples is None and method is not None and density.bound is Bound.ESTIMATE:
        samples = 1
    result = evaluate_split(
        density,
        part,
        dataset.spec,
        rows=rows,
        model=run.model if run else type(model).__name__.lower(),
        samples=samples,
        seed=seed,
        train_seconds=run.train_seconds if run else 0.0,
        steps=run.steps if run else 0,
    )
    return result if data is None else replace(result, notes=(*dataset.notes, *result.notes))
