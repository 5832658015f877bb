r"""The one interface: a density is a normalised $p(x)$ or $p(x \mid c)$ to evaluate, sample and train.

Every log-probability is in nats, in the units of the data as the user holds it. Shapes: B examples,
S Monte Carlo samples; an event is one example without its batch dimension.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

__all__ = [
    "Bound",
    "Density",
    "StandardNormal",
    "check_levels",
    "conditioned",
    "draw_weights",
    "embed",
    "expand_context",
]


class Bound(str, Enum):
    """What a `log_prob` is, from the strongest statement to the weakest.

    `EXACT`: log p(x) itself. `LOWER`: an unbiased sample of a lower bound of it. `ESTIMATE`: an
    approximation that may lie on either side.
    """

    EXACT = "exact"
    LOWER = "lower"
    ESTIMATE = "estimate"

    @staticmethod
    def weakest(*bounds: Bound) -> Bound:
        """The bound of a whole from the bounds of its parts.

        >>> Bound.weakest(Bound.EXACT, Bound.LOWER).value
        'lower'
        """
        return max(bounds, key=list(Bound).index, default=Bound.EXACT)


class Density(nn.Module, ABC):
    """A normalised p(x | context): evaluate it with `log_prob`, draw from it with `sample`, train it on `loss`.

    Attributes:
        event_shape: the shape of one example.
        discrete: `log_prob` is the logarithm of a probability (a mass), not of a density.
        conditional: `log_prob`, `loss` and `sample` need a context.
        event: which part of a labelled example is the event: the data `"x"` or the label `"y"`. Where
            it is the label, the data are the context.
    """

    event_shape: tuple[int, ...]
    discrete: bool = False
    conditional: bool = False
    event: Literal["x", "y"] = "x"

    @property
    def bound(self) -> Bound:
        """What `log_prob` returns; a composition has the weakest bound of its parts."""
        return Bound.EXACT

    @property
    def importance_weighted(self) -> bool:
        r"""Whether $\exp(\text{log\_prob}(x))$ averages to $p(x)$, so that several may be averaged as weights."""
        return self.bound is Bound.EXACT

    @property
    def warming_up(self) -> bool:
        """Whether `loss` is not yet what it will be, as in a KL's warm-up: early stopping waits for its end."""
        return False

    @abstractmethod
    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        """Log p(x | context) in nats, or a sample of its bound.

        `samples` is the number of Monte Carlo samples that a bound takes; an exact density ignores it.
        """

    def loss(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        """What training minimises, in nats per example."""
        return -self.log_prob(x, context).mean()

    @abstractmethod
    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        """Draw n examples in the units of the data, with torch's global generator."""

    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Set what depends on data (a mean, a histogram, a bias) from training data, before the first step."""
        return None

    def progress(self, part: float) -> None:
        """Take note of how much of the training is done, from 0 to 1: `fit` tells before each step."""
        return None

    def calibrate(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Set what is fitted to held-out data (a temperature) from the validation split, after the last step."""
        return None

    def numerical_error(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, " B"] | None:
        """An estimate of the error in nats that a solver's steps leave in `log_prob`; None where nothing is solved."""
        return None

    def terms(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> dict[str, Float[Tensor, " B"]]:
        """The named terms, in nats, that a bound is the sum of; empty where there is one term only."""
        return {}


class StandardNormal(Density):
    r"""$\mathcal N(0, I)$ over events of a shape: $\log p(z) = -\tfrac12 \lVert z \rVert^2 - \tfrac D2 \log 2\pi$.

    >>> StandardNormal((2,)).log_prob(torch.zeros(1, 2)).item()  # -log 2π
    -1.8378770351409912
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # knows the device and dtype

    def log_prob(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        z = x.flatten(1)
        return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n ..."]:
        anchor = self.get_buffer("anchor")
        return torch.randn(n, *self.event_shape, device=anchor.device, dtype=anchor.dtype)


def check_levels(x: Shaped[Tensor, "B ..."], levels: int | None, what: str = "data") -> None:
    """Raise ValueError unless x holds 0 ... levels-1 only: outside, a formula gives a number that means nothing.

    Compiled code skips it, since reading a number would break the graph.
    """
    if levels is None or x.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = (value.item() for value in x.aminmax())
    if not 0 <= low <= high <= levels - 1:
        raise ValueError(f"{what} must hold whole numbers 0 ... {levels - 1}, got {low:g} ... {high:g}")


def embed(network: nn.Module | None, context: Tensor | None) -> Tensor | None:
    """A context through the network that reads it; None where there is no such network."""
    if network is None:
        return None
    if context is None:
        raise ValueError("this density is p(x | context): pass a context, one row for each example")
    return network(context)


def conditioned(network: nn.Module, x: Tensor, context: Tensor | None) -> Any:
    """What a network makes of x, and of the context where there is one."""
    return network(x) if context is None else network(x, context)


def expand_context(context: Tensor | None, samples: int) -> Tensor | None:
    """Repeat each of a context's B rows for S samples: (B·S, ...), samples innermost."""
    return None if context is None else context.repeat_interleave(samples, 0)


def draw_weights(
    log_weight: Callable[[Tensor, Tensor | None], Float[Tensor, " BS"]],
    x: Shaped[Tensor, "B ..."],
    context: Tensor | None,
    samples: int,
    *,
    importance_weighted: bool,
    at_once: int,
) -> Float[Tensor, " B"]:
    r"""Combine S draws of a bound into one number per example.

    Importance weights combine as $\log \tfrac1S \sum_s w_s$ (Burda et al. 2016, eq. 8), which rises with S
    towards $\log p(x)$; other bounds combine as $\tfrac1S \sum_s \log w_s$, which only loses variance.
    At most `at_once` rows are evaluated in one call, with the samples of an example side by side.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if samples == 1:
        return log_weight(x, context)
    chunk = max(1, at_once // max(len(x), 1))
    draws = []
    for start in range(0, samples, chunk):
        s = min(chunk, samples - start)
        draws.append(log_weight(x.repeat_interleave(s, 0), expand_context(context, s)).reshape(len(x), s))
    stacked = torch.cat(draws, 1)
    return stacked.logsumexp(1) - math.log(samples) if importance_weighted else stacked.mean(1)
