"""zuko's flows and mixtures as densities, conditional ones too."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution

from loglik.adapters.distributions import Context, FromDistribution, from_distribution
from loglik.adapters.foreign import preprocessed, tried
from loglik.density import Bound, Density

__all__ = ["FromZuko", "from_zuko"]

TIGHTER = 1e-4  # of the tolerances of the solver that another's error is measured with


class FromZuko(FromDistribution):
    """A `LazyDistribution`: exact, but for estimates of a log-determinant from random vectors and for quadratures.

    Unconstrained neural flows integrate their map by quadrature, and differentiate it exactly, so that the density
    integrates to one only nearly.
    """

    @property
    def bound(self) -> Bound:
        from zuko.flows.neural import UMNN

        quadrature = any(isinstance(module, UMNN) for module in self.modules())
        estimated = quadrature or any(not step.exact for step in self._solved())
        return Bound.ESTIMATE if estimated else Bound.EXACT

    def _log_prob(self, x: Shaped[Tensor, "B ..."], context: Tensor | None) -> Float[Tensor, " B"]:
        from zuko.flows import NCSF

        log_p = super()._log_prob(x, context)
        if isinstance(self.module, NCSF):  # of angles: zuko's map repeats its values beyond them
            log_p = log_p.masked_fill((x.flatten(1).abs() > math.pi).any(1), -torch.inf)
        return log_p

    def _solved(self) -> list[Any]:
        from zuko.flows import FFJTransform

        return [module for module in self.modules() if isinstance(module, FFJTransform)]

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        super().check_context(context)
        if self.conditional and self.context is None and context is not None and context.dim() < 2:
            raise ValueError(
                "a zuko model reads a vector for each row, and these are labels: pass context=, such as "
                "lambda y: torch.nn.functional.one_hot(y, 3).float()"
            )

    def numerical_error(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, " B"] | None:
        """Return the difference from a solver in float64 with tolerances of a ten-thousandth; None without a solver."""
        if not self._solved():
            return None
        state = torch.get_rng_state()
        coarse = self.log_prob(x, context)
        torch.set_rng_state(state)  # the same random vectors
        fine = deepcopy(self).double()
        for step in fine._solved():
            step.atol, step.rtol = step.atol * TIGHTER, step.rtol * TIGHTER
        given = context.double() if context is not None and context.is_floating_point() else context
        return (coarse - fine.log_prob(x.double(), given)).abs()


def from_zuko(
    flow: nn.Module | Distribution,
    *,
    conditional: bool | None = None,
    context: Context = None,
    example: Any = None,
    **preprocessing: Any,
) -> Density:
    """Return a zuko flow, mixture or other `LazyDistribution`, or a zuko distribution, as a density.

    Args:
        flow: its weights are used as they are, not copied.
        conditional: whether it needs a context; found by a call without one if None.
        context: a function from loglik's context to the model's, such as from labels (B,) to one-hot vectors; floating
            inputs (B, C) are passed on as they are.
        example: a batch of contexts, for a conditional model that does not tell the shape of its event.
        **preprocessing: `mean`, `scale`, `transform` and `levels`, as in `preprocessed`.

    Raises ValueError for anything else.
    """
    import zuko

    if isinstance(flow, Distribution):
        return from_distribution(flow, **preprocessing)
    if not isinstance(flow, zuko.lazy.LazyDistribution):
        raise ValueError(f"expected a zuko LazyDistribution, such as zuko.flows.NSF(2), got {type(flow).__name__}")
    made = _without_context(flow)
    if conditional is None:
        conditional = made is None
    if conditional:
        made = _with_context(flow, example, context)
    elif made is None:
        raise ValueError("this zuko model needs a context: leave conditional=False out")
    density = FromZuko("zuko", flow, made, conditional=conditional, context=context)
    return preprocessed(density, **preprocessing)


def _without_context(flow: nn.Module) -> Distribution | None:
    """Return p(x), None where the model fails without a context."""

    def call(own: Any) -> Distribution:
        d: Distribution = own(None)
        d.log_prob(d.sample((2,)))
        return d

    made: Distribution | None = tried(flow, call)
    return made


def _with_context(flow: nn.Module, example: Any, context: Context) -> Distribution:
    """Return p(x | some context), for the shape of its event."""
    if example is not None:
        with torch.no_grad():
            made: Distribution = flow(example if context is None else context(example))
        return made
    base = getattr(flow, "base", None)
    if base is not None and (event := _without_context(base)) is not None:
        return event.expand((1,))
    parameter = next(flow.parameters(), torch.zeros(()))
    inputs: list[Any] = [getattr(module, "in_features", 0) for module in flow.modules()]
    for width in range(1, max(inputs, default=0) + 1):
        vector = parameter.new_zeros(1, width)
        found: Distribution | None = tried(flow, partial(_called, vector))
        if found is not None:
            return found
    raise ValueError("the shape of the event is unknown: pass example=, a batch of contexts that the model accepts")


def _called(vector: Tensor, flow: Any) -> Any:
    return flow(vector)
