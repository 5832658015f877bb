r"""log p of the observed values of rows, for densities that do not know their marginals.

The mixture q, fitted to samples of the density, proposes the missing values:

$\log p(x_{obs}) = \log \mathbb E_{q(x_{mis} \mid x_{obs})}\left[p(x_{obs}, x_{mis}) / q(x_{mis} \mid x_{obs})\right]$.

The average of K weights is unbiased where `log_prob` is exact or an unbiased weight. So its logarithm is a lower bound
in expectation, which rises with K (Burda et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from loglik.conditioning.rows import BLOCK, Rows
from loglik.density import Density

__all__ = ["Marginal", "Marginals", "marginal_log_prob"]


@dataclass(frozen=True)
class Marginal:
    """log p(observed) of B rows.

    Attributes:
        log_prob: in nats.
        stderr: the standard error of each, of the Monte Carlo draws; 0 of a complete row.
        effective: the effective sample size of each row's weights; the number of draws for a complete row.
    """

    log_prob: Float64[Tensor, " B"]
    stderr: Float64[Tensor, " B"]
    effective: Float64[Tensor, " B"]


class Marginals:
    """The marginals of a density over rows (B, D); a call scores rows with missing values.

    Args:
        density: over rows, in evaluation mode.
        discrete: for each column, whether it holds integers or codes; found from samples if None.
        categories: for each column, its number of codes, 0 for numbers.
        context: of a conditional density, one row for all.
    """

    def __init__(
        self,
        density: Density,
        *,
        discrete: Sequence[bool] | None = None,
        categories: Sequence[int] | None = None,
        context: Shaped[Tensor, "1 ..."] | None = None,
    ) -> None:
        with torch.no_grad():
            self.rows = Rows(density, discrete, categories, context)
            self.mixture = self.rows.mixture()

    @torch.no_grad()
    def __call__(self, x: Shaped[Tensor, "B D"], samples: int = 256) -> Marginal:
        """Return log p of the values that are not NaN, from K = `samples` draws of the others for each row."""
        x = x.to(self.rows.pilot)
        parts = [self._score(part, samples) for part in torch.split(x, max(1, 2 * BLOCK // samples))]
        return Marginal(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _score(self, x: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        missing = x.isnan()
        gaps, empty = missing.any(1), missing.all(1)
        log_p = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        stderr, effective = torch.zeros_like(log_p), torch.full_like(log_p, float(samples))
        if not gaps.all():
            log_p[~gaps] = self.rows.log_prob(x[~gaps], samples)
        if len(incomplete := (gaps & ~empty).nonzero().flatten()):
            filled, log_q = self.mixture.given(x[incomplete]).draw(samples)
            log_w = self.rows.log_prob(filled.flatten(0, 1)).view(-1, samples) - log_q
            log_p[incomplete] = log_w.logsumexp(1) - math.log(samples)
            shares = log_w.softmax(1).nan_to_num(1.0)
            effective[incomplete] = 1 / shares.square().sum(1)
            stderr[incomplete] = (shares.square().sum(1) - 1 / samples).clamp_min(0).sqrt()
        return log_p, stderr, effective


def marginal_log_prob(
    density: Density,
    x: Shaped[Tensor, "B D"],
    *,
    samples: int = 256,
    discrete: Sequence[bool] | None = None,
    categories: Sequence[int] | None = None,
) -> Marginal:
    """Return log p of the values of rows that are not NaN, with torch's global generator; arguments as of `Marginals`.

    A density that marginalises scores them itself.
    """
    if density.marginalises:
        log_p = density.log_prob(x.to(density.device), samples=samples).double()
        return Marginal(log_p, torch.zeros_like(log_p), torch.full_like(log_p, float(samples)))
    return Marginals(density, discrete=discrete, categories=categories)(x, samples)
