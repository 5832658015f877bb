r"""Fidelity of synthetic rows: column shapes and pair trends as SDMetrics defines them, and a two-sample classifier.

For N real rows x and N sampled rows y, 1 is best and 0 worst of each score:

- the shape of a column of numbers: $1 - \sup_t |F_x(t) - F_y(t)|$, the Kolmogorov-Smirnov complement; of codes:
  $1 - \frac12 \sum_k |P_x(k) - P_y(k)|$, the total variation complement;
- the trend of two columns of numbers: $1 - \frac12 |\rho_x - \rho_y|$ with Pearson's correlation ρ; of a column of
  codes and another: the total variation complement of their joint table, numbers in ten equal bins of the real range.

A classifier then tries to tell real rows from samples: its AUC is 0.5 where it cannot, and 1 where it always can. It is
cross-validated on held-out rows; where few are held out, it learns from the rows that the model was trained on, and is
tested on held-out ones. Rows that the model was trained on are never tested: samples that repeat them would make the
AUC lower than 0.5.

Reference: Patki, Wedge and Veeramachaneni 2016, "The synthetic data vault"; Lopez-Paz and Oquab 2017, "Revisiting
classifier two-sample tests".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int

from loglik.data.spec import Column
from loglik.tasks.privacy import area_under_curve

__all__ = ["Fidelity", "TwoSample", "column_shapes", "fidelity_of", "pair_trends", "two_sample_test"]

BINS = 10
FOLDS = 5
MAX_PAIRS = 500
MIN_FOLD = 2  # rows of each kind
MAX_CODES = 255  # categories of the classifier; beyond, codes are numbers for it
Rows = Float[np.ndarray, "N D"]
Drawn = Float[np.ndarray, "M D"]
Known = Float[np.ndarray, "L D"]


@dataclass(frozen=True)
class TwoSample:
    """How well a classifier tells samples from real rows.

    Attributes:
        auc: area under the ROC curve, the mean over folds; 0.5 is chance.
        stderr: its standard error.
        columns: for each column, how much the AUC falls when the column's values are permuted.
    """

    auc: float
    stderr: float
    columns: dict[str, float]


@dataclass(frozen=True)
class Fidelity:
    """Scores of N sampled rows against N real rows.

    Attributes:
        n: N.
        shapes: of each column.
        pairs: of each pair of columns.
        missing: for each column that has missing values in either, their fractions among real and sampled rows.
        test: the two-sample classifier.
    """

    n: int
    shapes: dict[str, float]
    pairs: dict[tuple[str, str], float]
    missing: dict[str, tuple[float, float]]
    test: TwoSample

    @property
    def shape(self) -> float:
        """The mean over columns; NaN where there is none."""
        return _mean(self.shapes.values())

    @property
    def trend(self) -> float:
        """The mean over pairs; NaN where there is none."""
        return _mean(self.pairs.values())


def fidelity_of(real: Rows, drawn: Drawn, columns: Sequence[Column], test: TwoSample, *, seed: int = 0) -> Fidelity:
    """Return the scores of sampled rows, beside those of the two-sample classifier; NaN is a missing value."""
    gaps = {
        c.name: (float(np.isnan(real[:, d]).mean()), float(np.isnan(drawn[:, d]).mean()))
        for d, c in enumerate(columns)
        if np.isnan(real[:, d]).any() or np.isnan(drawn[:, d]).any()
    }
    trends = pair_trends(real, drawn, columns, seed=seed)
    return Fidelity(len(real), column_shapes(real, drawn, columns), trends, gaps, test)


def column_shapes(real: Rows, drawn: Drawn, columns: Sequence[Column]) -> dict[str, float]:
    """Return each column's Kolmogorov-Smirnov or total variation complement, of the values that are not missing."""
    found = {}
    for d, column in enumerate(columns):
        a, b = (rows[~np.isnan(rows[:, d]), d] for rows in (real, drawn))
        if len(a) and len(b):
            found[column.name] = 1 - (_variation(a, b) if column.categories else _ks(a, b))
    return found


def pair_trends(real: Rows, drawn: Drawn, columns: Sequence[Column], *, seed: int = 0) -> dict[tuple[str, str], float]:
    """Return the correlation or contingency similarity of each pair of columns, of at most `MAX_PAIRS` drawn at random.

    A pair of numbers of which one is constant has none.
    """
    pairs = list(combinations(range(len(columns)), 2))
    if len(pairs) > MAX_PAIRS:
        chosen = np.random.default_rng(seed).choice(len(pairs), MAX_PAIRS, replace=False)
        pairs = [pairs[i] for i in np.sort(chosen)]
    codes = [_codes(real[:, d], drawn[:, d], bool(c.categories)) for d, c in enumerate(columns)]
    found = {}
    for i, j in pairs:
        names = columns[i].name, columns[j].name
        if columns[i].categories or columns[j].categories:
            (a, b), (c, d) = codes[i], codes[j]
            width = 1 + int(max(c.max(initial=0), d.max(initial=0)))
            found[names] = 1 - _variation(a * width + c, b * width + d)
        else:
            ends = [_correlation(rows[:, [i, j]]) for rows in (real, drawn)]
            if np.isfinite(ends).all():
                found[names] = 1 - abs(ends[0] - ends[1]) / 2
    return found


