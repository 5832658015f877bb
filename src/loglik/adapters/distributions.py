"""Distributions of torch.distributions, Pyro and scipy.stats as densities, with or without a context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from loglik.adapters.foreign import Foreign, preprocessed, refused
from loglik.density import Density

__all__ = ["FromDistribution", "from_distribution", "from_scipy"]

Context = Callable[[Tensor], Tensor] | None


class FromDistribution(Foreign):
    r"""$\log p(x \mid c)$ of a distribution, or of what a function or module makes of a context.

    The distribution's batch dimensions, but for that of contexts, become dimensions of the event. Outside the support
    log p is $-\infty$.

    Args:
        library: its name, for errors.
        make: a distribution, or a function from a context to one.
        example: a distribution that `make` gives; its batch has contexts first if it is conditional.
        conditional: whether `make` needs a context.
        context: a function from loglik's context, labels or inputs, to what `make` receives.
    """

    def __init__(
        self, library: str, make: Any, example: Distribution, *, conditional: bool, context: Context = None
    ) -> None:
        joint = _joint(example, int(conditional))
        x = _drawn(joint)
        parameter = next((t for t in _tensors(make) if t.is_floating_point()), x)
        dtype = parameter.dtype if parameter.is_floating_point() else torch.get_default_dtype()
        super().__init__(library, tuple(joint.event_shape) or (1,), conditional=conditional, dtype=dtype)
        self.discrete = _is_discrete(joint)
        self.module = make if isinstance(make, nn.Module) else None
        self.make = None if self.module is not None else make
        self.home = x.device if isinstance(make, Distribution) else None  # its tensors do not move with the density
        self.context = context

    def wrapped(self, context: Tensor | None) -> Distribution:
        """Return the library's distribution of events, given a batch of contexts if it is conditional."""
        make: Any = self.make if self.module is None else self.module
        if not self.conditional:
            return _joint(make if isinstance(make, Distribution) else make(None), 0)
        assert context is not None
        given = context if self.context is None else self.context(context)
        if self.context is None and given.is_floating_point():
            given = given.to(self.anchor.dtype)
        return _joint(make(given), 1)

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x, context)
        try:
            return self._log_prob(x, context)
        except (RuntimeError, IndexError, TypeError) as error:  # a context of another width reaches a layer
            raise refused(self.library, error) from error

    def _log_prob(self, x: Shaped[Tensor, "B ..."], context: Tensor | None) -> Float[Tensor, " B"]:
        d = self.wrapped(context)
        value = x.to(self.home or x.device, self.anchor.dtype).view(len(x), *d.event_shape)
        inside = _inside(d, value)
        if not inside.all():
            safe = _drawn(d).to(value.dtype)
            value = torch.where(inside.view(-1, *[1] * len(d.event_shape)), value, safe)
        return d.log_prob(value).masked_fill(~inside, -torch.inf).to(x.device)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        self.check_context(context)
        d = self.wrapped(context)
        x = d.sample() if self.conditional else d.sample((n,))
        x = x.view(n, *self.event_shape).to(self.device)
        return x.long() if self.discrete else x


def from_distribution(
    distribution: Distribution | Callable[[Tensor], Distribution],
    *,
    example: Any = None,
    context: Context = None,
    **preprocessing: Any,
) -> Density:
    """Return a distribution of torch.distributions or Pyro as a density.

    Args:
        distribution: a distribution, whose batch dimensions become those of independent dimensions of the event; or a
            function or module from contexts (B, ...) to a distribution with the batch (B, ...).
        example: of a function: a batch of contexts, which tells the shape of the event.
        context: a function from loglik's context, labels or inputs, to that of the model.
        **preprocessing: `mean`, `scale`, `transform` and `levels`, as in `preprocessed`.

    Raises ValueError for anything else.
    """
    if isinstance(distribution, Distribution):
        density = FromDistribution("torch.distributions", distribution, distribution, conditional=False)
        return preprocessed(density, **preprocessing)
    if not callable(distribution):
        raise ValueError(f"expected a distribution or a function that returns one, got {type(distribution).__name__}")
    if example is None:
        raise ValueError("a function from contexts to distributions needs example=, a batch of contexts")
    with torch.no_grad():
        made = distribution(example if context is None else context(example))
    if not isinstance(made, Distribution):
        raise ValueError(f"the function returns {type(made).__name__}: it must return a torch Distribution")
    density = FromDistribution("torch.distributions", distribution, made, conditional=True, context=context)
    return preprocessed(density, **preprocessing)


class FromScipy(Foreign):
    """A frozen distribution of scipy.stats; univariate ones are independent over the dimensions of their parameters."""

    def __init__(self, frozen: Any) -> None:
        x = np.asarray(frozen.rvs(random_state=0))
        self._frozen = frozen
        self.univariate = hasattr(frozen, "support")
        if self.univariate:
            x = np.broadcast_to(x, np.broadcast_shapes(*(np.shape(v) for v in (*frozen.args, *frozen.kwds.values()))))
            x = np.asarray(frozen.rvs(size=x.shape, random_state=0))
        super().__init__("scipy.stats", x.shape or (1,), dtype=torch.float64)
        self.discrete = (hasattr(frozen, "logpmf") and not hasattr(frozen, "logpdf")) or x.dtype.kind in "iu"

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x, context)
        value = x.double().cpu().numpy()
        log_p = np.asarray(self._frozen.logpmf(value) if self.discrete else self._frozen.logpdf(value))
        return torch.as_tensor(log_p, device=x.device).reshape(len(x), -1).sum(1)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        generator = np.random.default_rng(int(torch.randint(2**62, ())))
        size = (n, *self.event_shape) if self.univariate else n
        x = torch.as_tensor(np.asarray(self._frozen.rvs(size=size, random_state=generator)), device=self.device)
        return x.view(n, *self.event_shape)


def from_scipy(frozen: Any, **preprocessing: Any) -> Density:
    """Return a frozen distribution of scipy.stats, such as `stats.norm(0, [1, 2])`, as a density in float64.

    `preprocessing` has `mean`, `scale`, `transform` and `levels`, as in `preprocessed`.
    """
    if not (hasattr(frozen, "logpdf") or hasattr(frozen, "logpmf")) or not hasattr(frozen, "rvs"):
        raise ValueError(f"{type(frozen).__name__} is no frozen distribution of scipy.stats: write stats.norm(0, 1)")
    return preprocessed(FromScipy(frozen), **preprocessing)


def _joint(d: Distribution, contexts: int) -> Distribution:
    """Return a distribution whose batch dimensions after those of the contexts are dimensions of the event."""
    inner = len(d.batch_shape) - contexts
    if inner < 0:
        raise ValueError("the distribution has no batch of contexts: it must depend on the context, or expand to it")
    return Independent(d, inner) if inner else d


def _drawn(d: Distribution) -> Tensor:
    with torch.no_grad():
        return d.sample()


def _tensors(make: Any) -> list[Tensor]:
    return list(make.parameters()) + list(make.buffers()) if isinstance(make, nn.Module) else []


def _is_discrete(d: Distribution) -> bool:
    try:
        return bool(d.support.is_discrete)  # type: ignore[union-attr]
    except NotImplementedError:
        return False


def _inside(d: Distribution, value: Tensor) -> Tensor:
    """Return which rows are in the support; all where the distribution does not say what it is."""
    try:
        inside = d.support.check(value)  # type: ignore[union-attr]
    except NotImplementedError:
        return torch.ones(len(value), dtype=torch.bool, device=value.device)
    return inside.reshape(len(value), -1).all(1)
