"""Two Gaussian distributions of a table: of its normal scores, a copula, and of its standardised numbers.

R numbers and I indicators of categories, V = R + I variables.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loglik.autoregressive.column_distributions import log_normal_mass
from loglik.autoregressive.copula import GaussianCopula
from loglik.autoregressive.normal_scores import NormalScores

__all__ = ["Conditionals", "Encoded", "StandardisedGaussian", "TableGaussians"]

REACH = 6.0  # standard deviations beyond which numbers are clamped: an outlier would set the covariance
MIN_SCALE = 1e-4
WEIGHTINGS = 50  # iterations


@dataclass(frozen=True)
class Conditionals:
    """The distributions of B rows' variables given those that are observed.

    Attributes:
        mean, log_scale: of the copula.
        linear: the standardised Gaussian's mean of each number, standardised.
        linear_mean, linear_log_scale: the same Gaussian's, in normal scores.
    """

    mean: Float[Tensor, "B V"]
    log_scale: Float[Tensor, "B V"]
    linear: Float[Tensor, "B R"]
    linear_mean: Float[Tensor, "B R"]
    linear_log_scale: Float[Tensor, "B R"]

    def to(self, dtype: torch.dtype) -> Conditionals:
        """Return all tensors in another precision."""
        return Conditionals(*(getattr(self, field.name).to(dtype) for field in fields(self)))


@dataclass(frozen=True)
class Encoded:
    """Rows as the Gaussians read them; zeros stand for missing values.

    Attributes:
        scores: normal scores, and indicators.
        standardised: standardised numbers, and indicators.
        middle, width, log_det: of each number's cell, as `NormalScores` returns them.
    """

    scores: Float[Tensor, "B V"]
    standardised: Float[Tensor, "B V"]
    middle: Float[Tensor, "B R"]
    width: Float[Tensor, "B R"]
    log_det: Float[Tensor, "B R"]


class StandardisedGaussian(nn.Module):
    r"""$x \sim \mathcal N(\mu, \Sigma)$ of R numbers and of indicators of categories, with any of them observed.

    Columns that depend linearly on one another do so no longer after their maps T to normal scores. This Gaussian knows
    their linear dependence. A conditional $\mathcal N(m, s^2)$ is returned as the mean and the log-scale
    $\frac12[T(m + s) \pm T(m - s)]$ of a Gaussian in normal scores.
    """

    location: Tensor
    unit: Tensor

    def __init__(self, numbers: int, indicators: int) -> None:
        super().__init__()
        self.gaussian = GaussianCopula(numbers + indicators)
        self.register_buffer("location", torch.zeros(numbers, dtype=torch.float64))
        self.register_buffer("unit", torch.ones(numbers, dtype=torch.float64))

    def standardise(self, numbers: Float[Tensor, "B R"]) -> Float[Tensor, "B R"]:
        """Return numbers in standard deviations from the mean, clamped."""
        return ((numbers.double() - self.location) / self.unit).clamp(-REACH, REACH)

    def forward(
        self, u: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"], scores: NormalScores
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return each number's conditional mean, standardised, and its mean and log-scale in normal scores (B, R).

        u holds standardised numbers, and indicators; what is not seen is ignored.
        """
        n = len(self.unit)
        mean, variance = self.gaussian(u, seen)
        mean, std = mean[:, :n], variance[:, :n].sqrt()
        low, high = (scores.transform((mean + side * std) * self.unit + self.location) for side in (-1, 1))
        return mean, (low + high) / 2, ((high - low) / 2).clamp_min(MIN_SCALE).log()

    @torch.no_grad()
    def initialise(
        self, numbers: Float[Tensor, "N R"], indicators: Float[Tensor, "N I"], seen: Bool[Tensor, "N V"]
    ) -> None:
        """Fit to rows with gaps."""
        known = seen[:, : len(self.unit)]
        count = known.sum(0).clamp_min(1)
        numbers = torch.where(known, numbers.double(), 0.0)
        self.location.copy_(numbers.sum(0) / count)
        square = torch.where(known, numbers - self.location, 0.0).square().sum(0) / count
        self.unit.copy_(torch.where(square > 0, square.sqrt(), 1.0))
        self.gaussian.initialise(torch.cat([self.standardise(numbers), indicators], 1), seen)


class TableGaussians(nn.Module):
    """A Gaussian copula and a Gaussian of standardised numbers, and how much better each fits each column.

    Args:
        numbers, indicators: R and I.
    """

    log_odds: Tensor

    def __init__(self, numbers: int, indicators: int) -> None:
        super().__init__()
        self.copula = GaussianCopula(numbers + indicators)
        self.linear = StandardisedGaussian(numbers, indicators)
        self.register_buffer("log_odds", torch.zeros(numbers))

    def encode(self, numbers: Float[Tensor, "B R"], indicators: Float[Tensor, "B I"], scores: NormalScores) -> Encoded:
        """Return rows as `forward` reads them, from numbers with NaN for missing values."""
        missing = numbers.isnan()
        numbers = torch.where(missing, 0.0, numbers.double())
        score, *cells = (torch.where(missing, 0.0, part) for part in scores(numbers))
        standardised = self.linear.standardise(numbers)
        return Encoded(torch.cat([score, indicators], 1), torch.cat([standardised, indicators], 1), *cells)

    def forward(self, x: Encoded, seen: Bool[Tensor, "B V"], scores: NormalScores) -> Conditionals:
        """Return the conditional distributions given the variables seen."""
        mean, variance = self.copula(x.scores, seen)
        return Conditionals(mean, 0.5 * variance.log(), *self.linear(x.standardised, seen, scores))

    @torch.no_grad()
    def initialise(
        self,
        numbers: Float[Tensor, "N R"],
        indicators: Float[Tensor, "N I"],
        seen: Bool[Tensor, "N V"],
        scores: NormalScores,
    ) -> None:
        """Fit both to rows with gaps, and then `log_odds`."""
        self.linear.initialise(numbers, indicators, seen)
        x = self.encode(numbers, indicators, scores)
        self.copula.initialise(x.scores, seen)
        self._weigh(x, seen, scores)

    def _weigh(self, x: Encoded, seen: Bool[Tensor, "N V"], scores: NormalScores) -> None:
        """Set the odds of the linear Gaussian against the copula in each column to those of the highest likelihood.

        By expectation maximisation, with random sets of the observed columns given.
        """
        u = torch.rand(len(seen), 1, device=seen.device)
        given = seen & (torch.rand(seen.shape, device=seen.device) < u)
        found, n = self(x, given, scores), len(self.log_odds)
        log_p = []
        for mean, log_scale in (
            (found.mean[:, :n], found.log_scale[:, :n]),
            (found.linear_mean, found.linear_log_scale),
        ):
            inverse = (-log_scale).exp()
            mass = log_normal_mass((x.middle - mean) * inverse, x.width * inverse)
            log_p.append(mass - torch.where(x.width > 0, 0.0, log_scale))
        asked = (seen & ~given)[:, :n]
        gain, odds = log_p[1] - log_p[0], torch.zeros_like(log_p[0][0])
        for _ in range(WEIGHTINGS):
            share = torch.where(asked, (odds + gain).sigmoid(), 0.0).sum(0) + 0.5
            odds = (share / (asked.sum(0) + 1)).logit()
        self.log_odds.copy_(odds)
