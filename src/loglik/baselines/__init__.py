"""Baselines: densities without dependence between dimensions, to compare trained densities with."""

from loglik.baselines.independent import Independent

__all__ = ["Independent"]
