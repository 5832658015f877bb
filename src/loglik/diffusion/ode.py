"""Solvers of ordinary differential equations: adaptive steps per example, or a fixed grid of high order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Solution", "adams", "solve"]

# Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae": order 5, with one of order 4 for the error
A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass(frozen=True)
class Solution:
    """x at the end, the number of calls of the function, and the number of rows in these calls."""

    x: Tensor
    evaluations: int
    rows: int


def solve(
    slope: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "B ..."],
    first: Float[Tensor, ""],
    last: Float[Tensor, ""],
    *,
    tolerance: float,
    max_steps: int = 1000,
) -> Solution:
    r"""Return $x(\text{last})$ of $dx/du = f(x, u)$, with an error below the tolerance in each step of each example.

    u has the shape (B,).

    An example's error is the root mean square over its dimensions of the error over $1 + \lvert x \rvert$. Examples
    that have finished leave the batch.

    Raises ValueError if that needs more than `max_steps` steps.
    """
    shape, total = x.shape, last - first
    longest = total.abs() / 8  # a longer step could pass by an error estimate that is small by chance
    x = x.flatten(1).clone()
    u = first.expand(len(x)).clone()
    h = (total / 20).expand(len(x)).clone()
    rows = torch.arange(len(x), device=x.device)
    k1 = slope(x.view(shape), u).flatten(1)
    evaluations, counted = 1, len(x)
    for _ in range(max_steps):
        now, start, step, size = x[rows], u[rows], h[rows].unsqueeze(1), (len(rows), *shape[1:])
        slopes = [k1[rows]]
        for a, c in zip(A, C, strict=True):
            point = now + step * sum(w * k for w, k in zip(a, slopes, strict=True) if w)
            slopes.append(slope(point.view(size), start + c * step.squeeze(1)).flatten(1))
        evaluations, counted = evaluations + 6, counted + 6 * len(rows)
        miss = step * sum(w * k for w, k in zip(E, slopes, strict=True) if w)
        scaled = (miss / (1 + torch.maximum(now.abs(), point.abs()))).square().mean(1).sqrt()
        good = scaled <= tolerance
        accepted = rows[good]
        x[accepted], k1[accepted] = point[good], slopes[-1][good]
        u[accepted] += h[accepted]
        factor = (0.9 * (tolerance / scaled.clamp_min(1e-20)) ** 0.2).clamp(0.2, 3.0)
        h[rows] = h[rows] * torch.where(good, factor, factor.clamp(max=1.0))
        left = last - u
        h = torch.where(h.abs() > longest, h.sign() * longest, h)
        h = torch.where(h.abs() > left.abs(), left, h)
        rows = rows[(left[rows] / total) > 1e-6]
        if not len(rows):
            return Solution(x.view(shape), evaluations, counted)
    raise ValueError(
        f"the ODE needs more than {max_steps} steps at tolerance {tolerance:g}: raise it, or train the network"
    )


def adams(
    rate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    x: Float[Tensor, "B ..."],
    grid: Float[Tensor, " N"],
    *,
    order: int = 5,
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"], Float[Tensor, " B"]]:
    r"""Return $x(u_N)$ of $dx/du = f(x, u)$, $L = \int g(x, u)\,du$ and its error, on a grid of N points with N calls.

    Adams-Bashforth's step predicts, the one call at the new point corrects it and the integral by Adams-Moulton's: both
    integrate the polynomial through the last values, of any spacing. The error that is returned is
    the sum over steps of $\lvert \delta L + \nabla \cdot \delta x \rvert$, where δ is what the correction of one order
    less would have given instead, and ∇ says how L and what is made of x(u_N) depend on x.

    Args:
        rate: from x and u of shape (B,) to f, g of shape (B,), and ∇ of the shape of x.
        order: number of values that predict; one more corrects.

    Source: Hairer, Nørsett and Wanner, "Solving ordinary differential equations I", sections III.1 and III.5.
    """
    points = grid.double().cpu()
    zero = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    slopes: list[Tensor] = []  # the newest first
    rates: list[Tensor] = []
    since, base, integral, error = 0, (x, zero, zero), zero, zero  # what was reached at the point `since`
    for i in range(len(grid)):
        f, g, gradient = rate(x, grid[i].expand(len(x)))
        slopes, rates = [f, *slopes][: order + 1], [g, *rates][: order + 1]
        nodes = points[max(0, i - order) : i + 1].flip(0)
        start = x
        if i:
            w = _integrals(nodes, points[since], points[i])
            gap = [a - b for a, b in zip(w, [*_integrals(nodes[:-1], points[since], points[i]), 0.0], strict=True)]
            moved = (gradient * _combine(gap, slopes)).flatten(1).sum(1)
            start, integral = base[0] + _combine(w, slopes), base[1] + _combine(w, rates)
            error = base[2] + (_combine(gap, rates) + moved).abs()
            if i >= order:  # before, each step integrates again from the start, as there are not yet `order` values
                since, base = i, (start, integral, error)
        if i + 1 < len(grid):
            x = start + _combine(_integrals(nodes[:order], points[i], points[i + 1]), slopes[:order])
    return start, integral, error


def _integrals(nodes: Tensor, first: Tensor, last: Tensor) -> list[float]:
    """Return weights w with ∫ p = Σ w_j p(node_j) over [first, last] for polynomials below degree n."""
    h = last - first
    position, power = (nodes - first) / h, torch.arange(len(nodes), dtype=nodes.dtype)
    return (h * torch.linalg.solve(position.unsqueeze(0) ** power.unsqueeze(1), 1 / (power + 1))).tolist()


def _combine(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    first, *rest = (w * v for w, v in zip(weights, values, strict=True))
    return sum(rest, first)
