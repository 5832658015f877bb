r"""Anomalies: the rows that are unlikely beside the rows of a run, with p-values and the columns that make them so.

A score orders rows, and its p-value says how rare it is: with the scores $s_1, \dots, s_n$ of rows that are known to be
normal, a new row's is $p = (1 + \#\{j : s_j > s\} + T) / (n + 1)$, where T is drawn from 0 to the number of ties. If
the new row is normal too, all n + 1 scores are exchangeable, and p is uniform over 1/(n+1), ..., 1 at any sample size.

Scores:

- `kernel`: $-\log p(x)$ of the kernel density of the run's rows (`tasks.kernel`). It is compared with that of each of
  the run's rows, given the others and x (full conformal prediction), so no rows need to be held out.
- `nats`: $-\log p(x)$ of the run's density, compared with the validation and test rows.
- `typicality`: $\lvert \log p(x) - \mathbb E \log p \rvert$, with the mean of the validation and test rows, and
  compared with them.

References: Vovk et al. 2005, "Algorithmic learning in a random world"; Laxhammar and Falkman 2010, "Conformal
prediction for distribution-independent anomaly detection"; Nalisnick et al. 2019, "Detecting out-of-distribution
inputs to deep generative models using typicality"; Benjamini and Hochberg 1995.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from loglik.data.dataset import Data, Split
from loglik.data.spec import DataSpec
from loglik.evaluation.incomplete import gaps_of, scorable
from loglik.evaluation.scores import default_samples, log_probs
from loglik.runs import Run
from loglik.tasks.blame import Blame, blame_of
from loglik.tasks.kernel import KernelDensity, place_of, reference_rows

__all__ = ["SCORES", "Anomalies", "anomalies", "find_anomalies", "flagged_at", "p_values"]

SCORES = ("auto", "kernel", "nats", "typicality")
BLOCK = 2**14  # rows in memory at once
NAMED = 3  # columns that are named for a row


@dataclass(frozen=True)
class Anomalies:
    """The scored rows.

    Attributes:
        frame: a row each, the least likely first: `row` (the first of the input is 1), `nats` (log p of the run's
            density), `score`, `p`, `flagged`, and `columns`: those that raise the score most, with the nats by which
            each is less likely than usual given the others; null beyond the explained rows.
        score: the score that was used.
        known: the number of rows that the p-values count.
        blame: how the columns were found.
        notes: lines about missing values and unseen categories.
    """

    frame: pl.DataFrame
    score: str
    known: int
    blame: str
    notes: tuple[str, ...] = ()


def anomalies(
    run: Run,
    data: Any = None,
    *,
    rate: float = 0.01,
    fdr: bool = False,
    score: str = "auto",
    normal: Any = None,
    explain: int = 100,
    samples: int | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Return rows with their scores, p-values and the columns to blame, the least likely row first.

    The columns of the frame are those of `find_anomalies(...).frame`, and the arguments are its arguments.

    Raises ValueError as `find_anomalies` does.
    """
    return find_anomalies(
        run, data, rate=rate, fdr=fdr, score=score, normal=normal, explain=explain, samples=samples, seed=seed
    ).frame


