"""Importing this module registers every statement, in the order of the notes."""

from loglik.verification import attention, classifier, convolution, depth, likelihood, norms, shortcuts

__all__ = ["attention", "classifier", "convolution", "depth", "likelihood", "norms", "shortcuts"]