def two_sample_test(
    real: Rows, drawn: Drawn, columns: Sequence[Column], *, training: Known | None = None, seed: int = 0
) -> TwoSample:
    """Return the AUC of gradient-boosted trees that tell samples from held-out rows.

    Args:
        real: held-out rows.
        drawn: samples.
        columns: of both.
        training: where few rows are held out, rows for the trees to learn from, beside as many of the samples; by
            default the trees are cross-validated, with 5 folds.
        seed: of folds and permutations.

    Raises ValueError for fewer than 10 rows of a kind.
    """
    least = FOLDS * MIN_FOLD
    if min(len(real), len(drawn)) < least or (training is not None and len(drawn) < len(training) + least):
        more = "" if training is None else f" beside {len(training)} to learn from"
        raise ValueError(
            f"a two-sample test needs at least {least} real rows and samples{more}, got {len(real)} and {len(drawn)}"
        )
    if training is None:
        x, y = _labelled(real, drawn)
        from sklearn.model_selection import StratifiedKFold

        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y)
        parts = [(x[learn], y[learn], x[test], y[test]) for learn, test in folds]
    else:
        n = len(training)
        parts = [(*_labelled(training, drawn[:n]), *_labelled(real, drawn[n:]))]
    coded = [0 < len(column.categories) <= MAX_CODES for column in columns]
    random = np.random.default_rng(seed)
    found = [_auc_of_trees(part, coded, random, seed) for part in parts]
    aucs, fall = [auc for auc, _, _ in found], np.mean([falls for _, _, falls in found], axis=0)
    error = np.std(aucs, ddof=1) / FOLDS**0.5 if training is None else found[0][1]
    names = {columns[d].name: float(fall[d]) for d in np.argsort(-fall)}
    return TwoSample(float(np.mean(aucs)), float(error), names)


def _labelled(real: Rows, drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([real, drawn]), np.repeat([0, 1], [len(real), len(drawn)])


def _auc_of_trees(
    part: Sequence[np.ndarray], coded: list[bool], random: np.random.Generator, seed: int
) -> tuple[float, float, list[float]]:
    """Return the AUC of trees on test rows, its standard error, and how much it falls if a column is permuted."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    x, y, test, truth = part
    trees = HistGradientBoostingClassifier(categorical_features=coded, random_state=seed).fit(x, y)

    def auc(rows: np.ndarray) -> tuple[float, float]:
        scores = torch.from_numpy(trees.decision_function(rows))
        return area_under_curve(scores[truth == 1], scores[truth == 0])

    whole, error = auc(test)
    falls = []
    for d in range(test.shape[1]):
        permuted = test.copy()
        permuted[:, d] = random.permutation(permuted[:, d])
        falls.append(whole - auc(permuted)[0])
    return whole, error, falls


def _codes(
    real: Float[np.ndarray, " N"], drawn: Float[np.ndarray, " M"], coded: bool
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " M"]]:
    """Return categories from 1, or numbers as the index of their bin; 0 where a value is missing."""
    known = real[~np.isnan(real)]
    edges = np.histogram_bin_edges(known, BINS)[1:-1] if len(known) and not coded else np.zeros(1)

    def code(values: Float[np.ndarray, " K"]) -> Int[np.ndarray, " K"]:
        numbers = values + 1 if coded else np.digitize(values, edges) + 1.0
        return np.where(np.isnan(values), 0, numbers).astype(np.int64)

    return code(real), code(drawn)


def _ks(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " M"]) -> float:
    """Return the largest distance of two empirical distribution functions."""
    at = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def _variation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the total variation of two empirical distributions."""
    values, index = np.unique(np.concatenate([a, b]), return_inverse=True)
    p, q = (np.bincount(at, minlength=len(values)) / len(at) for at in (index[: len(a)], index[len(a) :]))
    return float(np.abs(p - q).sum() / 2)


def _correlation(pair: Float[np.ndarray, "N 2"]) -> float:
    both = pair[~np.isnan(pair).any(1)]
    if len(both) < 2 or (both.std(0) == 0).any():
        return float("nan")
    return float(np.corrcoef(both.T)[0, 1])


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")
