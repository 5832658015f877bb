"""Importing this module registers every statement, in the order of the notes."""

from loglik.verification import attention, classifier, likelihood, norms

__all__ = ["attention", "classifier", "likelihood", "norms"]
