"""Events that can be enumerated, known densities to learn, and a normalised density near given samples."""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from loglik.data.spec import DataSpec

__all__ = ["MAX_EVENTS", "events_of", "gaussian_mixture", "gaussian_near"]

MAX_EVENTS = 4096


def events_of(spec: DataSpec) -> Shaped[Tensor, "N ..."] | None:
    """Return every event of a spec; None where they are more than 4,096 or not finitely many."""
    if spec.levels is not None:
        counts = [spec.levels] * spec.dims
    elif spec.columns and all(spec.categories):
        counts = list(spec.categories)
    else:
        return None
    if sum(math.log(count) for count in counts) > math.log(MAX_EVENTS) + 1e-9:
        return None
    rows = torch.tensor(list(itertools.product(*map(range, counts))))
    dtype = torch.uint8 if spec.levels is not None and spec.levels <= 256 else torch.float32
    return rows.to(dtype).view(len(rows), *spec.event_shape)


def gaussian_mixture(
    weights: Float[Tensor, " K"], means: Float[Tensor, "K D"], covariances: Float[Tensor, "K D D"]
) -> MixtureSameFamily:
    r"""Return $q(x) = \sum_k \pi_k \mathcal N(x; \mu_k, \Sigma_k)$, which is normalised by its formula."""
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))


def gaussian_near(x: Shaped[Tensor, "N ..."], *, wider: float = 1.0, components: int = 4) -> MixtureSameFamily:
    """Return a mixture of Gaussians that is fitted to samples, its standard deviations multiplied by `wider`."""
    from sklearn.mixture import GaussianMixture

    rows = x.flatten(1).double().cpu()
    scale = rows.std(0).clamp_min(1e-12)
    fitted = GaussianMixture(components, reg_covar=1e-4, random_state=0).fit((rows / scale).numpy())
    means, covariances = torch.tensor(fitted.means_) * scale, torch.tensor(fitted.covariances_)
    covariances = covariances * scale.unsqueeze(1) * scale * wider**2
    return gaussian_mixture(torch.tensor(fitted.weights_), means, covariances)
