"""Importing this module registers every statement, in the order of the notes."""

from loglik.verification import classifier, diffusion, likelihood, minimal_kl, normalisation

__all__ = ["classifier", "diffusion", "likelihood", "minimal_kl", "normalisation"]
