"""The validation: when it is due, and the log-likelihoods of a subset of the validation split."""

from __future__ import annotations

import math

from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from loglik.data.dataset import Data
from loglik.density import Density
from loglik.evaluation.scores import default_samples, log_probs
from loglik.training.batches import MAX_BYTES
from loglik.training.settings import TrainingSettings

__all__ = ["Validation"]

MAX_VALIDATIONS = 25  # of a run whose only limit is time
MAX_TOKENS = 2**15  # of a text
MIN_DRAWS = 512  # over all examples, where draws only average


class Validation:
    """Evaluate a density on evenly spaced examples of the validation split, every few steps or seconds.

    Args:
        data: its validation split, and its kind, which sets the size of the subset.
        settings: `validate_every`, `max_time` and `seed`.
        fabric: the device and the ranks.
        epoch: the steps of an epoch.
    """

    def __init__(self, data: Data, settings: TrainingSettings, fabric: Fabric, epoch: int) -> None:
        dims, text = data.spec.dims, data.train.unit == "token"
        max_examples = max(64, MAX_TOKENS // dims) if text else max(128, min(1024, 2**19 // dims))
        self.subset = data.validation.evenly(max_examples).to(fabric.device, max_bytes=MAX_BYTES)
        self.settings, self.fabric = settings, fabric
        self.every = settings.validate_every or max(25, min(500, epoch))
        self.by_time = settings.max_time is not None and settings.validate_every is None
        self.next_time = 0.0

    def due(self, step: int, elapsed: float) -> bool:
        """Return whether to validate after a step, when training has taken so many seconds."""
        return elapsed >= self.next_time if self.by_time else step % self.every == 0

    def schedule_next(self, elapsed: float, seconds: float) -> None:
        """Set the time of the next validation: an even time, but at least 3x the seconds that the last one took."""
        gap = (self.settings.max_time or math.inf) / MAX_VALIDATIONS
        even = (math.floor(elapsed / gap) + 1) * gap if gap < math.inf else 0.0
        self.next_time = max(even, elapsed + 3 * seconds)

    def scores(self, density: Density) -> Float[Tensor, " N"]:
        """Return the log-likelihood of each example, in nats."""
        size = len(self.subset)
        samples = min(4, default_samples(density, size))
        if not density.importance_weighted:  # draws only average, as examples do
            samples = max(1, min(samples, MIN_DRAWS // size))
        return log_probs(density, self.subset, samples=samples, seed=self.settings.seed, fabric=self.fabric)
