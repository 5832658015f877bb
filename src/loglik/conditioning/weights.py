"""Weights of importance sampling: their effective number, tempering, and resampling."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

__all__ = ["effective_size", "log_mean", "resample", "tempered"]


def effective_size(log_w: Float64[Tensor, " S"]) -> float:
    r"""Return the effective sample size $(\sum w)^2 / \sum w^2$; 0 if all weights are 0."""
    if not log_w.isfinite().any():
        return 0.0
    return 1 / log_w.softmax(0).square().sum().item()


def log_mean(log_w: Float64[Tensor, " S"]) -> float:
    """Return the logarithm of the mean weight."""
    return log_w.logsumexp(0).item() - math.log(len(log_w))


def resample(weights: Float64[Tensor, " S"], n: int) -> Int64[Tensor, " n"]:
    """Draw n indices by weights that sum to 1, systematically, in random order."""
    at = (torch.arange(n, device=weights.device) + torch.rand(1, device=weights.device)) / n
    chosen = torch.searchsorted(weights.cumsum(0), at.to(weights)).clamp_max(len(weights) - 1)
    return chosen[torch.randperm(n, device=weights.device)]


def tempered(log_w: Float64[Tensor, " S"], enough: float) -> tuple[Float64[Tensor, " S"], float]:
    """Return weights to the highest power, at most 1, that leaves an effective number, and that number; they sum to 1.

    Source: Koblents and Míguez 2015, "A population Monte Carlo scheme with transformed weights".
    """
    if effective_size(log_w) >= enough:
        return log_w.softmax(0), effective_size(log_w)
    low, high = 0.0, 1.0
    for _ in range(20):
        power = (low + high) / 2
        low, high = (power, high) if effective_size(_power(log_w, power)) >= enough else (low, power)
    return _power(log_w, low).softmax(0), effective_size(_power(log_w, low))


def _power(log_w: Float64[Tensor, " S"], power: float) -> Float64[Tensor, " S"]:
    return torch.where(log_w.isfinite(), power * log_w, -torch.inf)
