"""Importing this module registers every statement, in the order of the notes."""

from loglik.verification import classifier, likelihood, norms

__all__ = ["classifier", "likelihood", "norms"]
