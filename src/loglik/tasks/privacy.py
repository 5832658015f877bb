r"""Privacy of synthetic rows: whether samples, or log p itself, tell the training rows from others of their kind.

Rows that the model was trained on and rows held out from it are drawn from one population. A model that has learnt the
population only cannot tell them apart:

- a sample is as often nearer to one of M held-out rows as to one of M training rows. If a fraction λ of the samples are
  near-copies of training rows, the share that is nearer to these is (1 + λ) / 2;
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
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from loglik.data.dataset import Split
from loglik.data.decode import as_written
from loglik.data.spec import Column, DataSpec
from loglik.density import Density
from loglik.evaluation.incomplete import scorable
from loglik.evaluation.scores import default_samples, log_probs
from loglik.tasks.kernel import KernelDensity

__all__ = ["Nearest", "Privacy", "area_under_curve", "columns_of", "nearest_rows", "privacy_of"]

MAX_ROWS = 1000  # held-out rows, and as many training rows
SHUFFLES = 199
SURE = 2.6  # standard errors: 1 in 200 by chance
COPIED = 0.1  # of samples: more near-copies of training rows than this are called memorising
STORED = 1.0  # nats for each number of a row: as many effective parameters as the training data have numbers


@dataclass(frozen=True)
class Nearest:
    """Which rows samples are nearest to.

    Attributes:
        share: of samples, that are nearer to a training row than to any of as many held-out rows; ties count half.
        usual: the standard deviation of that share between random halves of all these rows.
        copies: share of samples that equal a training row.
        natural_copies: share of held-out rows that equal a training row.
    """

    share: float
    usual: float
    copies: float
    natural_copies: float


@dataclass(frozen=True)
class Privacy:
    """What a model and its samples tell of the training rows.

    Attributes:
        rows: the number of held-out rows, and of training rows, that samples are compared with.
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
        close = near.share - SURE * near.usual > (1 + COPIED) / 2
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
    """Return what samples and log p tell of the training rows, by held-out rows and as many training rows.

    The samples are as `as_written` returns them.

    Raises ValueError for fewer than 2 held-out rows.
    """
    random = torch.Generator().manual_seed(seed)
    count = min(MAX_ROWS, len(held_out), len(train))
    if count < 2:
        raise ValueError(f"privacy is measured by held-out rows, and there are {len(held_out)}: pass data with more")
    some = [_some(split, count, random) for split in (train, held_out)]
    columns = columns_of(spec)
    (near, written), (far, _), (whole, _) = (as_written(s.tensor().flatten(1), columns) for s in (*some, train))
    nearest = nearest_rows(drawn, near, far, whole, [len(column.categories) for column in written], seed=seed)
    scores = []
    for part in (_some(train, min(MAX_ROWS, len(train)), random), some[1]):
        scored = scorable(density, part, spec)[0]
        scores.append(log_probs(scored, part, samples=default_samples(scored, len(part)), seed=seed))
    guess, error = area_under_curve(scores[0], scores[1])
    gap_error = math.sqrt(sum(part.var().item() / len(part) for part in scores))
    means = scores[0].mean().item(), scores[1].mean().item()
    return Privacy(count, len(written), nearest, *means, gap_error, guess, error)


def nearest_rows(
    drawn: Shaped[Tensor, "N D"],
    train: Shaped[Tensor, "M D"],
    held_out: Shaped[Tensor, "M D"],
    whole: Shaped[Tensor, "T D"],
    categories: Sequence[int],
    *,
    seed: int = 0,
) -> Nearest:
    """Return which of M training and M held-out rows samples are nearer to, and how many are copies.

    Distances are those of `KernelDensity`. The rows are cut into halves at random too: the samples are as near to one
    half as to the other, up to a spread that is `usual`.
    """
    pool = torch.cat([train, held_out])
    squares = KernelDensity(pool, categories).squared_distances(drawn)
    m = len(train)
    random = torch.Generator().manual_seed(seed)
    usual = []
    for _ in range(SHUFFLES):
        order = torch.randperm(2 * m, generator=random)
        usual.append(_nearer(squares[:, order[:m]], squares[:, order[m:]]))
    known = _keys(whole)
    return Nearest(
        share=_nearer(squares[:, :m], squares[:, m:]),
        usual=torch.tensor(usual).std().item(),
        copies=_found(drawn, known),
        natural_copies=_found(held_out, known),
    )


def columns_of(spec: DataSpec) -> tuple[Column, ...]:
    """Return the columns of a table, or of vectors."""
    kind = "numeric" if spec.levels is None else "integer"
    return spec.columns or tuple(Column(name=f"x{d}", type=kind) for d in range(spec.dims))  # type: ignore[arg-type]


def _nearer(a: Float64[Tensor, "N M"], b: Float64[Tensor, "N M"]) -> float:
    """Return the share of rows whose smallest distance is in a; ties count half."""
    low, other = a.amin(1), b.amin(1)
    return ((low < other).double() + 0.5 * (low == other).double()).mean().item()


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
