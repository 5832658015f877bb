"""Priors over a VAE's latents, each a density of a family of its own."""

from __future__ import annotations

from loglik.density import Density, StandardNormal
from loglik.diffusion import Denoiser, Diffusion
from loglik.flows import Affine, Chain, Flow, LogisticMixture, Spline, autoregressions, couplings
from loglik.networks.mlp import MLP, ResidualMLP
from loglik.vae import VAE, Gaussian, VampPrior

__all__ = ["PRIORS", "prior_of"]

PRIORS = ("normal", "vamp", "flow", "autoregressive", "hierarchical", "diffusion")
COMPONENTS = 100
INTERVAL = 4.0
FEATURES = 16


def prior_of(kind: str, latent: int, width: int, inputs: tuple[int, ...]) -> Density:
    """A prior over L numbers: `normal`, `vamp` (of encoder inputs of a shape), `flow`, `autoregressive`, `hierarchical`
    or `diffusion`, with networks of a width; all but `vamp` and `diffusion` start at or near N(0, I)."""
    hidden = (width, width)
    if kind == "normal":
        return StandardNormal((latent,))
    if kind == "vamp":
        return VampPrior(latent, inputs, COMPONENTS)
    if kind == "flow":
        map = Chain(Affine(), Spline(8, INTERVAL))
        return Flow(couplings(latent, map, layers=4, hidden=hidden), StandardNormal((latent,)))
    if kind == "autoregressive":
        mixture = LogisticMixture(4)
        return Flow(autoregressions(latent, mixture, layers=1, hidden=hidden), StandardNormal((latent,)))
    if kind == "hierarchical":
        above = max(1, latent // 2)
        return VAE(MLP(latent, 2 * above, hidden), MLP(above, 2 * latent, hidden), Gaussian((latent,)), latent=above)
    if kind == "diffusion":
        network = ResidualMLP(latent, latent, width=width, depth=2, context=FEATURES)
        return Diffusion(Denoiser(network, features=FEATURES, event_shape=(latent,)), (latent,))
    raise ValueError(f"unknown prior {kind!r}: use {', '.join(PRIORS)}")
