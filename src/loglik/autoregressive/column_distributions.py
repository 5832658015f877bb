"""The distribution of one column given others: a mixture of Gaussians in normal scores, or the masses of codes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.autoregressive.normal_scores import NormalScores
from loglik.density import sample_categories

__all__ = ["CodeDistribution", "ColumnDistribution", "NumberDistribution", "log_normal_mass"]

NARROW = 0.05  # in standard deviations: the width up to which a cell's mass is its width times a density
FAR = 50.0
STEPS = 60  # of bisection
NODES = 32


def log_normal_mass(middle: Float[Tensor, "..."], width: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Return $\log[\Phi(m + w/2) - \Phi(m - w/2)]$ of an interval of a standard normal variable, in either tail.

    For a width of 0, the log-density at m.
    """
    far = middle.abs()
    log_density = -0.5 * (far.square() + math.log(2 * math.pi))
    narrow = width * (1 + far) < NARROW
    slim = torch.where(narrow, width, 0.0)
    thin = log_density + slim.square() * (far.square() - 1) / 24
    thin = thin + torch.where(slim > 0, slim, 1.0).log()
    broad = torch.where(narrow, 1.0, width)
    at = torch.where(narrow, 0.0, far)
    upper, lower = _log_ndtr(broad / 2 - at), _log_ndtr(-broad / 2 - at)
    # far out the two are equal in floating point: their difference by log Φ(-u) = -u²/2 - log u
    far_out = (at > FAR) & (broad < at)
    ratio = torch.where(far_out, -broad * (at + 1 / at.clamp_min(FAR)), torch.where(far_out, -1.0, lower - upper))
    return torch.where(narrow, thin, upper + torch.log1p(-ratio.exp()))


def _log_ndtr(x: Tensor) -> Tensor:
    """Return log Φ(x). Torch's gradient overflows far out in float32, where a series serves."""
    far = x < -FAR
    y = torch.where(far, -x, FAR)
    series = -0.5 * (y.square() + math.log(2 * math.pi)) - y.log() + torch.log1p(-y.pow(-2))
    return torch.where(far, series, torch.special.log_ndtr(torch.where(far, 0.0, x)))


