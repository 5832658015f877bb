r"""Missing values, NaN: a density of rows with gaps from a density of complete rows and an imputer.

$x_o$ are a row's observed values and $x_m$ its missing ones.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.density import Bound, Density, sample_categories
from loglik.draws import draw_terms, draw_weights, expand_context
from loglik.explicit_noise import is_explicit

__all__ = ["Imputed", "Imputer", "hot_deck"]

AT_ONCE = 2**16  # numbers of rows in one call of the density
CANDIDATES = 64  # draws of the imputer, of which `Imputed.fill` chooses one
COMPLETE = 0.5  # the share of complete rows from which a density is initialised by them alone


@runtime_checkable
class Imputer(Protocol):
    """A density that fills missing values."""

    def fill_with_log_prob(
        self, x: Float[Tensor, "B D"], context: Tensor | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        r"""Return x with NaN replaced by draws from $q(x_m \mid x_o)$, and $\log q(x_m \mid x_o)$; 0 of a complete row.

        A random number whose exponential $1/q$ is unbiased may stand for $\log q$: importance weights stay unbiased.
        """
        ...


def hot_deck(x: Shaped[Tensor, "N ..."]) -> Shaped[Tensor, "N ..."]:
    """Return rows with each NaN replaced by a random observed value of the same column, as evenly as possible.

    This keeps every column's own distribution; a column without any value becomes 0. Complete rows are returned as
    they are, without a random number.

    Reference: Andridge and Little 2010, "A review of hot deck imputation for survey non-response".
    """
    if not x.is_floating_point() or x.is_meta:
        return x
    missing = x.isnan()
    if not missing.any():
        return x
    columns, gaps = x.flatten(1).clone(), missing.flatten(1)
    for d in gaps.any(0).nonzero().flatten().tolist():
        observed, count = columns[~gaps[:, d], d], int(gaps[:, d].sum())
        if len(observed) == 0:
            columns[:, d] = 0
            continue
        even = torch.linspace(0, len(observed) - 1, count, device=x.device).round().long()
        order = torch.randperm(count, device=x.device)
        columns[gaps[:, d], d] = observed.sort().values[even[order]]
    return columns.view(x.shape)


class Imputed(Density):
    r"""A density p of complete rows, and an imputer q with which it scores rows with missing values:

    $\log p(x_o) = \log \mathbb E_{q(x_m \mid x_o)} \left[\frac{p(x_o, x_m)}{q(x_m \mid x_o)}\right]
    \ge \mathbb E_{q(x_m \mid x_o)}[\log p(x_o, x_m) - \log q(x_m \mid x_o)]$.

    `log_prob` draws $x_m$ and returns the logarithm of the weight; `samples=K` averages K weights where p is exact or
    importance weighted (Burda et al. 2016), else K logarithms. The bound is `LOWER`, though for a complete row
    `log_prob` is exactly p's.

    `loss` trains q by its own likelihood of the observed values, and p by its loss on rows that q fills: the E step of
    an EM algorithm by q. `sample` is p's.

    Args:
        density: p, of complete rows.
        imputer: q, a density with `fill_with_log_prob` that marginalises missing values.

    Raises:
        ValueError: densities over events of different shapes, or that are not of rows; a q that is no imputer.

    Reference: Mattei and Frellsen 2019, "MIWAE: deep generative modelling and imputation of incomplete data sets", for
    the bound; Wei and Tanner 1990, "A Monte Carlo implementation of the EM algorithm".
    """

    marginalises = True

    def __init__(self, density: Density, imputer: Density) -> None:
        super().__init__()
        if len(density.event_shape) != 1 or density.event_shape != imputer.event_shape:
            raise ValueError(
                f"density and imputer must be over the same rows (D,), got events of shape {density.event_shape} and "
                f"{imputer.event_shape}"
            )
        if not (isinstance(imputer, Imputer) and imputer.marginalises):
            raise ValueError(f"a {type(imputer).__name__} has no fill_with_log_prob: use a VAE of rows as the imputer")
        self.imputer, self.density = imputer, density
        self.event_shape, self.discrete = density.event_shape, density.discrete
        self.conditional = density.conditional or imputer.conditional

    @property
    def bound(self) -> Bound:
        return Bound.weakest(Bound.LOWER, self.density.bound)

    @property
    def importance_weighted(self) -> bool:
        return self.density.importance_weighted

    @property
    def warming_up(self) -> bool:
        return self.density.warming_up or self.imputer.warming_up

    def progress(self, fraction_done: float) -> None:
        self.density.progress(fraction_done)
        self.imputer.progress(fraction_done)

    def output_layers(self) -> tuple[nn.Module, ...]:
        return self.density.output_layers() + self.imputer.output_layers()

    def _fill(self, x: Tensor, context: Tensor | None) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        """Draw the missing values from q: (rows, log q)."""
        context = context if self.imputer.conditional else None
        if (
            is_explicit() or not x.is_cpu or (gaps := x.isnan().any(1)).all()
        ):  # other devices would wait for the number of rows
            return self.imputer.fill_with_log_prob(x, context)  # type: ignore[operator, no-any-return]
        log_q = x.new_zeros(len(x))
        if gaps.any():
            own = None if context is None else context[gaps]
            drawn, log_q_drawn = self.imputer.fill_with_log_prob(x[gaps], own)  # type: ignore[operator]
            x, log_q = x.clone(), log_q.to(log_q_drawn.dtype)
            x[gaps], log_q[gaps] = drawn, log_q_drawn
        return x, log_q

    def _own(self, context: Tensor | None) -> Tensor | None:
        return context if self.density.conditional else None

    @property
    def _at_once(self) -> int:
        return max(1, AT_ONCE // self.event_shape[0])

    def log_prob(
        self, x: Float[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x, context)

        def log_weight(rows: Tensor, contexts: Tensor | None) -> Tensor:
            filled, log_q = self._fill(rows, contexts)
            return self.density.log_prob(filled, self._own(contexts)) - log_q

        weighted = self.importance_weighted
        return draw_weights(log_weight, x, context, samples, importance_weighted=weighted, at_once=self._at_once)

    def terms(
        self, x: Float[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return p's terms of the filled rows, or `filled rows` if p is exact, and `imputation`, which is -log q."""

        def terms(rows: Tensor, contexts: Tensor | None) -> dict[str, Tensor]:
            filled, log_q = self._fill(rows, contexts)
            own = self._own(contexts)
            return {
                **(self.density.terms(filled, own) or {"filled rows": self.density.log_prob(filled, own)}),
                "imputation": -log_q,
            }

        weighted = self.importance_weighted
        return draw_terms(terms, x, context, samples, importance_weighted=weighted, at_once=self._at_once)

    def loss(self, x: Float[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        self.check(x, context)
        with torch.no_grad():
            filled, log_q = self._fill(x, context)
        imputers = self.imputer.loss(x, context if self.imputer.conditional else None)
        # the imputer's loss adds its gradient, and 0 to the value, which is minus the bound
        return self.density.loss(filled, self._own(context)) + log_q.mean() + (imputers - imputers.detach())

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        return self.density.sample(n, self._own(context))

    def fill_with_log_prob(
        self, x: Float[Tensor, "B D"], context: Tensor | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        """Fill as the imputer does."""
        return self._fill(x, context)

    @torch.no_grad()
    def fill(
        self, x: Float[Tensor, "B D"], context: Tensor | None = None, *, candidates: int = CANDIDATES
    ) -> Float[Tensor, "B D"]:
        r"""Return x with NaN replaced by draws from $p(x_m \mid x_o)$, as nearly as the candidates of q allow.

        One of the candidates is chosen with probabilities proportional to $p(x_o, x_m) / q(x_m \mid x_o)$ (sampling
        importance resampling; Rubin 1988): exact in the limit of many candidates where p is exact or importance
        weighted. Where it is not, the candidates are q's, weighted by the bound of p.
        """
        self.check(x, context)
        rows, contexts = x.repeat_interleave(candidates, 0), expand_context(context, candidates)
        filled, log_q = self._fill(rows, contexts)
        log_weight = (self.density.log_prob(filled, self._own(contexts)) - log_q).view(len(x), candidates)
        chosen = sample_categories(log_weight.softmax(1))
        kept = filled.view(len(x), candidates, -1)[torch.arange(len(x), device=x.device), chosen]
        return torch.where(x.isnan(), kept, x)

    def check(self, x: Float[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        self.imputer.check(x, context if self.imputer.conditional else None)
        self.check_context(context)

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        self.density.check_context(self._own(context))

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "N D"], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Initialise q by all rows, and p by the complete ones, or by all with gaps filled by `hot_deck` if few are."""
        self.imputer.initialise(x, context if self.imputer.conditional else None)
        complete = ~x.isnan().any(1)
        own = self._own(context)
        if not x.is_meta and complete.double().mean() >= COMPLETE and complete.sum() >= 10 * x.shape[1]:
            self.density.initialise(x[complete], None if own is None else own[complete])
        else:
            self.density.initialise(hot_deck(x), own)

    def numerical_error(
        self, x: Float[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, " B"] | None:
        return self.density.numerical_error(self._fill(x, context)[0], self._own(context))
