r"""Each row's log-probability with its standard error, from as many Monte Carlo draws as the row needs.

A replicate is one call of `log_prob` with `DRAWS` draws. A row's score is the mean of its replicates
$v_1, \dots, v_R$ if draws average, and the log of the mean weight, with $v_r = \log w_r$, if they are importance
weights. The jackknife gives the standard error of either, with $s_{-r}$ the score without replicate r:

$\mathrm{se}^2 = \frac{R-1}{R} \sum_r (s_{-r} - \bar s_{-\cdot})^2$, which for a mean is the variance of $v$ over R.

The number of a row's replicates must not depend on their values, or rows with lucky draws would stop early. So each
row has two halves of replicates. The pilot of one half chooses the size of the other half, and both halves have the
same weight in the score: the mean of each half is then unbiased, and every draw is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from loglik import files
from loglik.data.dataset import Split
from loglik.density import Bound, Density
from loglik.evaluation.scores import log_probs, replicates

__all__ = ["RowScores", "row_scores", "write_rows"]

DRAWS = 4  # in a replicate
PILOT = 4  # replicates of a half that choose the number of the other half
MAX_REPLICATES = 512  # of a half
TOLERANCE = 0.08  # the target standard error, in standard deviations of the scores over rows
MIN_ERROR = 0.01  # the smallest target standard error, in nats
MAX_BATCH = 2**20  # replicates in memory


@dataclass(frozen=True)
class RowScores:
    """Each row's log-probability in nats.

    Attributes:
        nats: the scores, in the split's order.
        stderr: the Monte Carlo standard error of each; 0 where the number has no noise, NaN after a single draw.
        draws: the number of draws of each row.
    """

    nats: Float64[Tensor, " N"]
    stderr: Float64[Tensor, " N"]
    draws: Int64[Tensor, " N"]

    def frame(self, index: Int64[Tensor, " N"] | None = None) -> pl.DataFrame:
        """Return the columns row, nats and stderr, in the order of the input; rows are counted from 1.

        Args:
            index: the rows in the input; None where the order is the input's.
        """
        numbers = torch.arange(len(self.nats)) if index is None else index
        columns = {"row": (numbers + 1).numpy(), "nats": self.nats.numpy(), "stderr": self.stderr.numpy()}
        return pl.DataFrame(columns).sort("row")


def row_scores(density: Density, split: Split, *, samples: int | None = None, seed: int = 0) -> RowScores:
    """Score every row of a split, with a standard error that is small beside the spread of the scores.

    Args:
        density: a density of any family.
        split: the rows.
        samples: draws of each row; if None, as many as the row needs, at most 4,096.
        seed: of the Monte Carlo noise.

    Raises ValueError where samples is below 1.
    """
    n = len(split)
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if not _is_random(density, split, seed):
        scores = log_probs(density, split, seed=seed)
        return RowScores(scores, torch.zeros_like(scores), torch.ones(n, dtype=torch.int64))
    if samples is None:
        return _adaptive(density, split, seed)
    draws = next(d for d in range(samples // (2 * PILOT) or 1, 0, -1) if samples % d == 0)
    owners = torch.arange(n).repeat(samples // draws)
    values = _draw(density, split, owners, draws, seed)
    return RowScores(*_combine(values, owners, n, 1, density.importance_weighted), torch.full((n,), samples))


def _adaptive(density: Density, split: Split, seed: int) -> RowScores:
    n, weighted = len(split), density.importance_weighted
    draws = 1 if density.bound is Bound.ESTIMATE else DRAWS  # a solver repeats all its steps for each
    halves = torch.arange(2 * n).repeat(PILOT)  # row i has the halves 2i and 2i + 1
    pilot = _draw(density, split, halves // 2, draws, seed)
    goal = _goal(*_combine(pilot, halves, n, 2, weighted))
    _, errors = _combine(pilot, halves, 2 * n, 1, weighted)
    variance = PILOT * errors.square().nan_to_num().view(n, 2).flip(1)
    counts = (variance / (2 * goal**2)).ceil().clamp(PILOT, MAX_REPLICATES).long()
    nats, stderr = torch.empty(2, n, dtype=torch.float64)
    for number, rows in enumerate(_blocks(counts.sum(1))):
        first, size = rows.start, rows.stop - rows.start
        more = torch.arange(2 * size).repeat_interleave(counts[rows].flatten() - PILOT)
        shuffled = torch.Generator().manual_seed(seed + number)
        more = more[torch.randperm(len(more), generator=shuffled)]  # neighbours in a batch share out their noise
        drawn = _draw(density, split, first + more // 2, draws, seed + 1 + number)
        values = torch.cat([pilot.view(PILOT, n, 2)[:, rows].flatten(), drawn])
        owners = torch.cat([torch.arange(2 * size).repeat(PILOT), more])
        nats[rows], stderr[rows] = _combine(values, owners, size, 2, weighted)
    return RowScores(nats, stderr, draws * counts.sum(1))


def _is_random(density: Density, split: Split, seed: int) -> bool:
    """Return whether `log_prob` has noise. A solver has noise only where its trace or its start is random."""
    if density.bound is not Bound.ESTIMATE:
        return density.bound is not Bound.EXACT
    one, other = _draw(density, split, torch.arange(min(2, len(split))).repeat(2), 1, seed).view(2, -1)
    return not torch.equal(one, other)


def _draw(density: Density, split: Split, rows: Tensor, draws: int, seed: int) -> Float64[Tensor, " M"]:
    return replicates(density, split, rows, samples=draws, seed=seed).cpu()


def _goal(nats: Float64[Tensor, " N"], stderr: Float64[Tensor, " N"]) -> float:
    """Return the target standard error: small beside the spread of the scores without their noise."""
    known = nats[nats.isfinite() & stderr.isfinite()]
    if len(known) < 2:
        return TOLERANCE
    low, high = known.quantile(torch.tensor([0.25, 0.75], dtype=known.dtype)).tolist()
    seen, noise = ((high - low) / 1.349) ** 2, stderr.square().nanmedian().item()
    return max(TOLERANCE * max(seen - noise, 0.05 * seen) ** 0.5, MIN_ERROR)


def _blocks(replicates: Int64[Tensor, " N"]) -> list[slice]:
    """Return ranges of rows with about `MAX_BATCH` replicates each."""
    sizes = (replicates.cumsum(0) // MAX_BATCH).unique_consecutive(return_counts=True)[1].tolist()
    stops = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]


def _combine(
    values: Float64[Tensor, " M"], owners: Int64[Tensor, " M"], n: int, parts: int, weighted: bool
) -> tuple[Float64[Tensor, " N"], Float64[Tensor, " N"]]:
    """Return the scores of n rows and their standard errors, from replicates in parts of equal weight in a score."""
    rows = owners // parts
    if weighted:
        top = values.new_full((n,), -torch.inf).scatter_reduce(0, rows, values, "amax")
        top = torch.where(top.isfinite(), top, 0.0)
        values = (values - top[rows]).exp()

    def mean(x: Tensor) -> Tensor:
        return x.new_zeros(n * parts).index_add(0, owners, x) / count

    count = torch.bincount(owners, minlength=n * parts).to(values)
    own = mean(values)
    score = own.view(n, parts).mean(1)
    without = score[rows] + (own[owners] - values) / ((count - 1)[owners] * parts)
    if weighted:
        score, without = score.log() + top, without.clamp_min(torch.finfo(values.dtype).tiny).log()
    variance = (count - 1) * mean((without - mean(without)[owners]).square())
    return score, torch.where(score.isinf(), 0.0, variance.view(n, parts).sum(1).sqrt())


def write_rows(rows: RowScores, index: Int64[Tensor, " N"] | None, path: Path) -> None:
    """Write CSV: each example's row in the input (the first is 1), its log-probability in nats and its standard error.

    Args:
        rows: the scores.
        index: the example's rows in the input; None where the order is the input's.
        path: the file.
    """
    numbers = torch.arange(len(rows.nats)) if index is None else index
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("row,nats,stderr\n")
        for order in numbers.argsort().split(2**14):
            columns = ((numbers[order] + 1).tolist(), rows.nats[order].tolist(), rows.stderr[order].tolist())
            file.writelines(f"{number},{nats!r},{stderr!r}\n" for number, nats, stderr in zip(*columns, strict=True))
