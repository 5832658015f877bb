r"""Privacy of synthetic rows: whether samples, or log p itself, tell the training rows from others of their kind.

Rows that the model was trained on and rows held out from it are drawn from one population. A model that has learnt the
population only cannot tell them apart:

- the row nearest to a sample is as often a training row as these rows are frequent, a fraction e. If a fraction λ of
  the samples are near-copies of training rows, the share of samples nearest to these is e + λ (1 - e);
- a training row is as likely as a held-out one: the area under the ROC curve of log p, by which someone who has the
  model would guess who was in its training data, is 0.5. The mean of log p of training rows less that of held-out rows
  is the mean of $\log p(x_i \mid X) - \log p(x_i \mid X \setminus x_i)$, how much a model of the data X remembers a
  row. With P effective parameters it is P/N nats for N rows. D nats are as many parameters as there are numbers in N
  rows of D numbers: the model can store them all.

Reference: Platzer and Reutterer 2021, "Holdout-based empirical assessment of mixed-type synthetic data"; Yeom et al.
2018, "Privacy risk in machine learning: analyzing the connection to overfitting"; van den Burg and Williams 2021, "On
memorization in probabilistic deep generative models", eq. 3; Akaike 1974, "A new look at the statistical model
identification".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.data.dataset import Split
from loglik.data.decode import as_written
from loglik.data.spec import Column, DataSpec
from loglik.density import Density
from loglik.evaluation.incomplete import scorable
from loglik.evaluation.scores import default_samples, log_probs
from loglik.tasks.kernel import KernelDensity

__all__ = ["Nearest", "Privacy", "area_under_curve", "columns_of", "nearest_rows", "privacy_of"]

MAX_ROWS = 1000  # of each kind, of which log p is evaluated
MAX_DRAWN = 1000  # samples that are compared with rows
MAX_HELD_OUT = 5000  # that samples are compared with
MAX_TRAIN = 20_000  # training rows that samples are compared with
BLOCK = 256  # samples
SURE = 2.6  # standard errors: 1 in 200 by chance
COPIED = 0.1  # of samples: more near-copies of training rows than this are called memorising
STORED = 1.0  # nats for each number of a row: as many effective parameters as the training data have numbers


@dataclass(frozen=True)
class Nearest:
    """Which rows samples are nearest to.

    Attributes:
        share: of samples, whose nearest row is a training row rather than a held-out row; ties count in part.
        expected: that share if nothing is memorised, the fraction of training rows among these rows.
        usual: the standard deviation of that share if the training rows were chosen from these rows at random.
        seen: the fraction of all training rows among the training rows here.
        copies: share of samples that equal a training row.
        natural_copies: share of held-out rows that equal a training row.
    """

    share: float
    expected: float
    usual: float
    seen: float
    copies: float
    natural_copies: float

    @property
    def near_copies(self) -> tuple[float, float]:
        """The fraction λ of samples that are near-copies of training rows, and its standard error."""
        unit = self.seen * (1 - self.expected)
        return (self.share - self.expected) / unit, self.usual / unit


@dataclass(frozen=True)
class Privacy:
    """What a model and its samples tell of the training rows.

    Attributes:
        rows: the number of held-out rows that samples are compared with.
        dims: the numbers of a row.
        nearest: of samples.
        train_nats, held_out_nats: the means of log p.
        gap_stderr: the standard error of their difference.
        guess: the probability that a training row has a higher log p than a held-out row.
        guess_stderr: its standard error.
    """

    rows: int
    dims: int
    nearest: Nearest
    train_nats: float
    held_out_nats: float
    gap_stderr: float
    guess: float
    guess_stderr: float

    @property
    def gap(self) -> float:
        """The mean of log p of training rows less that of held-out rows, in nats."""
        return self.train_nats - self.held_out_nats

    @property
    def samples_memorise(self) -> bool:
        """Whether more than 1 in 10 samples are near-copies of training rows, or more copies than in held-out rows.

        Each by 2.6 standard errors.
        """
        near = self.nearest
        fraction, spread = near.near_copies
        close = fraction - SURE * spread > COPIED
        error = math.sqrt((near.natural_copies + 1 / self.rows) / self.rows)
        return close or near.copies > near.natural_copies + 0.01 + SURE * error

    @property
    def model_memorises(self) -> bool:
        """Whether log p is higher for training rows by more than a nat for each number, more than chance explains."""
        error = self.gap_stderr if math.isfinite(self.gap_stderr) else 0.0  # of an infinite mean
        return self.gap - SURE * error > STORED * self.dims

    @property
    def overfits(self) -> bool:
        """Whether log p tells training rows from others, more than chance explains: a one-sided rank-sum test."""
        return self.guess > 0.5 + SURE * self.guess_stderr

    @property
    def memorises(self) -> bool:
        """Whether samples or log p give training rows away."""
        return self.samples_memorise or self.model_memorises


def privacy_of(
    density: Density,
    spec: DataSpec,
    drawn: Float[Tensor, "N E"],
    train: Split,
    held_out: Split,
    *,
    seed: int = 0,
) -> Privacy:
    """Return what samples and log p tell of the training rows, by held-out rows and training rows.

    The samples are as `as_written` returns them.

    Raises ValueError for fewer than 2 held-out rows.
    """
    random = torch.Generator().manual_seed(seed)
    if len(held_out) < 2:
        raise ValueError(f"privacy is measured by held-out rows, and there are {len(held_out)}: pass data with more")
    columns = columns_of(spec)
    (known, written), (others, _) = (as_written(s.tensor().flatten(1), columns) for s in (train, held_out))
    others = others[torch.randperm(len(others), generator=random)[:MAX_HELD_OUT]]
    categories = [len(column.categories) for column in written]
    nearest = nearest_rows(drawn[:MAX_DRAWN], known, others, categories, seed=seed)
    scores = []
    for part in (_some(split, MAX_ROWS, random) for split in (train, held_out)):
        scored = scorable(density, part, spec)[0]
        scores.append(log_probs(scored, part, samples=default_samples(scored, len(part)), seed=seed))
    guess, error = area_under_curve(scores[0], scores[1])
    gap_error = math.sqrt(sum(part.var().item() / len(part) for part in scores))
    means = scores[0].mean().item(), scores[1].mean().item()
    return Privacy(len(others), len(written), nearest, *means, gap_error, guess, error)


def nearest_rows(
    drawn: Shaped[Tensor, "N D"],
    train: Shaped[Tensor, "T D"],
    held_out: Shaped[Tensor, "M D"],
    categories: Sequence[int],
    *,
    seed: int = 0,
) -> Nearest:
    r"""Return how many samples are nearest to one of T training rows rather than M held-out rows, or copies.

    Distances are those of `KernelDensity`. With $w_j$ the fraction of samples that are nearest to row j, the share is
    $\sum_j w_j$ over training rows. If T of the T + M rows were chosen at random, it would have the mean
    $e = T / (T + M)$ and the variance $e (1 - e) \frac{T + M}{T + M - 1} \left(\sum_j w_j^2 - \frac1{T + M}\right)$.
    """
    random = torch.Generator().manual_seed(seed)
    some = train[torch.randperm(len(train), generator=random)[:MAX_TRAIN]]
    kernel = KernelDensity(torch.cat([some, held_out]), categories)
    weight = torch.zeros(len(some) + len(held_out), dtype=torch.float64)
    for start in range(0, len(drawn), BLOCK):
        squares = kernel.squared_distances(drawn[start : start + BLOCK])
        nearest = (squares == squares.amin(1, keepdim=True)).double()
        weight += (nearest / nearest.sum(1, keepdim=True)).sum(0)
    weight /= len(drawn)
    expected, count = len(some) / len(weight), len(weight)
    spread = (weight.square().sum().item() - 1 / count) * count / (count - 1)
    known = _keys(train)
    return Nearest(
        share=weight[: len(some)].sum().item(),
        expected=expected,
        usual=math.sqrt(max(expected * (1 - expected) * spread, 0.0)),
        seen=len(some) / len(train),
        copies=_found(drawn, known),
        natural_copies=_found(held_out, known),
    )


def columns_of(spec: DataSpec) -> tuple[Column, ...]:
    """Return the columns of a table, or of vectors."""
    kind = "numeric" if spec.levels is None else "integer"
    return spec.columns or tuple(Column(name=f"x{d}", type=kind) for d in range(spec.dims))  # type: ignore[arg-type]


def _some(split: Split, count: int, random: torch.Generator) -> Split:
    x, y = split.batch(torch.randperm(len(split), generator=random)[:count])
    return Split(x, y)


def _keys(rows: Shaped[Tensor, "N D"]) -> set[bytes]:
    return {row.tobytes() for row in _plain(rows).numpy()}


def _found(rows: Shaped[Tensor, "N D"], known: set[bytes]) -> float:
    return sum(row.tobytes() in known for row in _plain(rows).numpy()) / max(1, len(rows))


def _plain(rows: Tensor) -> Tensor:
    """Return rows in which equal values have equal bytes: one zero, and one NaN."""
    return torch.where(rows.isnan(), torch.nan, rows + 0.0).float().contiguous()


def area_under_curve(high: Sequence[float] | Tensor, low: Sequence[float] | Tensor) -> tuple[float, float]:
    """Return P(high > low), ties half, and its standard error (Hanley and McNeil 1982)."""
    a, b = torch.as_tensor(high), torch.as_tensor(low).sort().values
    n, m = len(a), len(b)
    below = torch.searchsorted(b, a) + torch.searchsorted(b, a, right=True)
    auc = below.double().mean().item() / (2 * m)
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (one - auc**2) + (m - 1) * (two - auc**2)) / (n * m)
    return auc, math.sqrt(max(variance, 0.0))
