r"""Confusion, reliability and calibration error of a classifier.

Notation: N examples, K classes, $p$ probabilities (N, K), $y$ labels (N,). The prediction is
$\hat y = \arg\max_k p_k$ and its confidence $\hat p = \max_k p_k$. Everything is computed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

__all__ = [
    "ClassScore",
    "Reliability",
    "calibration_error",
    "confusion_matrix",
    "per_class",
    "reliability",
    "wilson_interval",
]


@dataclass(frozen=True)
class Reliability:
    """Mean confidence, accuracy (as fractions) and number of examples in each of M bins; 0 in empty bins."""

    confidence: Float64[Tensor, " M"]
    accuracy: Float64[Tensor, " M"]
    count: Int64[Tensor, " M"]

    @property
    def error(self) -> float:
        """Return the expected calibration error of these bins; see `calibration_error`."""
        gap = (self.accuracy - self.confidence).abs()
        return float((gap * self.count).sum() / self.count.sum())

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """Return the 95 % Wilson interval of each bin's accuracy; 0 to 1 for an empty bin."""
        correct = (self.accuracy * self.count).round().long().tolist()
        return [wilson_interval(k, n) for k, n in zip(correct, self.count.tolist(), strict=True)]

    @property
    def error_interval(self) -> tuple[float, float]:
        r"""Return the range of calibration errors for which each bin's accuracy is in its 95 % Wilson interval.

        With the interval $[a_m, b_m]$ of bin m and its confidence $c_m$, the range is from
        $\sum_m \tfrac{|B_m|}{N} \max(0, a_m - c_m, c_m - b_m)$ to
        $\sum_m \tfrac{|B_m|}{N} \max(|a_m - c_m|, |b_m - c_m|)$. The interval is conservative: it allows all bins to
        deviate together.
        """
        low, high = torch.tensor(self.intervals, dtype=torch.float64, device=self.count.device).unbind(1)
        share, c = self.count / self.count.sum(), self.confidence
        nearest = torch.maximum(low - c, c - high).clamp_min(0)
        furthest = torch.maximum((low - c).abs(), (high - c).abs())
        return float((share * nearest).sum()), float((share * furthest).sum())


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class, as fractions.

    Attributes:
        precision: fraction of the predictions of the class that are correct.
        recall: fraction of the examples of the class that are predicted as it.
        f1: harmonic mean of precision and recall; 0 if no prediction of the class is correct.
        count: number of examples of the class.
        precision_interval, recall_interval: 95 % Wilson intervals.
    """

    precision: float
    recall: float
    f1: float
    count: int
    precision_interval: tuple[float, float]
    recall_interval: tuple[float, float]


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    r"""Return Wilson's score interval for a share, by default at 95 %.

    $\frac{1}{1 + z^2/n} \left( \hat p + \frac{z^2}{2n} \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4n^2}}
    \right)$ with $\hat p$ = successes / n: the shares p that lie within z of their own standard errors
    $\sqrt{p(1-p)/n}$ of $\hat p$. It has a width where all or none of n succeed, and stays within 0 and 1.

    Args:
        successes: between 0 and n.
        n: how many; without any, the interval is 0 to 1.
        z: standard errors to each side.

    Raises:
        ValueError: if successes is not between 0 and n.

    Reference: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> [round(end, 3) for end in wilson_interval(16, 16)]
    [0.806, 1.0]
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n = {n}, got {successes}")
    if n == 0:
        return 0.0, 1.0
    share, extra = successes / n, z * z / n
    half = z * math.sqrt(share * (1 - share) / n + extra / (4 * n))
    low, high = ((share + extra / 2 + sign * half) / (1 + extra) for sign in (-1, 1))
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def confusion_matrix(probabilities: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> Int64[Tensor, "K K"]:
    r"""Count the examples of class i predicted as class j: $C_{ij} = \#\{n : y_n = i, \hat y_n = j\}$.

    Args:
        probabilities: p(y | x), rows that sum to 1.
        labels: the true classes, 0 ... K-1.

    Raises:
        ValueError: probabilities that are no distributions, or labels outside 0 ... K-1.

    >>> confusion_matrix(torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), torch.tensor([0, 1, 1])).tolist()
    [[1, 0], [1, 1]]
    """
    _check(probabilities, labels)
    classes = probabilities.shape[1]
    cells = labels.long() * classes + probabilities.argmax(1)
    return torch.bincount(cells, minlength=classes**2).reshape(classes, classes)


def per_class(confusion: Int64[Tensor, "K K"]) -> list[ClassScore]:
    """Return precision, recall and F1 of each class from a confusion matrix.

    >>> [round(score.f1, 3) for score in per_class(torch.tensor([[1, 0], [1, 1]]))]
    [0.667, 0.667]
    """
    counts = zip(confusion.diag().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist(), strict=True)
    return [
        ClassScore(
            precision=right / max(predicted, 1),
            recall=right / max(true, 1),
            f1=2 * right / max(true + predicted, 1),
            count=true,
            precision_interval=wilson_interval(right, predicted),
            recall_interval=wilson_interval(right, true),
        )
        for right, true, predicted in counts
    ]


def reliability(probabilities: Float[Tensor, "N K"], labels: Int[Tensor, " N"], *, bins: int = 15) -> Reliability:
    r"""Group examples by confidence into M equal bins $(\tfrac{m-1}M, \tfrac mM]$ and compare with accuracy.

    Args:
        probabilities: p(y | x), rows that sum to 1.
        labels: the true classes, 0 ... K-1.
        bins: the number M of bins over [0, 1].

    Raises:
        ValueError: probabilities that are no distributions, labels outside 0 ... K-1, or bins below 1.
    """
    _check(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    confidence, predicted = probabilities.detach().double().max(1)
    correct = (predicted == labels).double()
    inner_edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    index = torch.bucketize(confidence, inner_edges)  # closed on the right
    count = torch.bincount(index, minlength=bins)
    size = count.clamp(min=1)
    return Reliability(
        confidence=torch.bincount(index, weights=confidence, minlength=bins) / size,
        accuracy=torch.bincount(index, weights=correct, minlength=bins) / size,
        count=count,
    )


def calibration_error(probabilities: Float[Tensor, "N K"], labels: Int[Tensor, " N"], *, bins: int = 15) -> float:
    r"""Return the expected calibration error $\sum_m \tfrac{|B_m|}{N} \, |\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|$.

    It is a fraction, and 0 if a fraction c of the predictions with confidence c is correct.

    Args:
        probabilities: p(y | x), rows that sum to 1.
        labels: the true classes, 0 ... K-1.
        bins: the number M of equal-width bins $B_m$ over the confidence.

    Raises:
        ValueError: probabilities that are no distributions, labels outside 0 ... K-1, or bins below 1.

    Reference: Guo et al. 2017, "On calibration of modern neural networks", eq. 3.

    >>> calibration_error(torch.tensor([[0.75, 0.25]] * 4), torch.tensor([0, 0, 0, 1]))
    0.0
    """
    return reliability(probabilities, labels, bins=bins).error


def _check(probabilities: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless these are N distributions over K classes and N labels."""
    if probabilities.dim() != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            "probabilities must have shape (N, K) and labels (N,), "
            f"got {tuple(probabilities.shape)} and {tuple(labels.shape)}"
        )
    if probabilities.numel() == 0:
        raise ValueError(f"calibration needs at least one example and one class, got {tuple(probabilities.shape)}")
    bad = ~((probabilities >= 0).all(1) & ((probabilities.double().sum(1) - 1).abs() < 1e-2))
    if bad.any():
        row = int(bad.nonzero()[0])
        total = float(probabilities[row].double().sum())
        raise ValueError(
            f"probabilities must be at least 0 and sum to 1 in each row, but row {row} sums to {total:.4g}"
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(f"labels must lie in 0 ... {probabilities.shape[1] - 1}, got {low} ... {high}")
