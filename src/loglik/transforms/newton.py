"""The root of an increasing function by Newton's method, safeguarded by bisection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["safeguarded_newton"]


@torch.no_grad()
def safeguarded_newton(
    residual: Callable[[Float[Tensor, "*N"]], tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]],
    low: Float[Tensor, "*N"],
    high: Float[Tensor, "*N"],
    start: Float[Tensor, "*N"],
    *,
    steps: int = 40,
) -> Float[Tensor, "*N"]:
    r"""Return x with f(x) = 0 for every element of an increasing f, which has its root between `low` and `high`.

    Each step shrinks the bracket to the side of the root and goes to $x - f(x) / f'(x)$, or to the middle of the
    bracket where that lies outside. Gradients are not recorded.

    Args:
        residual: from x to f(x) and Newton's step f(x) / f'(x).
        low, high: a bracket of the root.
        start: the first x, in the bracket.
        steps: number of steps; 40 bisections alone gain twelve decimal digits.

    Reference: Press et al. 2007, "Numerical recipes", section 9.4.
    """

    def improved(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, step = residual(x)
        low, high = torch.where(value < 0, x, low), torch.where(value < 0, high, x)
        newton = x - step
        return torch.where((newton > low) & (newton < high), newton, (low + high) / 2), low, high

    state = start, low, high
    if torch.compiler.is_exporting():  # a loop in the graph, where unrolled steps would make a large one
        first = torch.zeros((), dtype=torch.int64), *state
        x: Tensor = torch.while_loop(lambda i, *_: i < steps, lambda i, *xs: (i + 1, *improved(*xs)), first)[1]
        return x
    for _ in range(steps):
        state = improved(*state)
    return state[0]
