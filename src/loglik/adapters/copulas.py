"""Gaussian copulas of the library copulas, which sdv's GaussianCopulaSynthesizer is built on, as densities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.adapters.foreign import Foreign, preprocessed
from loglik.density import Density

__all__ = ["FromCopulas", "from_copulas"]

EPSILON = float(np.finfo(np.float32).eps)  # by which copulas keeps probabilities from 0 and 1


class FromCopulas(Foreign):
    r"""$\log p(x) = \sum_d \log f_d(x_d) + \log \mathcal N(z; 0, R) - \sum_d \log \varphi(z_d)$.

    The normal scores are $z_d = \Phi^{-1}(F_d(x_d))$. The library's own `probability_density` is $\mathcal N(z; 0, R)$
    only, a density of the normal scores.
    """

    def __init__(self, model: Any) -> None:
        super().__init__("copulas", (len(model.columns),), dtype=torch.float64)
        self._model = model
        correlation = np.asarray(model.correlation, dtype=np.float64)
        self.register_buffer("correlation", torch.tensor(correlation), persistent=False)

    def log_prob(
        self, x: Shaped[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x, context)
        rows = x.double().cpu().numpy()
        columns = list(zip(self._model.univariates, rows.T, strict=True))
        u = torch.as_tensor(np.column_stack([marginal.cdf(column) for marginal, column in columns]))
        log_f = [np.log(np.maximum(marginal.probability_density(column), 0)) for marginal, column in columns]
        z = torch.special.ndtri(u.clamp(EPSILON, 1 - EPSILON))
        zeros = torch.zeros(z.shape[1], dtype=z.dtype)
        joint = torch.distributions.MultivariateNormal(zeros, self.get_buffer("correlation").cpu())
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
        log_p = torch.as_tensor(np.sum(log_f, axis=0)) + joint.log_prob(z) - normal
        return log_p.to(x.device)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n D"]:
        correlation = self.get_buffer("correlation").cpu()
        zeros = torch.zeros(len(correlation), dtype=torch.float64)
        z = torch.distributions.MultivariateNormal(zeros, correlation).sample((n,))
        u = torch.special.ndtr(z).numpy()
        columns = [
            marginal.percent_point(column) for marginal, column in zip(self._model.univariates, u.T, strict=True)
        ]
        return torch.as_tensor(np.column_stack(columns), device=self.device)


def from_copulas(model: Any, **preprocessing: Any) -> Density:
    """Return a fitted `GaussianMultivariate` of copulas as a density of its columns, which must be numbers.

    `preprocessing` has `mean`, `scale`, `transform` and `levels`, as in `preprocessed`.

    Raises ValueError for another or an unfitted model, and for columns that are constants or functions of others.
    """
    names = ("univariates", "correlation", "columns")
    if not all(hasattr(model, name) for name in names):
        raise ValueError(f"expected a GaussianMultivariate of copulas, got {type(model).__name__}")
    if model.correlation is None or not model.univariates:
        raise ValueError("the copula is not fitted: call its fit(table) first")
    constant = [
        str(name)
        for name, marginal in zip(model.columns, model.univariates, strict=True)
        if getattr(marginal, "_constant_value", None) is not None
    ]
    if constant:
        raise ValueError(f"the columns {', '.join(constant)} are constant, and have no density: leave them out")
    if np.linalg.eigvalsh(np.asarray(model.correlation)).min() <= 0:
        raise ValueError("the copula's correlation is singular: leave out columns that others determine")
    return preprocessed(FromCopulas(model), **preprocessing)
