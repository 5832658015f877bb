"""Continuous flows: an ordinary differential equation from data to noise."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.density import Bound
from loglik.noise import draw_rows
from loglik.transforms.transform import Transform

__all__ = ["Continuous"]

FIXED_POINT_STEPS = 12  # to invert one solver step; each reduces the error by about (step size · Lipschitz constant)


class Continuous(Transform):
    r"""Solve $\dot x = f(x, t)$ from data at t = 0 to noise at t = 1.

    $\log\det = \int_0^1 \operatorname{tr}(\partial f / \partial x)\, dt$.

    The solver is the classical Runge-Kutta method of order 4 with a fixed number of steps. Decoding inverts each step
    by fixed-point iteration, so that it is the inverse of encoding up to rounding, not only up to the solver's error.
    The integral of the trace has an error of order steps⁻⁴.

    Args:
        network: f, from (B, D) and a context (B, 1 + E), the time and the flow's context, to (B, D).
        steps: number of solver steps.
        probes: number of random vectors ε in the estimate $\mathbb E\, \varepsilon^\top (\partial f / \partial x)\,
            \varepsilon$ of the trace, which makes log-probabilities estimates; None for the exact trace, from D
            derivatives.

    Raises:
        ValueError: steps or probes below 1.

    References: Chen et al. 2018, "Neural ordinary differential equations", section 4; Grathwohl et al. 2019, "FFJORD".
    """

    def __init__(self, network: nn.Module, *, steps: int = 8, probes: int | None = None) -> None:
        super().__init__()
        if steps < 1 or (probes is not None and probes < 1):
            raise ValueError(f"steps and probes must be at least 1, got {steps} and {probes}")
        self.network, self.steps, self.probes = network, steps, probes

    @property
    def bound(self) -> Bound:
        return Bound.EXACT if self.probes is None else Bound.ESTIMATE

    def _velocity(self, x: Tensor, t: float, context: Tensor | None) -> Tensor:
        time = x.new_full((len(x), 1), t)
        return self.network(x, time if context is None else torch.cat([time, context], dim=1))

    def _step(self, x: Tensor, t: float, context: Tensor | None) -> Tensor:
        """Return the increment of x over one step from time t."""
        h = 1 / self.steps
        k1 = self._velocity(x, t, context)
        k2 = self._velocity(x + h / 2 * k1, t + h / 2, context)
        k3 = self._velocity(x + h / 2 * k2, t + h / 2, context)
        k4 = self._velocity(x + h * k3, t + h, context)
        return h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def encode(
        self, x: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        directions = self._directions(x)
        log_det, h = torch.zeros(len(x), dtype=x.dtype, device=x.device), 1 / self.steps
        for number in range(self.steps):
            t = number * h
            k1, d1 = self._with_trace(x, t, context, directions)
            k2, d2 = self._with_trace(x + h / 2 * k1, t + h / 2, context, directions)
            k3, d3 = self._with_trace(x + h / 2 * k2, t + h / 2, context, directions)
            k4, d4 = self._with_trace(x + h * k3, t + h, context, directions)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            log_det = log_det + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        return x, log_det

    def _directions(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "S B D"]:
        """Return the unit vectors, or random signs that stay the same over all steps of a solution."""
        if self.probes is None:
            return torch.eye(x.shape[1], dtype=x.dtype, device=x.device).unsqueeze(1).expand(-1, len(x), -1)
        probes = self.probes
        draw = lambda n: torch.randint(0, 2, (probes, n, *x.shape[1:]), device=x.device).transpose(0, 1)  # noqa: E731
        signs = draw_rows(draw, len(x)).transpose(0, 1)
        return (2 * signs - 1).to(x.dtype) / self.probes**0.5

    def _with_trace(
        self, x: Tensor, t: float, context: Tensor | None, directions: Tensor
    ) -> tuple[Tensor, Float[Tensor, " B"]]:
        value, pull = torch.func.vjp(lambda y: self._velocity(y, t, context), x)[:2]
        (rows,) = torch.vmap(pull)(directions)
        return value, (rows * directions).sum((0, 2))

    def decode(self, z: Float[Tensor, "B D"], context: Float[Tensor, "B E"] | None = None) -> Float[Tensor, "B D"]:
        for number in reversed(range(self.steps)):
            t = number / self.steps
            x = z - self._step(z, t, context)
            for _ in range(FIXED_POINT_STEPS):
                x = z - self._step(x, t, context)
            z = x
        return z
