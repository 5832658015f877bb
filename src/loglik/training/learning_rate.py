"""The learning rate over a training."""

from __future__ import annotations

import math

__all__ = ["rate_factor"]

LAST = 0.01  # of the learning rate, at the end of the training


def rate_factor(fraction_done: float, step: int, warmup: int) -> float:
    r"""Return the factor on the learning rate: a linear warm-up times a half cosine from 1 to 0.01.

    With the fraction f of the training that is done and W steps of warm-up, the factor of step k is
    $\min(1, (k + 1) / W) \left(0.01 + 0.99 \cdot \tfrac12 (1 + \cos \pi f)\right)$.

    >>> rate_factor(0.0, 0, 4), rate_factor(1.0, 100, 4)
    (0.25, 0.01)

    Reference: Loshchilov and Hutter 2017, "SGDR: stochastic gradient descent with warm restarts", eq. 5.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rise * (LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * min(fraction_done, 1.0))))