@dataclass(frozen=True)
class NumberDistribution:
    r"""$p(x \mid x_S)$ of a column of numbers, for each of B rows: $\sum_c \pi_c \mathcal N(T(x); \mu_c, \sigma_c)$.

    Attributes:
        log_weight, mean, log_scale: of the components, in normal scores.
        scores: the map T of all columns of numbers.
        column: which of these.
    """

    log_weight: Float[Tensor, "B C"]
    mean: Float[Tensor, "B C"]
    log_scale: Float[Tensor, "B C"]
    scores: NormalScores
    column: int

    @property
    def _at(self) -> slice:
        return slice(self.column, self.column + 1)

    def log_prob(self, x: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return log p of a value for each row, in nats: a mass of integers, else a density."""
        _, middle, width, log_det = self.scores(x[:, None], self._at)
        return self.log_prob_of_scores(middle, width, log_det)[:, 0]

    def log_prob_of_scores(self, middle: Tensor, width: Tensor, log_det: Tensor) -> Float[Tensor, "B 1"]:
        """Return log p of values (B, 1) as `NormalScores` encodes them."""
        middle, width, log_det = (part.to(self.mean.dtype) for part in (middle, width, log_det))
        inverse = (-self.log_scale).exp()
        masses = log_normal_mass((middle - self.mean) * inverse, width * inverse)
        continuous = torch.where(width > 0, 0.0, 1.0).to(masses.dtype) * self.log_scale
        return (self.log_weight + masses - continuous).logsumexp(-1, keepdim=True) + log_det

    def cdf(self, x: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return P(X ≤ x | x_S), in float64."""
        return self._cdf(self.scores.edges(x[:, None], self._at)[1])[:, 0]

    def probability(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return P(low ≤ X ≤ high | x_S), in float64; ends may be infinite."""
        below, upto = self._limits(low, high)
        return (upto - below).clamp_min(0)

    def quantile(self, p: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return the smallest x with P(X ≤ x | x_S) ≥ p, by bisection."""
        return self.scores.decode(self._inverse(p.double()[:, None]), self._at)[:, 0].float()

    def mean_value(self) -> Float[Tensor, " B"]:
        """Return E[X | x_S], by 32 nodes for each component, without what lies beyond the training data.

        The tails beyond the outermost knots are heavier than the data say; a mean would be of them.
        """
        nodes = torch.special.ndtri((torch.arange(NODES, dtype=torch.float64, device=self.mean.device) + 0.5) / NODES)
        nodes = nodes / nodes.square().mean().sqrt()
        z = self.mean.double()[..., None] + self.log_scale.double().exp()[..., None] * nodes
        last = self.scores.size[self.column] - 1
        ends = self.scores.z[self.column].index_select(0, torch.stack([torch.zeros_like(last), last]))
        z = z.maximum(ends[0]).minimum(ends[1])
        x = self.scores.decode(z.reshape(-1, 1), self._at).view(z.shape).mean(-1)
        return (self.log_weight.double().exp() * x).sum(-1).float()

    def mode(self) -> Float[Tensor, " B"]:
        """Return the median, rounded as the column's numbers are."""
        return self.quantile(torch.full((len(self.mean),), 0.5, device=self.mean.device))

    def sample(self) -> Float[Tensor, " B"]:
        """Draw a value for each row."""
        c = sample_categories(self.log_weight.exp())[:, None]
        mean, scale = self.mean.gather(1, c), self.log_scale.gather(1, c).exp()
        z = mean + scale * torch.randn_like(mean)
        return self.scores.decode(z, self._at, spread=True)[:, 0].to(self.mean.dtype)

    def sample_between(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Draw a value for each row from p(x | x_S, low ≤ x ≤ high); ends may be infinite.

        A row whose `probability` of the range is 0 gets the end nearer to the distribution.
        """
        below, upto = self._limits(low, high)
        u = below + (upto - below) * torch.rand_like(below)
        x = self.scores.decode(self._inverse(u[:, None]), self._at, spread=True)[:, 0]
        return torch.minimum(torch.maximum(x, low.to(x)), high.to(x)).to(self.mean.dtype)

    def _limits(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        finite = torch.stack([low, high], 1).double().clamp(-1e30, 1e30)
        below = self._cdf(self.scores.edges(finite[:, :1], self._at)[0])[:, 0]
        upto = self._cdf(self.scores.edges(finite[:, 1:], self._at)[1])[:, 0]
        return torch.where(low == -torch.inf, 0.0, below), torch.where(high == torch.inf, 1.0, upto)

    def _cdf(self, z: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
        u = (z - self.mean.double()) * (-self.log_scale.double()).exp()
        return (self.log_weight.double().exp() * torch.special.ndtr(u)).sum(-1, keepdim=True)

    def _inverse(self, p: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
        """Return the z with cdf p."""
        mean, scale = self.mean.double(), self.log_scale.double().exp()
        low, high = ((mean + side * 9 * scale) for side in (-1, 1))
        low, high = low.amin(-1, keepdim=True), high.amax(-1, keepdim=True)
        for _ in range(STEPS):
            middle = (low + high) / 2
            under = self._cdf(middle) < p
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return high


@dataclass(frozen=True)
class CodeDistribution:
    """P(k | x_S) of a column of codes 0 ... K-1, for each of B rows, from logits."""

    logits: Float[Tensor, "B K"]

    @property
    def probabilities(self) -> Float[Tensor, "B K"]:
        """Return the probability of each code."""
        return self.logits.softmax(-1)

    def log_prob(self, x: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return log P of a code for each row, in nats."""
        return -torch.nn.functional.cross_entropy(self.logits, x.long(), reduction="none")

    def cdf(self, x: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return P(K ≤ x | x_S), in the order of the codes."""
        return self.probability(torch.zeros_like(x), x)

    def probability(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return P(low ≤ k ≤ high | x_S)."""
        return (self.probabilities.double() * self._within(low, high)).sum(-1)

    def quantile(self, p: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return the first code k with P(K ≤ k | x_S) ≥ p."""
        total = self.probabilities.double().cumsum(-1)
        return (total < p[:, None]).sum(-1).clamp_max(self.logits.shape[1] - 1).to(self.logits.dtype)

    def mean_value(self) -> Float[Tensor, " B"]:
        """Return the most probable code: codes have no mean."""
        return self.mode()

    def mode(self) -> Float[Tensor, " B"]:
        """Return the most probable code."""
        return self.logits.argmax(-1).to(self.logits.dtype)

    def sample(self) -> Float[Tensor, " B"]:
        """Draw a code for each row."""
        return sample_categories(self.probabilities).to(self.logits.dtype)

    def sample_between(self, low: Shaped[Tensor, " B"], high: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Draw a code for each row from P(k | x_S, low ≤ k ≤ high)."""
        logits = self.logits.masked_fill(~self._within(low, high), -torch.inf)
        return sample_categories(logits.softmax(-1)).to(self.logits.dtype)

    def _within(self, low: Tensor, high: Tensor) -> Tensor:
        k = torch.arange(self.logits.shape[1], device=self.logits.device)
        return (k >= low[:, None]) & (k <= high[:, None])


ColumnDistribution = NumberDistribution | CodeDistribution
