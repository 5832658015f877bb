"""Densities that learn nothing: what every trained density is read against."""

from loglik.baselines.independent import Independent

__all__ = ["Independent"]
