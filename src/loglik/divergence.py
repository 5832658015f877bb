r"""Maximum likelihood as minimal KL: entropy, cross-entropy and KL divergence of densities.

For densities p and q of the same events,

$\underbrace{\mathbb E_{p}[-\log q(x)]}_{\text{cross-entropy}} = \underbrace{\mathbb E_p[-\log p(x)]}_{H(p)} +
\underbrace{\mathbb E_p[\log p(x) - \log q(x)]}_{\mathrm{KL}(p \,\|\, q) \,\ge\, 0}$.

Training minimises the cross-entropy of the data's distribution and the model, `Density.loss`. The entropy of the data
does not depend on the model, so the maximum of the likelihood is the minimum of
$\mathrm{KL}(p_{data} \,\|\, p_\theta)$. Its value stays unknown, as $H(p_{data})$ is; between two densities all three
can be estimated.

Reference: Bishop 2006, "Pattern recognition and machine learning", section 1.6.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributions import Distribution

from loglik.density import Density

__all__ = ["Estimate", "cross_entropy", "entropy", "kl_divergence"]

AT_ONCE = 1024  # draws in one call of a density


class Estimate(NamedTuple):
    """A Monte Carlo mean in nats, and its standard error."""

    nats: float
    stderr: float


def kl_divergence(
    p: Density | Distribution,
    q: Density | Distribution,
    n: int = 10_000,
    *,
    context: Shaped[Tensor, "n ..."] | None = None,
) -> Estimate:
    r"""Estimate $\mathrm{KL}(p \,\|\, q) = \mathbb E_p[\log p(x) - \log q(x)]$ from n draws of p.

    The result is unbiased where both densities are exact. Where `q.log_prob` is a lower bound it is too large on
    average, and where `p.log_prob` is one too small.

    Args:
        p, q: densities of the same events, or torch distributions with batch shape ().
        n: number of draws, at least 2, from torch's global generator.
        context: n rows, where p or q is conditional.

    Raises ValueError for events of different kinds, for a batch of distributions, and for fewer than 2 draws.

    >>> from loglik.density import StandardNormal
    >>> kl_divergence(StandardNormal((3,)), StandardNormal((3,)))
    Estimate(nats=0.0, stderr=0.0)
    """
    if _events(p) != _events(q):
        raise ValueError(
            f"p and q must be densities of the same events, got {_events(p)} and {_events(q)}: their divergence is "
            "not defined"
        )
    return _mean(p, n, context, lambda x, c: _log_prob(p, x, c) - _log_prob(q, x, c))


def cross_entropy(
    p: Density | Distribution,
    q: Density | Distribution,
    n: int = 10_000,
    *,
    context: Shaped[Tensor, "n ..."] | None = None,
) -> Estimate:
    r"""Estimate $\mathbb E_p[-\log q(x)] = H(p) + \mathrm{KL}(p \,\|\, q)$ from n draws of p.

    It is what `q.loss` estimates where the data are draws of p. The arguments are those of `kl_divergence`.
    """
    return _mean(p, n, context, lambda x, c: -_log_prob(q, x, c))


def entropy(p: Density | Distribution, n: int = 10_000, *, context: Shaped[Tensor, "n ..."] | None = None) -> Estimate:
    r"""Estimate $H(p) = \mathbb E_p[-\log p(x)]$ from n draws of p.

    The arguments are those of `kl_divergence`. The entropy of real data may be negative.
    """
    return cross_entropy(p, p, n, context=context)


@torch.no_grad()
def _mean(
    p: Density | Distribution,
    n: int,
    context: Tensor | None,
    value: Callable[[Tensor, Tensor | None], Float[Tensor, " B"]],
) -> Estimate:
    """Return the mean of a function of (x, context) over n draws of p."""
    if n < 2:
        raise ValueError(f"n must be at least 2 for a standard error, got {n}")
    if context is not None and len(context) != n:
        raise ValueError(f"context must have one row per draw: {n}, got {len(context)}")
    parts = []
    for start in range(0, n, AT_ONCE):
        size = min(AT_ONCE, n - start)
        rows = None if context is None else context[start : start + size]
        x = p.sample((size,)) if isinstance(p, Distribution) else p.sample(size, rows)
        parts.append(value(x, rows).double())
    values = torch.cat(parts)
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(n))


def _log_prob(p: Density | Distribution, x: Tensor, context: Tensor | None) -> Float[Tensor, " B"]:
    if not isinstance(p, Distribution):
        return p.log_prob(x, context)
    if p.batch_shape:
        raise ValueError(f"a divergence is between single distributions, got batch shape {tuple(p.batch_shape)}")
    log_p: Tensor = p.log_prob(x)
    return log_p


def _events(p: Density | Distribution) -> str:
    discrete = p.support.is_discrete if isinstance(p, Distribution) else p.discrete  # type: ignore[union-attr]
    return f"{'discrete' if discrete else 'real'} events of shape {tuple(p.event_shape)}"
