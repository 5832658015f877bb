"""Conditional distributions of any density over rows: draws given values and ranges, and log p of some columns."""

from loglik.conditioning.completion import complete
from loglik.conditioning.condition import Condition, contains
from loglik.conditioning.exact import ColumnDistribution, HasColumns, HasConditionals
from loglik.conditioning.importance import Draws, NoRows, draw_given
from loglik.conditioning.marginal import Marginal, Marginals, marginal_log_prob
from loglik.conditioning.mixture import RowMixture
from loglik.conditioning.normal_scores import NormalScores

__all__ = [
    "ColumnDistribution",
    "Condition",
    "Draws",
    "HasColumns",
    "HasConditionals",
    "Marginal",
    "Marginals",
    "NoRows",
    "NormalScores",
    "RowMixture",
    "complete",
    "contains",
    "draw_given",
    "marginal_log_prob",
]
