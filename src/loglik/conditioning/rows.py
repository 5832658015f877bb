"""A density over rows as its conditional samplers see it: samples, log p, and the kinds of its columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from loglik.checks import data_checked
from loglik.conditioning.condition import Condition
from loglik.conditioning.mixture import RowMixture
from loglik.density import Density

__all__ = ["PILOT", "Rows", "components_for"]

PILOT = 8192  # samples that show what the density's rows are
MIN_PILOT, MIN_COSTLY_PILOT = 2048, 512
BOUND_DRAWS = 16  # of a bound whose draws are not weights, and are noisy
BLOCK = 4096  # rows in one call
CHEAP = 2e6  # operations of a row up to which rows are scored as often as is useful
CHEAP_SAMPLE = 2e5  # and drawn, which may be one column after the other
COMPONENTS = 32
FEW_CODES = 64  # of a column of integers 0, 1, ... up to which these are taken for codes


def components_for(rows: float, dims: int) -> int:
    """Return how many components so many rows can fit."""
    return int(max(1, min(COMPONENTS, rows / (4 * (dims + 1)))))


class Rows:
    """Samples and log-probabilities of a density over rows (B, D).

    Attributes:
        pilot: samples of the density.
        operations, sampling: multiplications and additions of log p of a row, and of a sample, which decide how many
            rows are scored and drawn.
        discrete, categories: the kinds of its columns; where they are not passed, those of the samples, and only values
            within the samples' range have a probability in columns of integers.
    """

    def __init__(
        self,
        density: Density,
        discrete: Sequence[bool] | None = None,
        categories: Sequence[int] | None = None,
        context: Shaped[Tensor, "1 ..."] | None = None,
        *,
        pilot: int = PILOT,
    ) -> None:
        self.density, self.context = density, context
        self.draws = 1 if density.importance_weighted else BOUND_DRAWS
        self.low, self.high = torch.tensor(-torch.inf), torch.tensor(torch.inf)
        self.operations, self.sampling = self._count()
        fewest = min(pilot, MIN_PILOT, max(MIN_COSTLY_PILOT, int(MIN_PILOT * 10 * CHEAP / max(self.sampling, 1))))
        self.pilot = self.sample(max(fewest, int(pilot * min(1.0, CHEAP / max(self.operations, 1)))))
        whole = (self.pilot == self.pilot.round()).all(0)
        self.discrete = list(discrete) if discrete is not None else whole.tolist()
        low, high = self.pilot.aminmax(dim=0)
        may_be_codes = (whole & (low >= 0) & (high < FEW_CODES)).tolist()
        guessed = [int(high[d]) + 1 if found else 0 for d, found in enumerate(may_be_codes)]
        self.categories = list(categories) if categories is not None else guessed
        # a column of many codes looks like one of integers, and its density accepts no others
        known = torch.full_like(whole, categories is not None) | ~whole
        self.low, self.high = low.masked_fill(known, -torch.inf), high.masked_fill(known, torch.inf)

    def _count(self) -> tuple[float, float]:
        """Return the operations in matrix products that log p of a row takes, and those of a sample."""
        with FlopCounterMode(display=False) as sampling:
            x = self.sample(2)
        with FlopCounterMode(display=False) as counter:
            self.log_prob(x)
        return counter.get_total_flops() / len(x), sampling.get_total_flops() / len(x)

    def contexts(self, n: int) -> Shaped[Tensor, "n ..."] | None:
        """Return the context of n rows; None for a density that has none."""
        return None if self.context is None else self.context.expand(n, *self.context.shape[1:])

    def affordable(self, n: int) -> int:
        """Return how many of n rows to compute at most: all, or fewer where log p of a row takes many operations."""
        return int(max(min(n, len(self.pilot)), n * min(1.0, CHEAP / max(self.operations, 1))))

    def affordable_samples(self, n: int) -> int:
        """Return how many of n samples to draw at most: all, or fewer where a sample takes many operations."""
        return int(max(min(n, len(self.pilot)), n * min(1.0, CHEAP_SAMPLE / max(self.sampling, 1))))

    def sample(self, n: int) -> Shaped[Tensor, "n D"]:
        """Draw rows of the density."""
        parts = []
        for start in range(0, n, BLOCK):
            count = min(BLOCK, n - start)
            drawn = self.density.sample(count, self.contexts(count))
            parts.append(drawn if drawn.is_floating_point() else drawn.float())
        return torch.cat(parts) if parts else self.pilot[:0]

    def log_prob(self, x: Shaped[Tensor, "B D"], samples: int | None = None) -> Float64[Tensor, " B"]:
        """Return log p of rows, -inf where p is not defined; of a bound, the average of some draws."""
        parts = []
        with data_checked():
            for part in torch.split(x, BLOCK):
                inside = part.clamp(self.low, self.high)
                log_p = self.density.log_prob(inside, self.contexts(len(part)), samples=samples or self.draws)
                parts.append(log_p.double().masked_fill((inside != part).any(1), -torch.inf))
        return torch.cat(parts).nan_to_num(nan=-torch.inf, posinf=-torch.inf)

    def mixture(self) -> RowMixture:
        """Return the mixture fitted to the pilot samples."""
        n, d = self.pilot.shape
        even = torch.full((n,), 1 / n, dtype=torch.float64, device=self.pilot.device)
        return RowMixture(self.pilot, even, self.discrete, self.categories, components_for(n, d))

    def is_far(self, condition: Condition) -> bool:
        """Whether all values lie further beyond the samples' range than it is wide."""
        column = self.pilot[:, condition.column]
        low, high = column.min().item(), column.max().item()
        width = max(high - low, 1e-6 * max(abs(low), abs(high)))
        return all(start > high + width or end < low - width for start, end in condition.intervals)
