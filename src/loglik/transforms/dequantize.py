"""Dequantize: from integers to real numbers, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.checks import check_codes
from loglik.density import Bound
from loglik.transforms.transform import Transform, zeros

__all__ = ["Dequantize"]

TAIL_SHARE = 0.03  # of an end level's noise, beyond its unit interval; about that of a smooth density
DECAY = 8.0  # the tail's density is proportional to d^-(DECAY + 1) at the distance d from the cell's inner end
MIN_DISTANCE = 2**-24  # of u from 0 and 1


class Dequantize(Transform):
    r"""Uniform dequantization $v = x + u$, $u \sim \mathcal U[0, 1)^D$; the cells of known end levels are unbounded.

    The cell of an integer k is $[k, k + 1)$. Of levels 0 ... K-1, the lowest has the cell $(-\infty, 1)$ and the
    highest $[K - 1, \infty)$. In these, v lies at a distance d from the inner end of the cell: uniform on [0, 1) with
    probability 0.97, and with a density $\propto d^{-9}$ beyond. The cells cover the real line, so that
    $P(x) = \int_{\text{cell}(x)} p_v(v)\,dv$ sums to 1 over the valid integers for any density $p_v$, and each sample
    of $p_v$ lies in the cell of a valid integer. $\log p_v(v) - \log q(v \mid x)$ is the logarithm of an importance
    weight for P(x), hence a sample of a lower bound of $\log P(x)$.

    Args:
        levels: K, for integers 0 ... K-1 in each dimension; None for integers of unlimited range.
        discrete: for each dimension, whether it is dequantized; all if None. The other dimensions are unchanged.
        categories: for each dimension, its number of codes 0, 1, ...; 0 for integers of unlimited range.

    Raises:
        ValueError: levels below 2; both levels and categories; a value outside the levels or codes.

    Reference: Theis et al. 2016, "A note on the evaluation of generative models", section 3.1.
    """

    columnwise = True
    mask: Tensor | None
    top: Tensor | None

    def __init__(
        self,
        levels: int | None = None,
        discrete: Sequence[bool] | None = None,
        categories: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if levels is not None and levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        if levels is not None and categories is not None:
            raise ValueError("give levels or categories, got both")
        self.levels = levels
        counts = list(categories or [0] * len(discrete or ()))
        mask = None if discrete is None else torch.tensor(list(discrete), dtype=torch.bool)
        # codes that are not dequantized are integers, too
        self.all_integers = discrete is None or all(on or count for on, count in zip(discrete, counts, strict=True))
        self.codes = counts if discrete is None else [n if on else 0 for on, n in zip(discrete, counts, strict=True)]
        self.has_single = 1 in self.codes  # a column with one code
        top = None if levels is None else torch.tensor(levels - 1.0)
        if any(self.codes):
            top = torch.tensor([count - 1.0 if count else math.inf for count in self.codes])
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("top", top, persistent=False)

    @property
    def bound(self) -> Bound:
        return Bound.LOWER

    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        v, log_slopes = self.encode_dims(x)
        return v, zeros(v) if log_slopes is None else log_slopes.flatten(1).sum(1)

    def encode_dims(self, x: Shaped[Tensor, "B ..."]) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."] | None]:
        """Return what `encode` does, with log dv/du of each dimension instead of the sum; None where they are 0."""
        v = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        u = torch.rand_like(v)
        return self._to_cell(v, u if self.mask is None else u * self.mask)

    def _to_cell(
        self, x: Float[Tensor, "B ..."], u: Float[Tensor, "B ..."]
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."] | None]:
        """Map u in [0, 1), or 0 in real dimensions, to the cell of x: (v, log dv/du); None where the slope is 1."""
        v = x + u
        if self.top is None:
            return v, None
        top = self.top.to(v.dtype)
        self.check(x)
        known = top.isfinite()
        lowest, highest = known & (x == 0), known & (x == top)
        # the distance from the inner end of the cell, and its log-slope; v increases with u in both end cells
        rest = torch.where(lowest, u, 1 - u).clamp_min(MIN_DISTANCE)
        far = rest < TAIL_SHARE
        distance = torch.where(far, (rest / TAIL_SHARE).clamp_max(1) ** (-1 / DECAY), (1 - rest) / (1 - TAIL_SHARE))
        log_slope = torch.where(far, distance.log() - math.log(DECAY) - rest.log(), -math.log1p(-TAIL_SHARE))
        ends = torch.where(lowest, 1 - distance, x + distance)
        if self.has_single:  # a single code has the real line as its cell
            alone = lowest & highest
            inside = u.clamp(MIN_DISTANCE, 1 - MIN_DISTANCE)
            ends = torch.where(alone, 0.5 + 0.25 * (inside.log() - (-inside).log1p()), ends)
            log_slope = torch.where(alone, math.log(0.25) - inside.log() - (-inside).log1p(), log_slope)
        at_end = lowest | highest
        return torch.where(at_end, ends, v), torch.where(at_end, log_slope, 0.0)

    def check(self, x: Shaped[Tensor, "B ..."]) -> None:
        check_codes(x.flatten(1), self.codes, missing=True)  # a Flow checks levels itself

    def decode(
        self, z: Float[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Shaped[Tensor, "B ..."]:
        x = z.floor()
        if self.top is not None:
            x = torch.where(self.top.isfinite(), torch.minimum(x.clamp_min(0), self.top.to(x.dtype)), x)
        if self.mask is not None:
            return torch.where(self.mask, x, z)
        if self.levels is None:
            return x.long()
        return x.to(torch.uint8 if self.levels <= 256 else torch.int64)

    def decoded_discrete(self, discrete: bool) -> bool:
        return self.all_integers
