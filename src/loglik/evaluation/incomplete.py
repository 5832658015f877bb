r"""Rows with missing values and with categories that were not in the training data: what they score.

A missing value, NaN, is integrated out: the row's score is log p of its observed values. Where a density is of complete
rows only, its `Marginals` estimate this: a lower bound, or an estimate where p is not exact or importance weighted. A
category that the model has
not seen is one more level of its column c, whose probability is the column's `novelty` $\epsilon_c$: the row scores
$\log \epsilon_c$ and its other values with that cell left out. Where an evaluation has such a category in a column,
each row with a known one scores $\log (1 - \epsilon_c)$ beside, so that the levels' probabilities still sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.conditioning import Marginals
from loglik.data.dataset import Split
from loglik.data.limits import quote
from loglik.data.spec import Column, DataSpec
from loglik.density import Bound, Density
from loglik.evaluation.scores import evaluating

__all__ = ["Gaps", "Scorer", "gaps_of", "scorable", "unseen"]

BLOCK_VALUES = 2**22  # that are read from a split at once
DRAWS = 8  # of a row's missing values, for each sample that is asked for
FEWER_DRAWS = 2  # of a density whose bound is averaged over many draws itself
UNSEEN = "unseen categories"  # the term's name


@dataclass(frozen=True)
class Gaps:
    """The missing values and the unseen categories of a split's rows.

    Attributes:
        rows: the number of rows with a missing value or an unseen category in the event.
        cells: the number of observed values of the event, over all rows.
        unseen: the number of cells with an unseen category, of each column that has some.
        integrated: how missing values are integrated out where the density is of complete rows: `a lower bound` or `an
            estimate`; empty elsewhere.
    """

    rows: int = 0
    cells: int = 0
    unseen: Mapping[str, int] = field(default_factory=dict)
    integrated: str = ""

    def lines(self, spec: DataSpec) -> list[str]:
        """Return a line if missing values are integrated out, and one for each column with unseen categories."""
        how = f"the model is of complete rows: importance sampling integrates missing values out, {self.integrated}"
        found = [column for column in (*spec.columns, *spec.inputs) if column.name in self.unseen]
        return [how] * bool(self.integrated) + [
            f"column {quote(column.name)}: {self.unseen[column.name]:,} values are categories that the training data "
            f"did not have, {_how(column, spec)}"
            for column in found
        ]


def _how(column: Column, spec: DataSpec) -> str:
    if column in spec.inputs:
        return "read as missing"
    return f"scored with the probability {column.novelty:.2g}"


def gaps_of(split: Split, spec: DataSpec) -> Gaps:
    """Count a table's missing values and unseen categories, in one pass over the split where it is stored."""
    if not spec.columns or split.stream is not None:
        return Gaps()
    rows = cells = 0
    new_cells: dict[str, int] = {}
    size = max(1, BLOCK_VALUES // len(spec.columns))
    for start in range(0, len(split), size):
        x = split.x[start : start + size]
        new = unseen(x, spec.columns)
        rows += int((new | x.isnan()).any(1).sum()) if x.is_floating_point() else 0
        cells += int((~x.isnan()).sum())
        parts = [(new, spec.columns)]
        if spec.inputs and split.y is not None:
            parts.append((unseen(split.y[start : start + size], spec.inputs), spec.inputs))
        for found, columns in parts:
            for d in found.any(0).nonzero().flatten().tolist():
                new_cells[columns[d].name] = new_cells.get(columns[d].name, 0) + int(found[:, d].sum())
    return Gaps(rows, cells, new_cells)


def unseen(x: Shaped[Tensor, "B D"], columns: Sequence[Column]) -> Tensor:
    """Return where x is the code after the last one of its column."""
    counts = torch.tensor([len(column.categories) for column in columns], device=x.device)
    return (counts > 0) & (x == counts)


def scorable(density: Density, split: Split, spec: DataSpec) -> tuple[Density, Gaps]:
    """Return a density that scores a split's rows, and the split's gaps.

    It is the density itself where all rows are complete and all categories are known.

    Raises ValueError where an unseen category has no probability, and where targets given inputs are incomplete, by a
    density of complete ones.
    """
    gaps = gaps_of(split, spec)
    reads_labels = density.event == "y"
    if not gaps.rows and not gaps.unseen:
        return density, gaps
    if density.conditional and spec.inputs and not density.marginalises and gaps.rows and spec.dims > 1:
        raise ValueError(
            f"{gaps.rows:,} of {len(split):,} rows have missing or unseen values of the targets, and this density is "
            "of complete ones: fit mixture, or leave these rows out"
        )
    log_novelty = {}
    for d, column in enumerate(spec.columns):
        if column.name in gaps.unseen and not reads_labels:
            if not 0 < column.novelty < 1:
                raise ValueError(
                    f"column {quote(column.name)} has categories that the training data did not have, and the run does "
                    "not say how probable these are: train it again, or leave these rows out"
                )
            log_novelty[d] = math.log(column.novelty), math.log1p(-column.novelty)
    scorer = Scorer(density, spec, log_novelty)
    if not (scorer.integrates and gaps.rows):
        return scorer, gaps
    return scorer, replace(gaps, integrated="a lower bound" if density.importance_weighted else "an estimate")


class Scorer(Density):
    """A density's scores of rows with missing values and unseen categories.

    A density of complete rows scores a row with gaps by some draws of its missing values for each sample, from a
    mixture that is fitted to the density's own samples: see `Marginals`.

    Args:
        density: a density of a table's rows, or of labels or targets given a table's columns.
        spec: the table's.
        log_novelty: the logarithms of the probability of an unseen category and of a known one, of each column of the
            event that has unseen ones.
    """

    def __init__(self, density: Density, spec: DataSpec, log_novelty: Mapping[int, tuple[float, float]]) -> None:
        super().__init__()
        self.density, self.log_novelty = density, dict(log_novelty)
        self.event_columns = () if density.event == "y" else spec.columns
        self.context_columns = spec.columns if density.event == "y" else spec.inputs
        self.event_shape, self.discrete, self.conditional = density.event_shape, density.discrete, density.conditional
        self.event, self.marginalises = density.event, density.marginalises or density.event == "x"
        self.integrates = self.marginalises and not density.marginalises  # by draws
        self.spec = spec
        self.by_label: dict[int | None, Marginals] = {}

    @property
    def bound(self) -> Bound:
        if not self.integrates:
            return self.density.bound
        return Bound.LOWER if self.importance_weighted else Bound.ESTIMATE

    @property
    def importance_weighted(self) -> bool:
        return self.density.importance_weighted

    def _event(self, x: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "B ..."]:
        return x.masked_fill(unseen(x, self.event_columns), torch.nan) if self.event_columns else x

    def _context(self, context: Tensor | None) -> Tensor | None:
        if context is None or not self.context_columns:
            return context
        return context.masked_fill(unseen(context, self.context_columns), torch.nan)

    def _unseen_score(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        """Return log ε of each unseen category and log(1 - ε) of each known one, summed over the columns."""
        score = torch.zeros(len(x), device=x.device, dtype=torch.get_default_dtype())
        for d, (new, known) in self.log_novelty.items():
            own = torch.where(x[:, d] == len(self.event_columns[d].categories), new, known)
            score = score + torch.where(x[:, d].isnan(), 0.0, own)
        return score

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        event, given = self._event(x), self._context(context)
        score = self._integrated if self.integrates else self.density.log_prob
        log_p = score(event, given, samples=samples)
        return log_p + self._unseen_score(x) if self.log_novelty else log_p

    def _integrated(self, x: Shaped[Tensor, "B D"], context: Tensor | None, *, samples: int) -> Float[Tensor, " B"]:
        """Return log p of the observed values of rows, 0 where there is none."""
        gaps, empty = x.isnan().any(1), x.isnan().all(1)
        log_p = torch.zeros(len(x), device=x.device, dtype=torch.float64)
        if not gaps.all():
            own = None if context is None else context[~gaps]
            log_p[~gaps] = self.density.log_prob(x[~gaps], own, samples=samples).double()
        rest, draws = gaps & ~empty, samples * (DRAWS if self.importance_weighted else FEWER_DRAWS)
        for label in [None] if context is None else context[rest].unique().tolist():
            rows = rest if context is None else rest & (context == label)
            if rows.any():
                log_p[rows] = self._marginals(label)(x[rows], draws).log_prob
        return log_p

    def _marginals(self, label: int | None) -> Marginals:
        """Return the density's marginals, of the rows of one label if it is conditional; fitted once, with one seed."""
        if label not in self.by_label:
            context = None if label is None else torch.tensor([label], device=self.density.device)
            with evaluating(self.density, 0):
                spec = self.spec
                self.by_label[label] = Marginals(
                    self.density, discrete=spec.discrete_dims, categories=spec.categories, context=context
                )
        return self.by_label[label]

    def terms(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, " B"]]:
        if self.integrates:
            return {}
        terms = self.density.terms(self._event(x), self._context(context), samples=samples)
        return {**terms, UNSEEN: self._unseen_score(x)} if terms and self.log_novelty else terms

    def probabilities(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B C"]:
        """Return a classifier's p(y | x) for each class."""
        probabilities: Any = self.density.probabilities
        p: Tensor = probabilities(self._context(x))
        return p

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        return self.density.sample(n, self._context(context))

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        event = self._event(x)
        self.density.check(event.nan_to_num(nan=0.0) if self.integrates else event, self._context(context))

    def numerical_error(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, " B"] | None:
        event, given = self._event(x), self._context(context)
        if self.integrates:
            whole = ~event.isnan().any(1)
            if not whole.any():
                return None
            event, given = event[whole], None if given is None else given[whole]
        return self.density.numerical_error(event, given)
