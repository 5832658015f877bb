r"""Draws from a density over rows under conditions on columns, of any family.

p(x | conditions) has three samplers. Where the density knows its conditionals, they are used (`exact`). Where enough
samples of the density meet the conditions, these are kept: rejection is exact whatever `log_prob` is. Elsewhere a
mixture q proposes rows that meet the conditions; it is fitted to the density's own samples and then to its own weighted
proposals, which are resampled with the weights p(x) / q(x) and moved. Where p is neither exact nor importance weighted,
as of a diffusion, such weights are noisy: q draws the conditioned columns, and the density fills the others given them.

Reference: Cappé et al. 2008, "Adaptive importance sampling in general mixture classes".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from loglik.conditioning.condition import Condition, contains
from loglik.conditioning.exact import HasColumns, particles
from loglik.conditioning.moves import move
from loglik.conditioning.proposals import PROPOSALS, SEEDS, BaseProposer, RowProposer, Subset
from loglik.conditioning.rows import PILOT, Rows
from loglik.conditioning.weights import effective_size, log_mean, resample
from loglik.density import Density

__all__ = ["Draws", "NoRows", "draw_given"]

FEW = 512  # samples of a density that needs none
REJECTION = 2**17  # samples that are drawn without a try of proposals, at most
PATIENCE = 5 * 2**18  # samples that are drawn where proposals have failed, at most
ROUNDS, MIN_ROUNDS = 8, 3  # in which q is fitted
GOOD = 0.5  # share of effective proposals at which q is good enough
FINAL = 2**16  # proposals of the last q, at most
MOVED = 10.0  # times the effective sample size of the weights: what moved rows are worth, at most
RARE = 1e-9  # a probability of the conditions below which no row is said to meet them


@dataclass(frozen=True)
class Draws:
    r"""Rows drawn under conditions.

    Attributes:
        x: the rows.
        effective: the number of independent rows that are worth as much: n for exact draws, else the effective sample
            size of the weights, $(\sum w)^2 / \sum w^2$, at most n. Where this is below n the rows are moved; rows with
            every free column redrawn count in full then, up to 10 times the effective sample size. Inpainted rows are
            independent, n, though their distribution is approximate.
        method: how they were drawn.
        proposals: rows that were drawn for them.
        log_mass: an estimate of the log-probability of the conditions, of a density where a value is real; NaN after
            inpainting.
    """

    x: Shaped[Tensor, "n D"]
    effective: float
    method: Literal["exact", "rejection", "importance", "inpainting"]
    proposals: int
    log_mass: float


class NoRows(ValueError):
    """No row meets the conditions.

    Attributes:
        seen: the lowest and highest value of each column in samples of the density.
    """

    def __init__(self, pilot: Shaped[Tensor, "N D"]) -> None:
        super().__init__("no row meets the conditions")
        self.seen = list(zip(pilot.amin(0).tolist(), pilot.amax(0).tolist(), strict=True))


@torch.no_grad()
def draw_given(
    density: Density,
    conditions: Sequence[Condition],
    n: int,
    *,
    discrete: Sequence[bool] | None = None,
    categories: Sequence[int] | None = None,
    context: Shaped[Tensor, "1 ..."] | None = None,
    fill: Callable[[Shaped[Tensor, "n D"]], Shaped[Tensor, "n D"]] | None = None,
) -> Draws:
    """Draw n rows of a density that meet conditions, with torch's global generator.

    Args:
        density: over rows (B, D), in evaluation mode.
        conditions: at most one for each column.
        n: the number of rows.
        discrete: for each column, whether it holds integers or codes; found from samples if None.
        categories: for each column, its number of codes, 0 for numbers.
        context: of a conditional density, one row.
        fill: draws missing values, NaN, given the others, approximately; used where weights would be noisy.

    Raises NoRows where no row meets the conditions, as far as samples and weights show.
    """
    knows_columns = isinstance(density, HasColumns)
    rows = Rows(density, discrete, categories, context, pilot=FEW if knows_columns else PILOT)
    if not conditions:
        return Draws(rows.sample(n), n, "exact", n, 0.0)
    if isinstance(density, HasColumns):
        return _exact(density, rows, conditions, n)
    met = int(contains(conditions, rows.pilot).sum())
    if n * len(rows.pilot) <= met * rows.affordable_samples(REJECTION):
        return _reject(rows, conditions, n, 2 * REJECTION)
    of_rows = RowProposer(rows, conditions)
    if fill is not None and not density.importance_weighted and len(of_rows.points) == 1:
        return _inpaint(rows, of_rows, conditions, n, fill)
    proposer: RowProposer | BaseProposer = of_rows
    q, share, log_mass = _adapt(of_rows, rows)
    have_mass = all(condition.has_mass for condition in conditions)
    if share * rows.affordable(FINAL) < 2 * n and have_mass and context is None and BaseProposer.fits(density):
        base = BaseProposer(rows, conditions, None if met >= SEEDS else of_rows.best_rows(SEEDS))
        base_q, base_share, base_mass = _adapt(base, rows)
        if base_share > share:
            proposer, q, share, log_mass = base, base_q, base_share, base_mass
    _check_mass(rows, conditions, log_mass if met == 0 else 0.0)
    expected = n / max(math.exp(min(0.0, log_mass)), met / len(rows.pilot))
    if have_mass and share * rows.affordable(FINAL) < n and expected <= rows.affordable_samples(PATIENCE):
        return _reject(rows, conditions, n, 2 * PATIENCE)
    return _importance(rows, proposer, q, conditions, n)


def _exact(density: HasColumns, rows: Rows, conditions: Sequence[Condition], n: int) -> Draws:
    """Draw the conditioned columns one after the other, and the rest of each row given them."""
    several = sum(condition.has_mass and not condition.is_value for condition in conditions) > 1
    several = several or sum(len(condition.intervals) > 1 for condition in conditions) > 1
    count = max(4 * n, 1024) if several else n
    x, log_weight = particles(density, conditions, count, rows.pilot, rows.contexts(count))
    _check_mass(rows, conditions, log_mean(log_weight))
    effective = effective_size(log_weight) if several else float(n)
    x = x[resample(log_weight.softmax(0), n)] if several else x
    method: Literal["exact", "importance"] = "importance" if several else "exact"
    return Draws(density.fill(x, rows.contexts(n)), min(float(n), effective), method, count, log_mean(log_weight))


def _reject(rows: Rows, conditions: Sequence[Condition], n: int, budget: int) -> Draws:
    """Keep the samples that meet the conditions."""
    kept, drawn, count = [], 0, 0
    block = rows.pilot
    while True:
        kept.append(block[contains(conditions, block)])
        drawn, count = drawn + len(block), count + len(kept[-1])
        if count >= n or drawn >= budget:
            break
        block = rows.sample(min(4 * PILOT, math.ceil(1.1 * (n - count) * drawn / max(count, 1)) + 64))
    if count == 0:
        raise NoRows(rows.pilot)
    x = torch.cat(kept)
    x = x[:n] if count >= n else x[torch.randint(count, (n,), device=x.device)]
    return Draws(x, float(min(n, count)), "rejection", drawn, math.log(count / drawn))


def _inpaint(
    rows: Rows, proposer: RowProposer, conditions: Sequence[Condition], n: int, fill: Callable[[Tensor], Tensor]
) -> Draws:
    """Draw the conditioned columns from q, and fill the others given them."""
    if any(rows.is_far(condition) for condition in conditions):
        raise NoRows(rows.pilot)
    at = [condition.column for condition in conditions]
    x = torch.full((n, rows.pilot.shape[1]), torch.nan).to(rows.pilot)
    x[:, at] = proposer.draw(n)[:, at]
    return Draws(fill(x), float(n), "inpainting", n, math.nan)


def _adapt(proposer: RowProposer | BaseProposer, rows: Rows) -> tuple[Subset, float, float]:
    """Fit q in rounds; return the best one, its share of effective proposals, and the log of their mean weight."""
    best, best_share, log_mass, since = proposer.q, 0.0, -math.inf, 0
    for _ in range(max(MIN_ROUNDS, rows.affordable(ROUNDS * PROPOSALS) // PROPOSALS)):
        x, log_w = proposer.propose(proposer.q, PROPOSALS)
        share, since = effective_size(log_w) / PROPOSALS, since + 1
        if share > best_share:
            since = 0 if share > 1.2 * best_share else since
            best, best_share, log_mass = proposer.q, share, log_mean(log_w)
        proposer.refit(x, log_w)
        if share >= GOOD or since == 3:
            break
    return best, best_share, log_mass


def _importance(
    rows: Rows, proposer: RowProposer | BaseProposer, q: Subset, conditions: Sequence[Condition], n: int
) -> Draws:
    """Resample proposals of q by their weights p / q, and move them where they are too few."""
    parts: list[Tensor] = []
    weights: list[Tensor] = []
    total = 0
    while total < rows.affordable(FINAL):
        x, log_w = proposer.propose(q, 2 * PROPOSALS)
        parts, weights, total = [*parts, x], [*weights, log_w], total + len(x)
        if effective_size(torch.cat(weights)) >= 2 * n:
            break
    log_w = torch.cat(weights)
    _check_mass(rows, conditions, log_mean(log_w))
    chosen, effective = resample(log_w.softmax(0), n), effective_size(log_w)
    x = torch.cat(parts)[chosen]
    if effective < n and isinstance(proposer, RowProposer) and proposer.free:
        x, worth = move(rows, q, proposer, x, chosen)
        effective = min(max(worth, effective), MOVED * effective)
    return Draws(proposer.rows_of(x), min(float(n), effective), "importance", total, log_mean(log_w))


def _check_mass(rows: Rows, conditions: Sequence[Condition], log_mass: float) -> None:
    """Raise an error if no row seems to meet the conditions."""
    impossible = not math.isfinite(log_mass)
    if all(condition.has_mass for condition in conditions):
        impossible = impossible or log_mass < math.log(RARE)
    if impossible or any(not condition.has_mass and rows.is_far(condition) for condition in conditions):
        raise NoRows(rows.pilot)
