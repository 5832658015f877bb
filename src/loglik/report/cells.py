"""The log-likelihood of single pixels, tokens and cells of a few rows, where a density says something about them.

They are exact where the density is a product over positions (autoregressive, independent), and for the columns of an
exact density of a table, each given the others. A VAE of levels has its reconstruction term.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float64, Shaped
from torch import Tensor

from loglik.data.spec import DataSpec
from loglik.density import Bound, Density
from loglik.evaluation.scores import evaluating
from loglik.tasks.blame import conditional_log_probs
from loglik.vae import VAE

__all__ = ["cell_log_probs"]

MAX_DIMS = 32  # of a table, for a grid in each dimension


def cell_log_probs(
    density: Density,
    x: Shaped[Tensor, "B ..."],
    context: Shaped[Tensor, "B ..."] | None,
    spec: DataSpec,
    rows: Shaped[Tensor, "N ..."],
) -> tuple[Float64[Tensor, "B D"], str] | None:
    """Return the nats of each dimension and what they are; None for a density that has none.

    Args:
        density: of x.
        x: a few rows.
        context: their labels or inputs, where the density is conditional.
        spec: of the rows.
        rows: of the same data, whose columns give the grids over which a column is integrated.
    """
    scorer: Any = density
    with evaluating(density, 0) as device:
        at = x.to(device), None if context is None else context.to(device)
        if hasattr(density, "token_log_probs"):
            nats, what = scorer.token_log_probs(*at), "exact, each given those before it"
            if not spec.columns and type(density).__name__ == "Independent":
                what = "exact, each alone"
        elif isinstance(density, VAE) and hasattr(density.observation, "log_prob_dims"):
            theta = density.parameters_of(density.encode(*at), at[1])
            nats, what = scorer.observation.log_prob_dims(at[0], theta), "the reconstruction term, at the mean latent"
        else:
            return _of_columns(density, x, spec, rows)
    return nats.flatten(1).double().cpu(), what


def _of_columns(density: Density, x: Tensor, spec: DataSpec, rows: Tensor) -> tuple[Tensor, str] | None:
    complete = x.isfinite().all() if x.is_floating_point() else True
    if density.bound is not Bound.EXACT or density.conditional or spec.dims > MAX_DIMS or not complete:
        return None
    if not spec.columns:
        return None
    return conditional_log_probs(density, x, rows, spec), "exact, each given all others"
