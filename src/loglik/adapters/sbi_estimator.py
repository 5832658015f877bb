"""DensityEstimator: a conditional density behind sbi's interface."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor, nn

from loglik.data.spec import Column, DataSpec
from loglik.density import Bound, Density
from loglik.mixture import Mixture
from loglik.networks.dropout import FULL_DROPOUT_ROWS

__all__ = ["DensityEstimator"]

DECAY = 0.99  # of the average of the weights: it spans two epochs of 10,000 simulations in batches of 200


class DensityEstimator(ConditionalDensityEstimator):
    r"""A density p(input | condition) in sbi's shapes: S samples and B conditions.

    In training mode it computes with the trained weights, else with their moving average, as loglik's own runs do:
    $\bar\theta \leftarrow d\, \bar\theta + (1 - d)\, \theta$ with $d = \min(0.99, (1 + n) / (10 + n))$ after n steps.
    sbi validates and stops early in evaluation mode. `net` and `embedding_net` have the averages.

    Args:
        density: of the input, given rows of features.
        input_shape, condition_shape: of one event.
        embedding_net: from conditions to features; None to flatten conditions.
    """

    net: Density
    updates: Tensor

    def __init__(
        self,
        density: Density,
        input_shape: torch.Size,
        condition_shape: torch.Size,
        embedding_net: nn.Module | None = None,
    ) -> None:
        networks = nn.ModuleList([density] if embedding_net is None else [density, embedding_net])
        average = copy.deepcopy(networks)
        super().__init__(cast(Density, average[0]), input_shape, condition_shape)
        self._trained = networks
        self._embedding_net = None if embedding_net is None else average[1]
        self.register_buffer("updates", torch.tensor(0))
        self._step_follows = False  # whether the weights change after the last call

    @classmethod
    def of(
        cls,
        build: Callable[[DataSpec], Density],
        input: Float[Tensor, "N ..."],
        condition: Float[Tensor, "N ..."],
        embedding_net: nn.Module | None = None,
    ) -> DensityEstimator:
        """Build a density for rows of an event and its condition, and initialise it from them."""
        with torch.no_grad():
            features = condition.flatten(1) if embedding_net is None else embedding_net(condition[:2]).flatten(1)
        inputs = tuple(Column(name=f"x{i}", type="numeric") for i in range(features.shape[1]))
        density = build(DataSpec(kind="array", event_shape=tuple(input.shape[1:]), inputs=inputs))
        if embedding_net is not None:  # features change in training, and stay within (-1, 1): see `_features`
            features = torch.linspace(-1, 1, len(input))[:, None].expand(-1, len(inputs))
        density.initialise(input, features)
        for module in density.modules():  # as the flows' own dropout does: many simulations need little of it
            if isinstance(module, nn.Dropout):
                module.p *= min(1.0, FULL_DROPOUT_ROWS / len(input))
        density.progress(1.0)  # sbi does not say how long it trains
        return cls(density, input.shape[1:], condition.shape[1:], embedding_net)

    def train(self, mode: bool = True) -> DensityEstimator:
        self._update()
        super().train(mode)
        return self

    @property
    def embedding_net(self) -> nn.Module | None:
        return self._embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Float[Tensor, "S B"]:
        """Return log p for inputs (S, B, ...) or (B, ...) and conditions (B, ...) or (S, B, ...)."""
        self._check_input_shape(input)
        features = self._features(condition)
        rows = input if input.dim() > len(self.input_shape) + 1 else input.unsqueeze(0)
        shape = torch.broadcast_shapes(rows.shape[:2], features.shape[:-1])
        rows = rows.expand(*shape, *self.input_shape).reshape(-1, *self.input_shape)
        log_p: Tensor = self._density.log_prob(rows, features.expand(*shape, -1).reshape(len(rows), -1))
        return log_p.reshape(shape)

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Float[Tensor, " B"]:
        """Return what training minimises, in nats; the mean for every row where the density has only a mean."""
        features, density = self._features(condition), self._density
        if density.bound is Bound.EXACT and not (self.training and isinstance(density, Mixture)):
            return -density.log_prob(input, features)
        return density.loss(input, features).expand(len(input))

    def sample(self, sample_shape: Sequence[int], condition: Tensor, **kwargs: Any) -> Tensor:
        """Draw `sample_shape` events for each of B conditions: (*sample_shape, B, ...)."""
        features, density = self._features(condition), self._density
        n = math.prod(sample_shape) * len(features)
        rows = features.expand(n // len(features), *features.shape).reshape(n, -1)
        return density.sample(n, rows).reshape(*sample_shape, len(condition), *self.input_shape)

    @property
    def _density(self) -> Density:
        return cast(Density, self._trained[0]) if self.training else self.net

    @torch.no_grad()
    def _update(self) -> None:
        """Take the trained weights into the average if they may have changed since the last update."""
        if not self._step_follows:
            return
        n = int(self.updates)
        weight = 1 - min(DECAY, (1 + n) / (10 + n)) if n else 1.0
        for average, trained in zip(self._averages(), self._trained, strict=True):
            for mean, new in zip(average.parameters(), trained.parameters(), strict=True):
                mean.lerp_(new, weight)
            for buffer, value in zip(average.buffers(), trained.buffers(), strict=True):
                buffer.copy_(value)
        self.updates += 1
        self._step_follows = False

    def _averages(self) -> list[nn.Module]:
        return [self.net] if self._embedding_net is None else [self.net, self._embedding_net]

    def _features(self, condition: Tensor) -> Float[Tensor, "*B E"]:
        """Return the rows of features that the density is given."""
        if self.training:
            self._update()
            self._step_follows = torch.is_grad_enabled()
        network = None if self._embedding_net is None else self._trained[1] if self.training else self._embedding_net
        self._check_condition_shape(condition)
        lead = condition.shape[: condition.dim() - len(self.condition_shape)]
        rows = condition.reshape(-1, *self.condition_shape)
        features = rows.flatten(1) if network is None else network(rows).flatten(1).tanh()
        return features.reshape(*lead, -1)
