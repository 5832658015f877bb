"""What the tests of training share: small data, densities that train in known ways, and a process that is killed."""

from itertools import count

import numpy as np
import torch
from torch import nn

import loglik
from loglik.density import Density
from loglik.diffusion import Denoiser, Sampler
from loglik.flows import Coupling, Elementwise, Spline
from loglik.flows.spline import parameters_per_dim
from loglik.networks import MLP, CausalTransformer, ResidualMLP
from loglik.training import TrainingSettings
from loglik.transforms import Standardise
from loglik.vae import Categorical

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, size=200)
REAL = np.stack([LABELS + 0.1 * RNG.normal(size=200), LABELS + 0.1 * RNG.normal(size=200)], axis=1)
WHOLE = np.repeat(RNG.integers(0, 3, size=(200, 1)), 4, axis=1)  # four equal numbers: much to learn


def flow(dropout: float = 0.0) -> loglik.Flow:
    network = MLP(1, parameters_per_dim(4), (16,), dropout=dropout)
    transforms = [Standardise((2,)), Coupling([False, True], network, Spline(4, 4.0)), Elementwise(2, Spline(4, 4.0))]
    return loglik.Flow(transforms, loglik.StandardNormal((2,)))


def vae() -> loglik.VAE:
    observation = Categorical((4,), 3)
    return loglik.VAE(MLP(4, 4, (32,)), MLP(2, observation.outputs, (32,)), observation, latent=2)


def diffusion() -> loglik.Diffusion:
    return loglik.Diffusion(Denoiser(ResidualMLP(2, 2, width=32, depth=1, context=32)), (2,), sampler=Sampler(steps=5))


def autoregressive() -> loglik.Autoregressive:
    return loglik.Autoregressive(CausalTransformer(16, 1, 2), (4,), 3)


def classifier() -> loglik.Classifier:
    return loglik.Classifier(MLP(2, 8, (16,)), MLP(8, 2, (16,)), 2)


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(**{"max_steps": 24, "validate_every": 6, "batch_size": 32, "warmup": 2, **changes})


class Killed(BaseException):
    """As if the process had ended at this line."""


class Drift(Density):
    """Training moves `weight` up by the learning rate a step, and every step up makes the likelihood worse."""

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = (2,)
        self.weight = nn.Parameter(torch.zeros(1))

    def log_prob(self, x, context=None, *, samples=1):
        return -(self.weight**2).expand(len(x))

    def loss(self, x, context=None):
        return -self.weight.sum()

    def sample(self, n, context=None):
        return torch.zeros(n, 2)


class Breaks(Drift):
    """Improves for `good` steps; then a term of the loss, or the gradient alone, is not a number."""

    def __init__(self, good: int, what: str) -> None:
        super().__init__()
        self.good, self.what = good, what

    def log_prob(self, x, context=None, *, samples=1):
        return self.weight.expand(len(x))

    def loss(self, x, context=None):
        self.good -= 1
        if self.good >= 0:
            return -self.weight.sum()
        if self.what == "gradient":
            return (0 * self.weight).sqrt().sum()
        return self.weight.sum() * torch.nan

    def terms(self, x, context=None, *, samples=1):
        fine = torch.zeros(len(x))
        return {} if self.what == "loss" else {"prior": fine, "reconstruction": fine + torch.nan, "rest": fine}


def weights(density: Density) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in density.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def numbers(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows of a history without the time, which no run repeats."""
    return [{name: value for name, value in row.items() if name != "time"} for row in history]


def kill(monkeypatch, where, name: str, call: int, when: str) -> None:
    real, calls = getattr(where, name), count(1)

    def function(*args, **options):
        last = next(calls) == call
        if last and when == "before":
            raise Killed
        result = real(*args, **options)
        if last:
            raise Killed
        return result

    monkeypatch.setattr(where, name, function)
