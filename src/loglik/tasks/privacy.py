r"""Privacy of synthetic rows: whether samples, or log p itself, tell the training rows from others of their kind.

Rows that the model was trained on and rows held out from it are drawn from one population. A model that has learnt the
population only cannot tell them apart:

- a sample is as often nearer to one of M held-out rows as to one of M training rows; memorised rows draw it to these;
- a training row is as likely as a held-out one: the area under the ROC curve of log p, by which someone who has the
  model would guess who was in its training data, is 0.5.

Reference: Platzer and Reutterer 2021, "Holdout-based empirical assessment of mixed-type synthetic data"; Yeom et al.
2018, "Privacy risk in machine learning: analyzing the connection to overfitting".
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

__all__ = ["Nearest", "Privacy", "columns_of", "nearest_rows", "privacy_of"]

MAX_ROWS = 1000  # held-out rows, and as many training rows
SHUFFLES = 199
SURE = 2.6  # standard errors: 1 in 200 by chance
SHARE = 0.6  # of samples nearer to training rows
GUESS = 0.6  # area under the curve of log p


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
        nearest: of samples.
        train_nats, held_out_nats: the means of log p.
        guess: the probability that a training row has a higher log p than a held-out row.
        guess_stderr: its standard error.
    """

    rows: int
    nearest: Nearest
    train_nats: float
    held_out_nats: float
    guess: float
    guess_stderr: float

    @property
    def samples_memorise(self) -> bool:
        """Whether samples are near to the training rows, or copies of them, more than chance explains."""
        near = self.nearest
        close = near.share > SHARE and near.share > 0.5 + SURE * near.usual
        error = math.sqrt((near.natural_copies + 1 / self.rows) / self.rows)
        return close or near.copies > near.natural_copies + 0.01 + SURE * error

    @property
    def model_memorises(self) -> bool:
        """Whether log p tells training rows from others, more than chance explains."""
        return self.guess > GUESS and self.guess > 0.5 + SURE * self.guess_stderr

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
    guess, error = _auc(scores[0], scores[1])
    return Privacy(count, nearest, scores[0].mean().item(), scores[1].mean().item(), guess, error)


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


def _auc(high: Sequence[float] | Tensor, low: Sequence[float] | Tensor) -> tuple[float, float]:
    """Return P(high > low), ties half, and its standard error (Hanley and McNeil 1982)."""
    a, b = torch.as_tensor(high), torch.as_tensor(low)
    auc = ((a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()).mean().item()
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    n, m = len(a), len(b)
    variance = (auc * (1 - auc) + (n - 1) * (one - auc**2) + (m - 1) * (two - auc**2)) / (n * m)
    return auc, math.sqrt(max(variance, 0.0))
