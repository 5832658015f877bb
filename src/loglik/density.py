r"""The one interface: a density is a normalised $p(x)$ or $p(x \mid c)$ to evaluate, sample and train.

Every log-probability is in nats, in the units of the user's data. Shapes: B examples, S Monte Carlo samples; an event
is one example without its batch dimension.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import chain
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from loglik.distribution import DensityDistribution, distribution_of
from loglik.inputs import as_tensor, floating_tensor

__all__ = [
    "Bound",
    "Density",
    "HasMarginals",
    "StandardNormal",
    "conditioned",
    "embed",
    "evaluation_mode",
    "initialise_context",
    "output_layer",
    "sample_categories",
]

Method = TypeVar("Method", bound=Callable[..., Any])


class Bound(str, Enum):
    """What `log_prob` returns, from the strongest statement to the weakest.

    `EXACT`: log p(x). `LOWER`: an unbiased sample of a lower bound of log p(x). `ESTIMATE`: an approximation, which may
    lie above or below log p(x).
    """

    EXACT = "exact"
    LOWER = "lower"
    ESTIMATE = "estimate"

    @staticmethod
    def weakest(*bounds: Bound) -> Bound:
        """Return the bound of a composition from the bounds of its parts.

        >>> Bound.weakest(Bound.EXACT, Bound.LOWER).value
        'lower'
        """
        return max(bounds, key=list(Bound).index, default=Bound.EXACT)


def _accepts_arrays(method: Method) -> Method:
    """Make a `log_prob` or `loss` convert its event and context to tensors of the density's dtype and device."""

    @functools.wraps(method)
    def wrapper(self: Density, x: Any, context: Any = None, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            like = floating_tensor(self)
            x = as_tensor(x, like, real=not self.discrete, label=self.event == "y")
            if context is not None:
                context = as_tensor(context, like, label=self.event == "x")
        return method(self, x, context, **kwargs)

    return wrapper  # type: ignore[return-value]


def _samples(method: Method) -> Method:
    """Make a `sample` or `rsample` convert its context; only `rsample` records a graph."""

    @functools.wraps(method)
    def wrapper(self: Density, n: int, context: Any = None, **kwargs: Any) -> Any:
        if context is not None and not torch.compiler.is_compiling():
            context = as_tensor(context, floating_tensor(self), label=self.event == "x")
            self.check_context(context)
        with torch.set_grad_enabled(method.__name__ == "rsample" and torch.is_grad_enabled()):
            return method(self, n, context, **kwargs)

    return wrapper  # type: ignore[return-value]


class Density(nn.Module, ABC):
    """A normalised p(x | context): evaluate it with `log_prob`, sample it with `sample`, train it on `loss`.

    These methods accept NumPy arrays, lists and tensors of any dtype and device: real numbers become the density's own
    dtype, integers stay integers if p is a probability, and labels become int64. Compiled code accepts only tensors
    that fit. `sample` returns tensors without a graph.

    Attributes:
        event_shape: the shape of one example.
        discrete: `log_prob` is the logarithm of a probability (a mass), not of a density.
        conditional: `log_prob`, `loss` and `sample` need a context.
        event: which part of a labelled example is the event: the data `"x"` or the label `"y"`. If it is the label,
            the data are the context.
        marginalises: `log_prob` and `loss` accept rows with missing values, NaN, and return log p of the values that
            are there, or its bound; `sample` draws whole rows.
        closed_form: `initialise` alone fits it; there are no parameters to train.
        keep_last: training keeps its last weights, not those of the best validation, since `loss` is not of `log_prob`.
    """

    event_shape: tuple[int, ...]
    discrete: bool = False
    conditional: bool = False
    event: Literal["x", "y"] = "x"
    marginalises: bool = False
    has_rsample: bool = False
    closed_form: bool = False
    keep_last: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, wrap in (
            ("log_prob", _accepts_arrays),
            ("loss", _accepts_arrays),
            ("sample", _samples),
            ("rsample", _samples),
        ):
            if name in cls.__dict__:
                setattr(cls, name, wrap(cls.__dict__[name]))

    @property
    def bound(self) -> Bound:
        """What `log_prob` returns: exact, a lower bound or an estimate."""
        return Bound.EXACT

    @property
    def importance_weighted(self) -> bool:
        r"""Whether $\exp(\text{log\_prob}(x))$ averages to $p(x)$, so that several may be averaged as weights."""
        return self.bound is Bound.EXACT

    @property
    def warming_up(self) -> bool:
        """Whether `loss` still changes its form, as in a KL's warm-up. Early stopping waits until it does not."""
        return False

    @abstractmethod
    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        """Return log p(x | context) in nats, or a sample of its bound.

        `samples` is the number of Monte Carlo samples of a bound; an exact density ignores it.
        """

    @_accepts_arrays
    def loss(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        r"""Return what training minimises, in nats per example: by default the mean of -log p.

        Of an exact density it estimates the cross-entropy $\mathbb E_{p_{data}}[-\log p_\theta(x)]$, whose minimum is
        that of $\mathrm{KL}(p_{data} \,\|\, p_\theta)$: see `loglik.divergence`.
        """
        return -self.log_prob(x, context).mean()

    @abstractmethod
    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        """Draw n examples in the units of the data, with torch's global generator and without gradients."""

    def rsample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n ..."]:
        """Draw n examples with gradients with respect to the parameters and the context, where `has_rsample`."""
        raise NotImplementedError(f"{type(self).__name__} has no rsample: its draws have no pathwise gradient")

    def distribution(self, context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1) -> DensityDistribution:
        """Return p(x | context) as a `torch.distributions.Distribution`, with one batch dimension for B contexts.

        Its `log_prob` is the density's: where `bound` is not exact, it is a bound of `samples` Monte Carlo samples.
        """
        return distribution_of(self, context, samples)

    @property
    def device(self) -> torch.device:
        """The device of the parameters and buffers; the CPU if there are none."""
        return next((tensor.device for tensor in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        """Raise ValueError for levels, codes and labels of an event and its context that p is not defined on.

        `log_prob` and `loss` check too, except within `checks.data_checked`. The tensors may be on any device.
        """
        self.check_context(context)

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        """Raise ValueError for labels of a context that p has no vector for; `sample` checks too."""
        return None

    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Set a mean, a histogram or a bias from training data. `fit` calls it before the first step."""
        return None

    def progress(self, fraction_done: float) -> None:
        """Take note of how much of the training is done, from 0 to 1. `fit` calls it before each step."""
        return None

    def calibrate(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Fit a temperature, say, to the validation split. `fit` calls it after the last step."""
        return None

    def numerical_error(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, " B"] | None:
        """Return an estimate of the error in nats that a solver's steps leave in `log_prob`; None without a solver."""
        return None

    def terms(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return the named terms of a bound, in nats; empty if there is only one term.

        They sum to `log_prob(x, context, samples=samples)` for the same state of the random generator, so a table of
        terms adds up to the number beside it.
        """
        return {}

    def terms_by_dimension(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> dict[str, Float[Tensor, "B ..."]]:
        """Return terms by dimension, (B, D), and those of whole events, (B,); empty if none. All sum to `log_prob`."""
        return {}

    def output_layers(self) -> tuple[nn.Module, ...]:
        """Return the layers whose outputs are the distribution's parameters, such as logits.

        Muon orthogonalises the weights of hidden layers; it leaves these layers to AdamW. By default they are the
        output of the density's `network`, if it has one.
        """
        return output_layer(getattr(self, "network", None))


def output_layer(network: nn.Module | None) -> tuple[nn.Module, ...]:
    """Return the linear map or convolution that makes a network's output; empty if the network declares none.

    It is the network itself, or the network's `output`, or the last layer with weights of a sequence.
    """
    if isinstance(network, (nn.Linear, nn.Conv1d, nn.Conv2d)):
        return (network,)
    if isinstance(network, nn.Sequential):
        with_weights = [layer for layer in network if next(layer.parameters(), None) is not None]
        return output_layer(with_weights[-1]) if with_weights else ()
    output = getattr(network, "output", None)
    return output_layer(output) if isinstance(output, nn.Module) else ()


@runtime_checkable
class HasMarginals(Protocol):
    """A density that knows the distribution of each dimension given a context; see `loglik.mixture.Mixture`."""

    def sample_each(self, n: int, draws: int, context: Tensor | None = None) -> Tensor: ...

    def marginal_cdf(self, x: Tensor, context: Tensor | None = None) -> Tensor: ...

    def marginal_quantiles(self, n: int, levels: Sequence[float], context: Tensor | None = None) -> Tensor: ...

    def marginal_moments(self, n: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def marginal_probabilities(self, n: int, context: Tensor | None = None) -> dict[int, Tensor]: ...


class StandardNormal(Density):
    r"""$\mathcal N(0, I)$ over events of a shape: $\log p(z) = -\tfrac12 \lVert z \rVert^2 - \tfrac D2 \log 2\pi$.

    >>> StandardNormal((2,)).log_prob(torch.zeros(1, 2)).item()  # -log 2π
    -1.8378770351409912
    """

    has_rsample = True

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # has the density's device and dtype

    def log_prob(
        self, x: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        z = x.flatten(1)
        return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n ..."]:
        anchor = self.get_buffer("anchor")
        return torch.randn(n, *self.event_shape, device=anchor.device, dtype=anchor.dtype)

    rsample = sample  # nothing to differentiate


def sample_categories(p: Float[Tensor, "B C"]) -> Int64[Tensor, " B"]:
    """Draw a category for each row of probabilities.

    The draws are those of `torch.multinomial`, which looks at the probabilities on the host first: a GPU would wait.
    """
    return (p / torch.empty_like(p).exponential_()).argmax(-1)


def embed(network: nn.Module | None, context: Tensor | None) -> Tensor | None:
    """Return a context as the network embeds it; None without a network."""
    if network is None:
        return None
    if context is None:
        raise ValueError("this density is p(x | context): pass a context, one row for each example")
    embedded: Tensor = network(context)
    return embedded


def initialise_context(network: nn.Module | None, context: Tensor | None) -> None:
    """Set what a context's network reads from training contexts, such as the scales of inputs."""
    initialise = getattr(network, "initialise", None)
    if initialise is not None and context is not None:
        initialise(context)


def conditioned(network: nn.Module, x: Tensor, context: Tensor | None) -> Any:
    """Return a network's output for x, and for the context if there is one."""
    return network(x) if context is None else network(x, context)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode; restore the mode of each of its parts at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
