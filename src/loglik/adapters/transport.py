"""Transport: the density to which a velocity field carries N(0, I)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.adapters.paths import FlowMatching, NoiseLevel
from loglik.adapters.wrapped import Wrapped, needed
from loglik.checks import check_complete, check_levels
from loglik.density import Bound, Density, StandardNormal
from loglik.diffusion.ode import adams

__all__ = ["Transport"]

EXACT = 32  # dimensions up to which the trace is exact
MAX_STEPS = 1280
ROWS, VALUES = 8, 64  # at least, of the data that the direction is checked with
NOISE = (0.4, 2.5)  # variance of what data are carried to, which should be 1


class Transport(Density):
    r"""$\log p(x) = \log \mathcal N(y_0; 0, I) - \int_0^1 \operatorname{tr} \frac{\partial u}{\partial y}\,dt$ along
    $dy/dt = u(y, t)$ from noise $y_0$ at t = 0 to $y_1 = x$.

    Solved from the data to the noise by `adams`, with the steps doubled until two solutions agree to the tolerance;
    their difference is `numerical_error`. The trace is exact up to 32 dimensions, and from one random vector of signs
    beyond.

    Args:
        wrapped: the field, on a path of `FlowMatching`.
        event_shape: of the data.
        steps: of the first solution.
        tolerance: nats per dimension.
        checked: False where the direction of the field is not to be checked on the first data.

    Raises ValueError for fewer than 2 steps.
    """

    def __init__(
        self,
        wrapped: Wrapped,
        event_shape: tuple[int, ...],
        *,
        steps: int = 40,
        tolerance: float = 1e-3,
        checked: bool = True,
    ) -> None:
        super().__init__()
        if steps < 2:
            raise ValueError(f"steps must be at least 2, got {steps}")
        self.wrapped, self.event_shape, self.steps, self.tolerance = wrapped, tuple(event_shape), steps, tolerance
        self.conditional, self.unchecked = wrapped.classes is not None, checked
        self.noise = StandardNormal(self.event_shape)

    @property
    def bound(self) -> Bound:
        return Bound.ESTIMATE

    @property
    def path(self) -> FlowMatching:
        """The times that the call reads."""
        assert isinstance(self.wrapped.path, FlowMatching)
        return self.wrapped.path

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        return self._solution(x, context)[0]

    def numerical_error(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, " B"]:
        return self._solution(x, context)[1]

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        check_complete(x)
        self.check_context(context)

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        if self.wrapped.classes is not None:
            check_levels(needed(context), self.wrapped.classes, "labels")

    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Check that the field carries data to noise."""
        if self.unchecked:
            self.check_direction(x, context)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n ..."]:
        z = self.noise.sample(n)
        grid = torch.linspace(0, 1, 2 * self.steps + 1, dtype=z.dtype, device=z.device)
        zero = z.new_zeros(n)
        rate = lambda y, t: (self._velocity(y, t, context), zero, torch.zeros_like(y))  # noqa: E731
        return adams(rate, z, grid)[0]

    @torch.no_grad()
    def check_direction(self, x: Float[Tensor, "B ..."], context: Tensor | None = None) -> None:
        """Raise ValueError unless data x are carried to values of variance 1, and say if the reverse field does so."""
        x, context = x[:64], None if context is None else context[:64]
        found = self._carried(x, context)
        if NOISE[0] < found < NOISE[1]:
            self.unchecked = False
            return
        path = self.path
        line = f"this velocity carries the data to noise of variance {found:.3g}, which should be 1"
        other = FlowMatching(1 - path.data_at, time_scale=path.time_scale)
        turned = Transport(self.wrapped.renamed(other, "velocity", 1.0, 0.0), self.event_shape, steps=self.steps)
        reverse = turned._carried(x, context)
        if NOISE[0] < reverse < NOISE[1]:
            raise ValueError(f"{line}; it does with data_at={other.data_at} ({reverse:.2f})")
        raise ValueError(f"{line}: is it trained, and on data in these units?")

    def _carried(self, x: Tensor, context: Tensor | None) -> float:
        z = self._solve(x, context, torch.zeros(0, len(x), x[0].numel(), dtype=x.dtype, device=x.device), self.steps)[0]
        return z.square().mean().nan_to_num(torch.inf).item()

    def _velocity(self, y: Tensor, t: Float[Tensor, " B"], context: Tensor | None) -> Tensor:
        """Return dy/dt at our time t, which is 1 at the data."""
        path = self.path
        label = (t if path.data_at == 1 else 1 - t) * path.time_scale
        u = self.wrapped.predict(y, NoiseLevel(t, 1 - t, label), context)
        return u if path.data_at == 1 else -u

    @torch.no_grad()
    def _solution(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log p, and the solver's error in nats."""
        if self.unchecked and len(x) >= ROWS and x.numel() >= VALUES:
            self.check_direction(x, context)
        directions, steps = self._directions(x), self.steps
        log_p = self._log_prob(x, context, directions, steps)
        error = torch.full_like(log_p, torch.inf)
        rows = torch.arange(len(x), device=x.device)
        while len(rows) and steps < MAX_STEPS:
            steps *= 2
            again = self._log_prob(x[rows], None if context is None else context[rows], directions[:, rows], steps)
            gap = (again - log_p[rows]).abs()
            better = ~(gap >= error[rows] / 2)  # otherwise the rest is rounding
            rows = rows[better]
            log_p[rows], error[rows] = again[better], gap[better]
            rows = rows[~(error[rows] <= self.tolerance * x[0].numel())]
        return log_p, error

    def _directions(self, x: Tensor) -> Float[Tensor, "S B D"]:
        dims = x[0].numel()
        if dims <= EXACT:
            return torch.eye(dims, dtype=x.dtype, device=x.device).unsqueeze(1).expand(-1, len(x), -1)
        signs = 2 * torch.randint(0, 2, (1, len(x), dims), device=x.device) - 1
        return signs.to(x.dtype)

    def _log_prob(self, x: Tensor, context: Tensor | None, directions: Tensor, steps: int) -> Tensor:
        z, log_det = self._solve(x, context, directions, steps)
        return self.noise.log_prob(z) + log_det

    def _solve(self, x: Tensor, context: Tensor | None, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Return the noise that data came from, and log |det| of the map to it."""

        def rate(y: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                point = y.detach().requires_grad_()
                u = self._velocity(point, t, context)
                trace = torch.zeros(len(y), dtype=y.dtype, device=y.device)
                for direction in directions:
                    (slope,) = torch.autograd.grad((u.flatten(1) * direction).sum(), point, retain_graph=True)
                    trace = trace + (slope.flatten(1) * direction).sum(1)
            return u.detach(), trace, torch.zeros_like(y)

        # the points lie closer at the ends, where fields change fastest
        even = torch.linspace(0, math.pi, steps + 1, dtype=torch.float64)
        z, integral, _ = adams(rate, x, (0.5 + 0.5 * even.cos()).to(x))
        return z, integral
