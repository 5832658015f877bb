"""Importing this module registers every statement, in the order of the notes."""

# isort: off
from loglik.verification import attention, norms, convolution, depth, shortcuts
from loglik.verification import vae, vae_training
from loglik.verification import classifier, sgd, diffusion
from loglik.verification import likelihood, normalisation, minimal_kl, flow
# isort: on

__all__ = [
    "attention",
    "classifier",
    "convolution",
    "depth",
    "diffusion",
    "flow",
    "likelihood",
    "minimal_kl",
    "normalisation",
    "norms",
    "sgd",
    "shortcuts",
    "vae",
    "vae_training",
]
