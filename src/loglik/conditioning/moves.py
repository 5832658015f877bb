r"""Moves that leave p(x | conditions) invariant: they part rows that resampling has made equal.

A move draws some columns of all rows anew from the proposals' mixture q given the other columns, several times, and
chooses among these values and the present one with probabilities proportional to p(x) / q(columns | others) (iterated
sampling importance resampling; Andrieu et al. 2010).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor

from loglik.conditioning.proposals import RowProposer, Subset
from loglik.conditioning.rows import Rows
from loglik.density import sample_categories

__all__ = ["choose", "move"]

SWEEPS = 6  # over all columns, at most
SCORED = 2**18  # rows whose log p is computed, at most
CANDIDATES = 4
WIDTH = 3  # columns that are redrawn together, at most


def move(
    rows: Rows, q: Subset, proposer: RowProposer, x: Shaped[Tensor, "n D"], ancestor: Int64[Tensor, " n"]
) -> tuple[Shaped[Tensor, "n D"], float]:
    """Move rows, which stay within the conditions; return them and the number of distinct rows that they are worth.

    A row counts as one of its own if each of its free columns has changed since it was resampled. The others count
    together with those of the same ancestor: $n^2 / \\sum_a n_a^2$.
    """
    free = torch.tensor(proposer.free, device=x.device)
    log_p, changed = rows.log_prob(x), torch.zeros(len(x), len(free), dtype=torch.bool, device=x.device)
    a_sweep = len(x) * CANDIDATES * max(1, len(free) // 2)
    for _ in range(max(1, min(SWEEPS, rows.affordable(SCORED) // a_sweep))):
        width = int(torch.randint(1, WIDTH + 1, ()))
        for columns in torch.split(free[torch.randperm(len(free), device=free.device)], width):
            x, log_p, moved = _step(rows, q, proposer, x, columns.tolist(), log_p)
            changed |= moved[:, None] & torch.isin(free, columns)
    return x, _worth(ancestor, changed.all(1))


def _step(
    rows: Rows, q: Subset, proposer: RowProposer, x: Shaped[Tensor, "n D"], columns: list[int], log_p: Tensor
) -> tuple[Shaped[Tensor, "n D"], Float64[Tensor, " n"], Bool[Tensor, " n"]]:
    """Redraw some columns; return the rows, their log p, and which rows changed."""
    drawn, log_q, log_q_now = q.redraw(x, columns, CANDIDATES, proposer.within)
    log_p_drawn = rows.log_prob(drawn.flatten(0, 1)).view(len(x), CANDIDATES)
    chosen = choose(torch.cat([log_p[:, None] - log_q_now, log_p_drawn - log_q], 1))
    at = torch.arange(len(x), device=x.device)
    moved = torch.cat([x[:, None], drawn], 1)[at, chosen]
    return moved, torch.cat([log_p[:, None], log_p_drawn], 1)[at, chosen], chosen > 0


def choose(log_w: Float64[Tensor, "B S"]) -> Int64[Tensor, " B"]:
    """Draw one of S candidates of each row by its weight; the first where all weights are 0."""
    usable = log_w.isfinite().any(1)
    return torch.where(usable, sample_categories(log_w.softmax(1).nan_to_num(0.0)), 0)


def _worth(ancestor: Int64[Tensor, " n"], fresh: Bool[Tensor, " n"]) -> float:
    own = ancestor.max() + 1 + torch.arange(len(ancestor), device=ancestor.device)
    counts = torch.where(fresh, own, ancestor).unique(return_counts=True)[1].double()
    return float(len(ancestor) ** 2 / counts.square().sum())
