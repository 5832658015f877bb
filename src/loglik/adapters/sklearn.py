"""scikit-learn's densities: Gaussian mixtures, kernel densities, linear factor models, and pipelines with them."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from loglik.adapters.foreign import Foreign, linear_of, preprocessed
from loglik.density import Bound, Density
from loglik.flows import Flow

__all__ = ["FromSklearn", "from_sklearn"]

# score_samples of these is a log-density, in nats
KINDS = ("GaussianMixture", "BayesianGaussianMixture", "KernelDensity", "PCA", "FactorAnalysis")


class FromSklearn(Foreign):
    """A fitted estimator of scikit-learn whose `score_samples` is log p, in float64 on the CPU.

    That of a `BayesianGaussianMixture` is a lower bound of the log posterior predictive density: it takes the
    expectation of each component's logarithm. That of a kernel density is an estimate if a tolerance is set. The
    constant of scikit-learn's cosine kernel is wrong in even dimensions, and is corrected.
    """

    def __init__(self, estimator: Any) -> None:
        super().__init__("scikit-learn", (int(estimator.n_features_in_),), dtype=torch.float64)
        self._estimator = estimator
        self._correction = _cosine_correction(estimator) if getattr(estimator, "kernel", "") == "cosine" else 0.0

    @property
    def bound(self) -> Bound:
        kind = type(self._estimator).__name__
        if kind == "BayesianGaussianMixture":
            return Bound.LOWER
        tolerant = kind == "KernelDensity" and (self._estimator.atol > 0 or self._estimator.rtol > 0)
        return Bound.ESTIMATE if tolerant else Bound.EXACT

    def log_prob(
        self, x: Shaped[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x, context)
        log_p = self._estimator.score_samples(x.double().cpu().numpy())
        return torch.as_tensor(log_p + self._correction, dtype=torch.float64, device=x.device)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n D"]:
        seed = int(torch.randint(2**31, ()))
        own, generator = self._estimator, np.random.default_rng(seed)
        if type(own).__name__ == "KernelDensity":
            x = _sample_kernels(own, n, generator)
        elif hasattr(own, "sample"):
            own = copy.copy(own)
            own.random_state = seed  # the estimator's own gives the same samples in each call
            x = generator.permutation(own.sample(n)[0])  # they are in the order of the components
        else:
            x = generator.multivariate_normal(own.mean_, own.get_covariance(), size=n)
        return torch.as_tensor(x, dtype=torch.float64, device=self.device)


def from_sklearn(estimator: Any, *, log_density: bool = False, **preprocessing: Any) -> Density:
    """Return a fitted estimator of scikit-learn, or a pipeline that ends in one, as a density.

    Args:
        estimator: a `GaussianMixture`, `BayesianGaussianMixture`, `KernelDensity`, `PCA` or `FactorAnalysis`; or a
            pipeline with scalers and a PCA of all dimensions before it, whose log-determinants are counted.
        log_density: believe that the `score_samples` of another estimator is a log-density in nats.
        **preprocessing: `mean`, `scale`, `transform` and `levels`, as in `preprocessed`.

    Raises ValueError for an unfitted estimator, and for one whose scores are no log-densities.
    """
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, Pipeline):
        *steps, last = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        density = _density(last, log_density)
        maps = [linear_of(step) for step in steps]
        return preprocessed(Flow(maps, density) if maps else density, **preprocessing)
    return preprocessed(_density(estimator, log_density), **preprocessing)


def _density(estimator: Any, log_density: bool) -> Density:
    """Return a fitted estimator as a density. Raises ValueError for others."""
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    name = type(estimator).__name__
    run = getattr(estimator, "run_", None)
    if isinstance(getattr(run, "density", None), Density):  # an estimator of loglik.sklearn
        raise ValueError(f"{name} is an estimator of loglik: pass its run_")
    known = name in KINDS and type(estimator).__module__.startswith("sklearn.")
    if not known and not (log_density and hasattr(estimator, "score_samples")):
        if hasattr(estimator, "predict_proba"):
            raise ValueError(f"{name} is a classifier, p(label | data): use loglik.adapters.classifier")
        why = "its scores are no log-densities" if hasattr(estimator, "score_samples") else "it has no score_samples"
        raise ValueError(f"{name} is no density, {why}: use one of {', '.join(KINDS)}, or a pipeline that ends in one")
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise ValueError(f"{name} is not fitted: call its fit(x) first") from None
    if name == "KernelDensity":
        metric, power = estimator.metric, (estimator.metric_params or {}).get("p", 2)
        if metric not in ("euclidean", "l2") and not (metric == "minkowski" and power == 2):
            raise ValueError(
                f"KernelDensity(metric={metric!r}) is not normalised: scikit-learn's constant is of the Euclidean one"
            )
    return FromSklearn(estimator)


def _cosine_correction(estimator: Any) -> float:
    r"""Return the logarithm of the cosine kernel's constant, less scikit-learn's.

    It is $-\log \int k(\lVert x \rVert / h)\, dx = -\log(S_D h^D \int_0^1 r^{D-1} k(r)\, dr)$ with the bandwidth h,
    $k(r) = \cos(\pi r / 2)$ and the surface $S_D = 2 \pi^{D/2} / \Gamma(D/2)$ of the unit sphere.
    """
    from sklearn.neighbors import KernelDensity

    dims, width = estimator.n_features_in_, estimator.bandwidth_
    nodes, weights = np.polynomial.legendre.leggauss(64)
    r = (nodes + 1) / 2
    integral = float(weights @ (r ** (dims - 1) * np.cos(np.pi * r / 2))) / 2
    surface = math.log(2) + dims / 2 * math.log(math.pi) - math.lgamma(dims / 2)
    centre = np.zeros((1, dims))
    own = KernelDensity(kernel="cosine", bandwidth=width).fit(centre).score_samples(centre)[0]
    return -(surface + dims * math.log(width) + math.log(integral)) - float(own)


def _sample_kernels(estimator: Any, n: int, generator: np.random.Generator) -> NDArray[np.float64]:
    r"""Draw from a kernel density: a row, a direction, and a radius whose density is $\propto r^{D-1} k(r)$."""
    rows, kernel = np.asarray(estimator.tree_.data), estimator.kernel
    weights = estimator.tree_.sample_weight
    p = None if weights is None else np.asarray(weights) / np.sum(weights)
    centres = rows[generator.choice(len(rows), size=n, p=p)]
    dims = rows.shape[1]
    if kernel == "gaussian":
        return centres + estimator.bandwidth_ * generator.standard_normal((n, dims))
    direction = generator.standard_normal((n, dims))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radii = {
        "tophat": lambda size: generator.beta(dims, 1, size),
        "linear": lambda size: generator.beta(dims, 2, size),
        "epanechnikov": lambda size: np.sqrt(generator.beta(dims / 2, 2, size)),
        "exponential": lambda size: generator.gamma(dims, size=size),
        "cosine": lambda size: _cosine_radii(dims, size, generator),
    }
    return centres + estimator.bandwidth_ * radii[kernel](n)[:, None] * direction


def _cosine_radii(dims: int, n: int, generator: np.random.Generator) -> NDArray[np.float64]:
    r"""Draw radii with a density $\propto r^{D-1} \cos(\pi r / 2)$, which is at most $\frac\pi2 r^{D-1} (1 - r)$."""
    kept: list[NDArray[np.float64]] = []
    while sum(map(len, kept)) < n:
        r = generator.beta(dims, 2, size=2 * n)
        accept = generator.random(2 * n) * np.pi / 2 * (1 - r) < np.cos(np.pi * r / 2)
        kept.append(r[accept])
    return np.concatenate(kept)[:n]
