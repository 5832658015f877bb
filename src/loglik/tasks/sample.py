"""Samples of a density in the units of the data, given labels where the density needs them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from loglik.data.spec import DataSpec
from loglik.density import Density
from loglik.diffusion import with_sampler
from loglik.evaluation.scores import evaluating, labels_in_turn
from loglik.runs import Run

__all__ = ["draw", "labels_of", "sample"]


def sample(
    run: Run, n: int = 64, *, label: str | None = None, seed: int = 0, **sampler: Any
) -> Shaped[Tensor, "n ..."]:
    """Draw n samples from a run's density, in the units of the data, on the CPU.

    Args:
        run: the run.
        n: the number of samples.
        label: the class of all samples; if None, a conditional density draws the classes in turn.
        seed: of the samples.
        **sampler: of a diffusion: settings of `Sampler`, such as `method`, `steps`, `until` and `guidance`.

    Raises ValueError for a classifier, for an unknown label, and for sampler settings where there is no diffusion.
    """
    density = run.density
    if density.event == "y":
        raise ValueError(
            f"{run.path or 'this run'} is a classifier, p(label | data): it has no data to draw; use another family"
        )
    if sampler:
        density = with_sampler(density, **sampler)
    return draw(density, run.spec, n, seed=seed, label=label)


def draw(density: Density, spec: DataSpec, n: int, *, seed: int, label: str | None = None) -> Shaped[Tensor, "n ..."]:
    """Draw n samples on the CPU, given the label or the classes in turn where the density is conditional.

    Raises ValueError for a label that the density does not know.
    """
    with evaluating(density, seed) as device:
        context = labels_of(density, spec, n, label)
        return density.sample(n, None if context is None else context.to(device)).cpu()


def labels_of(density: Density, spec: DataSpec, n: int, label: str | None) -> Int64[Tensor, " n"] | None:
    """Return the context of n samples: the label, or the classes in turn; None for an unconditional density.

    Raises ValueError for a label that the density does not know.
    """
    if not density.conditional:
        if label is not None:
            raise ValueError("this density is not conditional: train one with conditional=True to draw from a label")
        return None
    if label is None:
        return labels_in_turn(spec, n)
    if label not in spec.classes:
        raise ValueError(f"no class {label!r}: the classes are {', '.join(spec.classes)}")
    return torch.full((n,), spec.classes.index(label))
