"""Mixture densities of targets given inputs, or of whole rows."""

from loglik.mixture.mixture import Mixture

__all__ = ["Mixture"]
