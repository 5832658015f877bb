"""Priors over a VAE's latents, each a density of a family of its own."""

from __future__ import annotations

from typing import Literal, get_args

from loglik.density import Density, StandardNormal
from loglik.diffusion import Denoiser, Diffusion
from loglik.flows import Flow, LogisticMixture, autoregressions, couplings
from loglik.networks.mlp import MLP, ResidualMLP
from loglik.vae import VAE, Gaussian, VampPrior

__all__ = ["PRIORS", "Prior", "prior_of"]

Prior = Literal["normal", "vamp", "flow", "autoregressive", "hierarchical", "diffusion"]
PRIORS: tuple[str, ...] = get_args(Prior)
COMPONENTS = 100
FEATURES = 16


def prior_of(kind: str, latent: int, width: int, inputs: tuple[int, ...]) -> Density:
    """Return a prior over L numbers, whose networks have a width.

    `vamp` is a mixture of the posteriors of encoder inputs of a shape. Except for `vamp` and `diffusion`, priors start
    at or near N(0, I).
    """
    hidden = (width, width)
    if kind == "normal":
        return StandardNormal((latent,))
    if kind == "vamp":
        return VampPrior(latent, inputs, COMPONENTS)
    if kind == "flow":
        return Flow(couplings(latent, LogisticMixture(4), layers=2, hidden=hidden), StandardNormal((latent,)))
    if kind == "autoregressive":
        return Flow(autoregressions(latent, LogisticMixture(4), layers=1, hidden=hidden), StandardNormal((latent,)))
    if kind == "hierarchical":
        above = max(1, latent // 2)
        return VAE(MLP(latent, 2 * above, hidden), MLP(above, 2 * latent, hidden), Gaussian((latent,)), latent=above)
    if kind == "diffusion":
        network = ResidualMLP(latent, latent, width=width, depth=2, context=FEATURES)
        return Diffusion(Denoiser(network, features=FEATURES, event_shape=(latent,)), (latent,))
    raise ValueError(f"unknown prior {kind!r}: use {', '.join(PRIORS)}")
