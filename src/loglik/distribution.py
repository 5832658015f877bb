"""DensityDistribution: a density as a `torch.distributions.Distribution`, which Pyro samples from too."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributions import Distribution, constraints

from loglik.inputs import as_tensor, floating_tensor

__all__ = ["DensityDistribution", "distribution_of"]


@runtime_checkable
class _Density(Protocol):
    """What a distribution needs of a `Density`."""

    event_shape: tuple[int, ...]
    discrete: bool
    conditional: bool
    marginalises: bool
    has_rsample: bool

    @property
    def bound(self) -> str: ...

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, samples: int = 1) -> Tensor: ...

    def sample(self, n: int, context: Tensor | None = None) -> Tensor: ...

    def rsample(self, n: int, context: Tensor | None = None) -> Tensor: ...


class _RealOrMissing(constraints.Constraint):
    """Real numbers and NaN, which stands for a missing value."""

    def check(self, value: Tensor) -> Tensor:
        return ~value.isinf()


class DensityDistribution(Distribution):
    r"""p(x | c) of a density, in torch's shapes: `sample_shape + batch_shape + event_shape`.

    The batch dimension is that of the contexts, or `()` without. `expand` adds more, and `torch.distributions` composes
    it: `Independent`, `TransformedDistribution`, `MixtureSameFamily`. Gradients of `log_prob` and `rsample` reach the
    density's parameters and the contexts.

    Args:
        density: a `Density`; it is not copied.
        context: B rows, if the density is conditional.
        samples: Monte Carlo samples of `log_prob` where it is a bound.
        validate_args: whether `log_prob` checks shapes and support; torch's default if None.

    Attributes:
        bound: what `log_prob` returns: exact, lower or estimate. A lower bound is random: repeated calls differ.
        has_rsample: that of the density.

    `mean` and `variance` are those of densities with `marginal_moments`. `entropy` is not known; `loglik.divergence`
    estimates it, and the KL divergence, for distributions too.

    Raises ValueError for a missing context, for one that the density does not have, and for samples below 1.

    >>> from loglik.density import StandardNormal
    >>> StandardNormal((3,)).distribution().sample((2,)).shape
    torch.Size([2, 3])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  torch's name, for parameters by name

    def __init__(
        self,
        density: _Density,
        context: Shaped[Tensor, "B ..."] | None = None,
        *,
        samples: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        if density.conditional and context is None:
            raise ValueError("this density is p(x | context): pass a context, one row for each distribution")
        if context is not None and not density.conditional:
            raise ValueError("this density has no context: leave it out, and use `expand` for a batch")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.density, self.samples, self.has_rsample = density, samples, density.has_rsample
        self._context = context
        batch_shape = torch.Size([] if context is None else [len(context)])
        self._row = torch.Size([] if context is None else context.shape[1:])
        super().__init__(batch_shape, torch.Size(density.event_shape), validate_args=validate_args)

    @property
    def bound(self) -> str:
        return self.density.bound

    @property
    def context(self) -> Tensor | None:
        """The contexts, one row for each distribution of the batch."""
        return None if self._context is None else self._context.expand(self.batch_shape + self._row)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        dims = len(self.event_shape)
        if not self.density.discrete:
            each: constraints.Constraint = _RealOrMissing() if self.density.marginalises else constraints.real
            return constraints.independent(each, dims)
        levels = getattr(self.density, "levels", None) or getattr(self.density, "classes", None)
        last = (0, levels - 1) if isinstance(levels, int) else (-math.inf, math.inf)
        return constraints.independent(constraints.integer_interval(*last), dims)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DensityDistribution:
        try:
            batch_shape = torch.empty(self.batch_shape, device="meta").expand(batch_shape).shape
        except (RuntimeError, TypeError):
            raise ValueError(f"batch_shape {tuple(self.batch_shape)} does not expand to {batch_shape}") from None
        new: DensityDistribution = self._get_checked_instance(DensityDistribution, _instance)
        new.density, new.samples, new.has_rsample = self.density, self.samples, self.has_rsample
        new._context, new._row = self._context, self._row
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Shaped[Tensor, "..."]:
        return self._draw(self.density.sample, sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        return self._draw(self.density.rsample, sample_shape)

    def log_prob(self, value: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self._validate_args:
            self._validate_sample(value)
        lead = value.shape[: value.dim() - len(self.event_shape)]
        shape = torch.broadcast_shapes(lead, self.batch_shape)
        rows = value.expand(shape + self.event_shape).reshape(-1, *self.event_shape)
        return self.density.log_prob(rows, self._rows(shape), samples=self.samples).reshape(shape)

    @property
    def mean(self) -> Tensor:
        return self._moment(0)

    @property
    def variance(self) -> Tensor:
        return self._moment(1).square()

    def _draw(self, draw: Any, sample_shape: Sequence[int]) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        rows: Tensor = draw(shape.numel(), self._rows(shape))
        return rows.reshape(shape + self.event_shape)

    def _rows(self, shape: torch.Size) -> Tensor | None:
        """Return a context row for each number of a shape that ends in the batch's."""
        if self._context is None:
            return None
        return self._context.expand(shape + self._row).reshape(shape.numel(), *self._row)

    def _moment(self, which: int) -> Tensor:
        moments = getattr(self.density, "marginal_moments", None)
        if moments is None:
            raise NotImplementedError(f"the moments of {type(self.density).__name__} are not known: average `sample`")
        values: Tensor = moments(self.batch_shape.numel(), self._rows(self.batch_shape))[which]
        return values.reshape(self.batch_shape + self.event_shape)

    def __repr__(self) -> str:
        shapes = f"batch_shape: {tuple(self.batch_shape)}, event_shape: {tuple(self.event_shape)}"
        return f"DensityDistribution({type(self.density).__name__}, {shapes}, bound: {str.__str__(self.bound)})"


def distribution_of(density: Any, context: Any, samples: int) -> DensityDistribution:
    """Return a density's distribution; once Pyro is imported, it is one of Pyro's distributions too."""
    if context is not None:
        context = as_tensor(context, floating_tensor(density), label=density.event == "x")
    kind = _pyro_distribution() if "pyro" in sys.modules else DensityDistribution
    return kind(density, context, samples=samples)


@functools.lru_cache(maxsize=1)
def _pyro_distribution() -> type[DensityDistribution]:
    """Return the class with Pyro's methods, such as `mask` and `to_event`, which `pyro.sample` calls."""
    from pyro.distributions.torch_distribution import TorchDistributionMixin

    class PyroDensityDistribution(DensityDistribution, TorchDistributionMixin):  # type: ignore[misc]
        pass

    return PyroDensityDistribution
