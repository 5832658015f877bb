"""Variational autoencoders, their observation models and priors."""

from loglik.vae.kl import KLWeighting
from loglik.vae.ladder import LadderVAE
from loglik.vae.levels import Bernoulli, BetaBinomial, Categorical, Codes, DiscretisedLogistic, Integers
from loglik.vae.observation import Gaussian, Mixed, Observation
from loglik.vae.pixels import LocalPixels
from loglik.vae.vae import VAE
from loglik.vae.vamp import VampPrior

__all__ = [
    "VAE",
    "Bernoulli",
    "BetaBinomial",
    "Categorical",
    "Codes",
    "DiscretisedLogistic",
    "Gaussian",
    "Integers",
    "KLWeighting",
    "LadderVAE",
    "LocalPixels",
    "Mixed",
    "Observation",
    "VampPrior",
]
