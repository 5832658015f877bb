r"""Draws of the missing values of rows from p(missing | observed), for densities that do not know their conditionals.

The mixture q, fitted to samples of the density, proposes candidates of all missing values of a row, of which one is
chosen by its weight p / q (sampling importance resampling; Rubin 1988). Then some columns of each row are redrawn in
turn given the others, by choices that leave p(missing | observed) invariant: see `moves`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float64, Shaped
from torch import Tensor

from loglik.conditioning.mixture import GivenRows, RowMixture
from loglik.conditioning.moves import choose
from loglik.conditioning.rows import BLOCK, Rows
from loglik.density import Density

__all__ = ["complete"]

CANDIDATES = 32  # of all missing values of a row at first
REDRAWN = 15  # candidates of each move
SWEEPS = 6  # over all columns with missing values
WIDTH = 3  # columns that are redrawn together, at most


@torch.no_grad()
def complete(
    density: Density,
    x: Shaped[Tensor, "B D"],
    *,
    discrete: Sequence[bool] | None = None,
    categories: Sequence[int] | None = None,
    adjust: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Shaped[Tensor, "B D"]:
    """Return rows with each NaN replaced by a draw given the observed values, with torch's global generator.

    Args:
        density: over rows, not conditional; exact or importance weighted, in evaluation mode.
        x: rows, NaN where a value is missing.
        discrete, categories: the kinds of the columns, as of `Marginals`; found from samples if None.
        adjust: returns (filled rows, missing) with missing values that agree with the others, where the density knows
            columns that others determine, which q cannot propose.
    """
    rows = Rows(density, discrete, categories)
    mixture, out = rows.mixture(), x.to(rows.pilot)
    for part in torch.split(out.isnan().any(1).nonzero().flatten(), BLOCK // CANDIDATES * 4):
        missing = out[part].isnan()
        drawn, log_q = mixture.given(out[part]).draw(CANDIDATES)
        log_p = rows.log_prob(drawn.flatten(0, 1)).view_as(log_q)
        filled = drawn[torch.arange(len(part), device=x.device), choose(log_p - log_q)]
        if adjust is not None:
            filled = adjust(filled, missing)
        out[part] = _moved(rows, mixture, filled, missing)
    return out.to(x)


def _moved(
    rows: Rows, mixture: RowMixture, x: Shaped[Tensor, "B D"], missing: Bool[Tensor, "B D"]
) -> Shaped[Tensor, "B D"]:
    """Redraw the missing values of rows, a few columns at a time."""
    log_p = rows.log_prob(x)
    for sweep in range(SWEEPS):
        for at, columns in _places(missing, width=1 + sweep % WIDTH):
            known = x[at].clone()
            known[:, columns] = torch.nan
            x[at], log_p[at] = _step(rows, mixture.given(known), x[at], log_p[at])
    return x


def _places(missing: Bool[Tensor, "B D"], width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows, and columns that all of them miss, so that each missing value is redrawn once."""
    gaps = missing.any(0).nonzero().flatten()
    for group in torch.split(gaps[torch.randperm(len(gaps), device=gaps.device)], width):
        patterns, pattern_of = missing[:, group].unique(dim=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            if pattern.any():
                yield (pattern_of == i).nonzero().flatten(), group[pattern]


def _step(
    rows: Rows, given: GivenRows, x: Shaped[Tensor, "B D"], log_p: Float64[Tensor, " B"]
) -> tuple[Shaped[Tensor, "B D"], Float64[Tensor, " B"]]:
    """Choose between the present values of some columns and new ones."""
    drawn, log_q = given.draw(REDRAWN)
    log_p_drawn = rows.log_prob(drawn.flatten(0, 1)).view_as(log_q)
    chosen = choose(torch.cat([log_p[:, None] - given.log_prob(x[:, None]), log_p_drawn - log_q], 1))
    at = torch.arange(len(x), device=x.device)
    return (
        torch.cat([x[:, None], drawn], 1)[at, chosen],
        torch.cat([log_p[:, None], log_p_drawn], 1)[at, chosen],
    )
