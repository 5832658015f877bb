"""Autoregressive densities over sequences of integers."""

from loglik.autoregressive.autoregressive import Autoregressive

__all__ = ["Autoregressive"]
