"""The log-likelihood of single pixels, tokens and cells of a few rows, where a density says something about them.

They are exact where the density is a product over positions (autoregressive, independent), and for the columns of an
exact density of a table, each given the others. Bounds have their terms by dimension (`Density.terms_by_dimension`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.density import Bound, Density
from loglik.evaluation.scores import evaluating
from loglik.flows import Flow
from loglik.tasks.blame import conditional_log_probs, without_each

__all__ = ["Cells", "cell_log_probs"]

MAX_DIMS = 32  # of a table, for a grid in each dimension
MAX_DRAWS = 64  # of a bound, per row
MAX_VALUES = 2**20  # of all rows and draws
MAX_JACOBIAN = 256  # dimensions of an event whose flow has a Jacobian
MAX_JACOBIANS = 2**11  # rows of the Jacobians of all rows and draws


@dataclass(frozen=True)
class Cells:
    """Nats of each dimension of B rows.

    Attributes:
        terms: their parts by name, (B, D) each; one without a name where there is only one.
        rest: parts that belong to whole rows, (B,) each.
        what: what the nats are, in words.
        draws: Monte Carlo samples per row; 0 where the nats are exact.
    """

    terms: Mapping[str, Float64[Tensor, "B D"]]
    what: str
    rest: Mapping[str, Float64[Tensor, " B"]]
    draws: int = 0

    @property
    def nats(self) -> Float64[Tensor, "B D"]:
        """Return the sum of the terms, 0 for missing values."""
        return torch.stack(list(self.terms.values())).sum(0).nan_to_num(0.0)


def cell_log_probs(
    density: Density,
    x: Shaped[Tensor, "B ..."],
    context: Shaped[Tensor, "B ..."] | None,
    spec: DataSpec,
    rows: Shaped[Tensor, "N ..."],
) -> Cells | None:
    """Return the nats of each dimension and what they are; None for a density that has none.

    Args:
        density: of x.
        x: a few rows.
        context: their labels or inputs, where the density is conditional.
        spec: of the rows.
        rows: of the same data, whose columns give the grids over which a column is integrated.
    """
    scorer: Any = density
    if hasattr(density, "token_log_probs"):
        with evaluating(density, 0) as device:
            nats = scorer.token_log_probs(x.to(device), None if context is None else context.to(device))
        alone = not spec.columns and type(density).__name__ == "Independent"
        return _exact(nats, "exact, each alone" if alone else "exact, each given those before it")
    if density.marginalises and density.bound is Bound.EXACT and spec.columns and spec.dims <= MAX_DIMS:
        return _exact(without_each(density, spec)(Split(x, context), torch.arange(len(x))), GIVEN_OTHERS)
    complete = x.isfinite().all() if x.is_floating_point() else True
    small = spec.columns and spec.dims <= MAX_DIMS and complete
    if density.bound is Bound.EXACT and not density.conditional and small:
        return _exact(conditional_log_probs(density, x, rows, spec), GIVEN_OTHERS)
    return _of_terms(density, x, context) if complete else None


GIVEN_OTHERS = "exact, each given all others"


def _exact(nats: Tensor, what: str) -> Cells:
    return Cells({"": nats.flatten(1).double().cpu()}, what, {})


def _of_terms(density: Density, x: Tensor, context: Tensor | None) -> Cells | None:
    """Return the terms by dimension, means over draws."""
    dims = math.prod(x.shape[1:])
    draws = max(1, min(MAX_DRAWS, MAX_VALUES // (len(x) * dims)))
    jacobian = isinstance(density, Flow) and density.has_jacobian
    if jacobian:
        if dims > MAX_JACOBIAN:
            return None
        draws = max(1, min(draws, MAX_JACOBIANS // (len(x) * dims)))
    draws = 1 if density.bound is Bound.EXACT else draws
    with evaluating(density, 0) as device:
        found = density.terms_by_dimension(x.to(device), None if context is None else context.to(device), samples=draws)
    if not found:
        return None
    parts = {name: part.double().cpu() for name, part in found.items()}
    terms = {name: part.flatten(1) for name, part in parts.items() if part.dim() > 1}
    rest = {name: part for name, part in parts.items() if part.dim() == 1}
    what = "each given those before it, to first order" if jacobian else f"{_joined(list(terms))} of each"
    return Cells(terms, what, rest, 0 if density.bound is Bound.EXACT else draws)


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
