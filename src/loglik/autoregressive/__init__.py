"""Autoregressive densities over sequences of whole numbers."""

from loglik.autoregressive.autoregressive import Autoregressive

__all__ = ["Autoregressive"]