def find_anomalies(
    run: Run,
    data: Any = None,
    *,
    rate: float = 0.01,
    fdr: bool = False,
    score: str = "auto",
    normal: Any = None,
    explain: int = 100,
    samples: int | None = None,
    seed: int = 0,
) -> Anomalies:
    """Score rows, compare them with the rows of a run, and say which columns make them unlikely.

    Args:
        run: a run; its rows are taken as normal.
        data: what `fit` accepts; if None, or the file that the run was trained on, the run's own rows, each compared
            with the others.
        rate: flag this share of normal rows; with `fdr`, the largest expected share of normal rows among the flagged.
        fdr: whether to flag by Benjamini and Hochberg's rule.
        score: `auto` is `kernel` for tables, arrays and images, and `nats` for text and for a density of targets.
        normal: the rows of the run, where they were in memory or are no longer where they were.
        explain: the number of rows, from the least likely, whose columns are named.
        samples: Monte Carlo samples per row where log p is a bound; chosen by the number of rows if None.
        seed: of the Monte Carlo noise, and of the ranks among equal scores.

    Raises ValueError where there are no rows to score or to compare with, and for a score that does not fit.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must be between 0 and 1, got {rate}: 0.01 flags one normal row in a hundred")
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    own = data is None or _is_source(run, data)
    reference = _reference(run, normal)
    rows = (reference if own else run.data_for(data)).split("all")
    if len(rows) == 0:
        raise ValueError("there are no rows to score")
    chosen = _chosen(score, run)
    notes = tuple(gaps_of(rows, run.spec).lines(run.spec))
    nats = _nats(run, rows, samples, seed)
    compared = _by_kernel(reference, rows, own) if chosen == "kernel" else None
    if compared is None:
        compared = _by_density(run, reference, rows, own, nats, chosen, samples, seed)
    scores, blame = compared.scores, compared.blame
    p = p_values(compared.larger, compared.equal, compared.known, seed=seed)
    order = torch.argsort(scores, descending=True, stable=True)
    columns: list[str | None] = [None] * len(rows)
    if explain > 0:
        worst = order[:explain]
        for row, named in zip(worst.tolist(), blame.name(rows, worst, NAMED), strict=True):
            columns[row] = named
    number = torch.arange(len(rows)) if rows.index is None else rows.index
    frame = pl.DataFrame(
        {
            "row": (number + 1).numpy(),
            "nats": pl.Series(nats.numpy()).fill_nan(None),
            "score": scores.numpy(),
            "p": p.numpy(),
            "flagged": flagged_at(p, rate, fdr=fdr).numpy(),
            "columns": pl.Series(columns, dtype=pl.String),
        }
    )
    return Anomalies(frame[order.tolist()], chosen, int(compared.known.max()), blame.how, notes)


def p_values(
    larger: Int64[Tensor, " N"], equal: Int64[Tensor, " N"], known: Int64[Tensor, " N"], *, seed: int = 0
) -> Float64[Tensor, " N"]:
    """Return each row's conformal p-value: its rank among known scores, at random among equal ones, as a share.

    Args:
        larger: how many known scores are larger.
        equal: how many are equal.
        known: how many there are, the row's own not counted.
        seed: of the ranks among equal scores.
    """
    u = torch.rand(len(larger), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1 + larger + (u * (equal + 1)).floor()) / (1 + known)


def flagged_at(p: Float64[Tensor, " N"], rate: float, *, fdr: bool = False) -> Bool[Tensor, " N"]:
    r"""Return which rows are flagged: $p \le$ rate, or by Benjamini and Hochberg's rule.

    The rule flags the k rows of the smallest p-values, for the largest k with $p_{(k)} \le k \cdot \text{rate} / N$.
    """
    if not fdr or len(p) == 0:
        return p <= rate
    ordered = p.sort().values
    passing = (ordered <= rate * torch.arange(1, len(p) + 1) / len(p)).nonzero().flatten()
    return p <= (ordered[passing[-1]] if len(passing) else -1.0)


def _reference(run: Run, normal: Any) -> Data:
    """Return the run's data; an error says how to pass them."""
    if normal is None and run.config.get("source") is None:
        where = "elsewhere" if "adapter" in run.config else "on data in memory"
        raise ValueError(f"this run was trained {where}: pass its rows as normal=")
    try:
        return run.data_for(normal)
    except FileNotFoundError as error:
        if normal is not None:
            raise
        raise FileNotFoundError(
            f"{run.config['source']}, the data of the run, are gone: pass them as normal="
        ) from error


def _is_source(run: Run, data: Any) -> bool:
    """Return whether data are the file or the name that the run was trained on."""
    source = run.config.get("source")
    if source is None or not isinstance(data, (str, Path)):
        return False
    return str(data) == source or (Path(data).exists() and str(Path(data).resolve()) == source)


