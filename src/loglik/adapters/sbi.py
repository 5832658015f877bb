"""sbi_builder: our conditional densities as density estimators of sbi, for NPE and NLE."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from loglik.recipes import recipe

if TYPE_CHECKING:
    from loglik.adapters.sbi_estimator import DensityEstimator

__all__ = ["sbi_builder"]

# simulations are many and exact: a posterior needs more bins than a table, and noise on parameters would blur it
DEFAULTS: dict[str, dict[str, Any]] = {"flow": {"jitter": 0.0, "width": 128, "bins": 16}}


def sbi_builder(
    model: str = "flow",
    *,
    target: str = "posterior",
    embedding_net: nn.Module | None = None,
    **options: Any,
) -> Callable[[Tensor, Tensor], DensityEstimator]:
    """Return what sbi's trainers accept as `density_estimator`.

    The density standardises both sides by itself, from the rows that sbi trains on.

    Args:
        model: a family that models real vectors given inputs, or a variant: `flow`, `flow:maf`, `mixture`, `diffusion`.
            A lower bound, as a diffusion's, trains and samples; a posterior's `log_prob` is then that bound.
        target: what the trainer learns: NPE the posterior p(θ | x), NLE the likelihood p(x | θ).
        embedding_net: from the condition (B, ...) to features (B, E), trained with the density. Without it the
            condition is flattened.
        **options: of the model, as in docs/options.md; a flow's `jitter` is 0, `width` 128 and `bins` 16 here.

    Raises ValueError for an unknown model, target or option, and ImportError without sbi.

    Reference: Lueckmann et al. 2021, "Benchmarking simulation-based inference"; Papamakarios & Murray 2016, "Fast
    epsilon-free inference of simulation models with Bayesian conditional density estimation".
    """
    if target not in ("posterior", "likelihood"):
        raise ValueError(f"target must be posterior (for NPE) or likelihood (for NLE), got {target!r}")
    chosen = recipe(model)
    if chosen.family in ("classifier", "independent"):
        raise ValueError(f"{model} is no p(θ | x) of vectors: use flow, mixture, autoregressive, vae or diffusion")
    parsed = chosen.parse({**DEFAULTS.get(chosen.family, {}), **options})
    try:
        from loglik.adapters.sbi_estimator import DensityEstimator
    except ImportError as error:
        raise ImportError("sbi_builder needs sbi: pip install sbi") from error

    def build(theta: Tensor, x: Tensor) -> DensityEstimator:
        input, condition = (theta, x) if target == "posterior" else (x, theta)
        return DensityEstimator.of(lambda spec: chosen.build(spec, parsed), input, condition, embedding_net)

    return build
