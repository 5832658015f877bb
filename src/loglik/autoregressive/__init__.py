"""Autoregressive densities over sequences of integers, and over the columns of a table in any order."""

from loglik.autoregressive.any_order import AnyOrder
from loglik.autoregressive.autoregressive import Autoregressive
from loglik.autoregressive.column_distributions import CodeDistribution, ColumnDistribution, NumberDistribution
from loglik.autoregressive.grouped_copula import GroupedCopula

__all__ = [
    "AnyOrder",
    "Autoregressive",
    "CodeDistribution",
    "ColumnDistribution",
    "GroupedCopula",
    "NumberDistribution",
]
