"""Importing this module registers every statement, in the order of the notes."""

from loglik.verification import classifier, flow, likelihood, minimal_kl, normalisation, vae, vae_training

__all__ = ["classifier", "flow", "likelihood", "minimal_kl", "normalisation", "vae", "vae_training"]
