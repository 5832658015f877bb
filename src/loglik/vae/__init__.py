"""Variational autoencoders and their observation models."""

from loglik.vae.observation import Categorical, DiscretisedLogistic, Gaussian, Observation
from loglik.vae.vae import VAE

__all__ = ["VAE", "Observation", "Categorical", "DiscretisedLogistic", "Gaussian"]