def _chosen(score: str, run: Run) -> str:
    by_density = run.spec.kind == "text" or bool(run.spec.inputs)
    if score == "kernel" and by_density:
        what = "text" if run.spec.kind == "text" else "a density of targets"
        raise ValueError(f'score="kernel" compares whole rows of numbers, and this run has {what}: use score="nats"')
    if score != "auto":
        return score
    return "nats" if by_density else "kernel"


def _nats(run: Run, split: Split, samples: int | None, seed: int) -> Float64[Tensor, " N"]:
    """Return log p of each row, of its observed values where some are missing."""
    density, _ = scorable(run.density, split, run.spec)
    return log_probs(density, split, samples=default_samples(density, len(split), samples), seed=seed)


@dataclass(frozen=True)
class _Compared:
    """Scores of rows, the numbers of known scores that are larger, equal, and in all, and what blames columns."""

    scores: Float64[Tensor, " N"]
    larger: Int64[Tensor, " N"]
    equal: Int64[Tensor, " N"]
    known: Int64[Tensor, " N"]
    blame: Blame


def _by_kernel(reference: Data, rows: Split, own: bool) -> _Compared:
    split = reference.split("all")
    if len(split) < 2:
        raise ValueError(f'the run has {len(split)} rows: score="kernel" needs at least 2 to compare with')
    at, x = reference_rows(split)
    kernel, place = KernelDensity(x, reference.spec.categories), place_of(at, len(split)) if own else None
    scores, larger, equal = [], [], []
    for start in range(0, len(rows), BLOCK):
        part = torch.arange(start, min(len(rows), start + BLOCK))
        block, its = rows.batch(part)[0].flatten(1), None if place is None else place[part]
        log_p, less_likely, as_likely = kernel.ranks(block, own=its)
        scores.append(-log_p)
        larger.append(less_likely)
        equal.append(as_likely)
    known = torch.full((len(rows),), len(at))
    if place is not None:
        known -= (place >= 0).long()
    blame = Blame.by_kernel(kernel, reference.spec, x, place)
    return _Compared(torch.cat(scores), torch.cat(larger), torch.cat(equal), known, blame)


def _by_density(
    run: Run,
    reference: Data,
    rows: Split,
    own: bool,
    nats: Float64[Tensor, " N"],
    score: str,
    samples: int | None,
    seed: int,
) -> _Compared:
    held = [split for split in (reference.validation, reference.test) if len(split)]
    if not held:
        rest = "pass rows with validation and test splits"
        if run.spec.kind != "text" and not run.spec.inputs:
            rest = 'use score="kernel", which compares with all rows'
        raise ValueError(
            f"this run has no held-out rows (its validation and test splits are empty) to compare with: {rest}"
        )
    known = torch.cat([-_nats(run, split, samples, seed + 1) / _lengths(split, run.spec) for split in held])
    scores = -nats / _lengths(rows, run.spec)
    if score == "typicality":
        scores, known = (scores - known.mean()).abs(), (known - known.mean()).abs()
    itself = torch.zeros(len(rows), dtype=torch.int64)
    if own and rows.index is not None:
        itself = torch.isin(rows.index, torch.cat([split.index for split in held if split.index is not None])).long()
    ordered = known.sort().values
    at_least, above = (len(known) - torch.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    equal = (at_least - above - itself).clamp_min(0)
    return _Compared(scores, above, equal, len(known) - itself, blame_of(run, reference, held, own=own))


def _lengths(split: Split, spec: DataSpec) -> Float64[Tensor, " N"] | float:
    """Return what nats are divided by: the tokens of a padded text with the first of the padding; else 1."""
    if not spec.padded:
        return 1.0
    assert spec.levels is not None
    return (split.tensor() != spec.levels - 1).sum(1).double().clamp(max=math.prod(spec.event_shape) - 1) + 1
