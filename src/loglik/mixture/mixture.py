"""Mixture densities: an ensemble of networks, each with a mixture of products of simple distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn

from loglik.checks import check_codes
from loglik.density import Density, initialise_context, sample_categories
from loglik.mixture.asinh import Asinh
from loglik.mixture.conditional import CodeGiven, NumberGiven
from loglik.mixture.neighbours import LOG_SCALES, Neighbours
from loglik.mixture.normal import interval_log_prob, normal_log_prob
from loglik.networks.ensemble import EnsembleMLP

__all__ = ["Mixture"]

MIN_LOG_SCALE, MAX_LOG_SCALE = -7.0, 3.0
START_SCALE = 0.5  # of the components, in standard deviations of the data
SPREAD = 0.7  # of the components' means
NOISE = 0.1  # of the offsets, by which the members differ at the start
SMOOTHING = 0.5  # added to the count of a code
TEMPERATURES = torch.linspace(-0.5, 1.0, 31, dtype=torch.float64)
INITIAL_ROWS = 2**14
CALIBRATION_ROWS = 2**12  # of the validation split
POINTS = 64  # of the integrals of the moments


@dataclass(frozen=True)
class Components:
    """The components of M members for B rows: K each, over R numbers and over codes.

    Attributes:
        log_weight: log π, normalised over K.
        mean, log_scale: of the numbers after their map.
        log_codes: the log-probabilities of each column of C codes, (M, B, K, C).
    """

    log_weight: Float[Tensor, "M B K"]
    mean: Float[Tensor, "M B R K"]
    log_scale: Float[Tensor, "M B R K"]
    log_codes: list[Tensor]


class Mixture(Density):
    r"""$p(x \mid c) = \frac1M \sum_m \sum_k \pi_{mk}(c) \prod_d p_{mk}(x_d \mid c)$, exact.

    A number is normal after a monotone map, `Asinh`; an integer has the mass of the interval $[x - \frac12, x +
    \frac12)$; a code has a probability. A missing value, NaN, is marginalised: its factor is left out. With inputs,
    each of M networks gives a mixture density; they are trained each on its own likelihood, and their mixture is
    evaluated. Without inputs there is one mixture of products, M = 1.

    `calibrate` chooses a factor of all scales by the likelihood of the validation split, and whether training rows with
    nearly the same inputs become components too, in evaluation: see `Neighbours`.

    Args:
        discrete_dims: for each dimension, whether it holds integers.
        categories: for each dimension, its number of codes 0, 1, ...; 0 for numbers.
        inputs: a network from a context to `outputs` features, such as `ColumnFeatures`; None for p(x).
        members: M.
        components: K.
        width, depth, dropout: of each member's network.
        neighbours: training rows that are remembered, at most; 0 for none.
        input_columns: of the context.

    Reference: Bishop 1994, "Mixture density networks"; Lakshminarayanan et al. 2017, "Simple and scalable predictive
    uncertainty estimation using deep ensembles".
    """

    marginalises = True
    log_temperature: Tensor
    real: Tensor
    integers: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        discrete_dims: Sequence[bool],
        categories: Sequence[int],
        *,
        inputs: nn.Module | None = None,
        members: int = 5,
        components: int = 4,
        width: int = 64,
        depth: int = 2,
        dropout: float = 0.1,
        neighbours: int = 0,
        input_columns: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape, self.categories = (len(discrete_dims),), tuple(categories)
        self.discrete, self.conditional = all(discrete_dims), inputs is not None
        self.members, self.components = (members if inputs is not None else 1), components
        real = [d for d, count in enumerate(categories) if count == 0]
        self.codes = [d for d, count in enumerate(categories) if count]
        integers = [i for i, d in enumerate(real) if discrete_dims[d]]  # among the numbers
        # a list as an index would make a GPU wait
        self.register_buffer("real", torch.tensor(real, dtype=torch.long), persistent=False)
        self.register_buffer("integers", torch.tensor(integers, dtype=torch.long), persistent=False)
        r, k = len(real), components
        self.sizes = [k, r * k, r * k, *[k * categories[d] for d in self.codes]]
        self.inputs = inputs
        self.network: EnsembleMLP | None = None
        if inputs is not None:
            features: int = inputs.outputs  # type: ignore[assignment]
            self.network = EnsembleMLP(members, features, sum(self.sizes), width=width, depth=depth, dropout=dropout)
        self.offsets = nn.Parameter(torch.zeros(self.members * sum(self.sizes)))
        self.map = Asinh(r)
        self.neighbours: Neighbours | None = None
        if inputs is not None and neighbours:
            self.neighbours = Neighbours(neighbours, input_columns, len(discrete_dims))
        self.register_buffer("log_temperature", torch.zeros(()))
        self.register_buffer("low", torch.zeros(r))
        self.register_buffer("high", torch.zeros(r))

    # ---- the components

    def mixture(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Components:
        """Return the components of n rows; the neighbours' are the last of each member, if there are any."""
        parts = self._of_networks(n, context)
        if self.neighbours is None or not self.neighbours.used or self.training:
            return parts
        distance, near = self._neighbours(context)
        log_weight, log_rest = self.neighbours.log_weights(distance)
        more = self._of_rows(self.neighbours.y[near], self.neighbours.log_scale)
        return Components(
            _join(parts.log_weight + log_rest[:, None], log_weight[None]),
            _join(parts.mean, more.mean),
            _join(parts.log_scale, more.log_scale),
            [_join(own, other, 2) for own, other in zip(parts.log_codes, more.log_codes, strict=True)],
        )

    def _of_networks(self, n: int, context: Tensor | None) -> Components:
        raw = self.offsets.view(self.members, 1, -1)
        if self.network is None or self.inputs is None:
            pass  # the components of all rows are the same: they are expanded below
        elif context is None:
            raise ValueError("this density is p(targets | inputs): pass the inputs as the context, one row each")
        else:
            raw = raw + self.network(self.inputs(context))
        k, r = self.components, len(self.real)
        weight, mean, log_scale, *codes = raw.split(self.sizes, -1)
        none = mean.new_zeros(*mean.shape[:2], 0, k)
        parts = (
            weight.log_softmax(-1),
            mean.unflatten(-1, (r, k)) if r else none,
            self._log_scale(log_scale.unflatten(-1, (r, k)) if r else none),
            *(c.unflatten(-1, (k, -1)).log_softmax(-1) for c in codes),
        )
        weight, mean, log_scale, *codes = (part.expand(-1, n, *[-1] * (part.dim() - 2)) for part in parts)
        return Components(weight, mean, log_scale, codes)

    def _neighbours(self, context: Tensor | None) -> tuple[Float[Tensor, "B J"], Int64[Tensor, "B J"]]:
        """Return the distances to the nearest remembered rows, and their numbers."""
        assert self.neighbours is not None and self.inputs is not None
        return self.neighbours.nearest(self.inputs(context), self.inputs(self.neighbours.inputs()))

    def _of_rows(self, y: Float[Tensor, "B J D"], log_scale: Float[Tensor, ""]) -> Components:
        """Return components at the targets of remembered rows, for one member."""
        mean = self.map.encode(y[..., self.real])[0].nan_to_num(nan=0.0).movedim(-1, -2)[None]
        other = log_scale.exp()  # of a code, the probability that is shared by all codes
        codes = []
        for d in self.codes:
            count = self.categories[d]
            own = F.one_hot(y[..., d].nan_to_num(nan=0.0).long(), count).to(mean)
            codes.append(torch.log((1 - other) * own + other / count)[None])
        return Components(mean.new_zeros(1, *y.shape[:2]), mean, log_scale.expand_as(mean), codes)

    def _log_scale(self, raw: Tensor) -> Tensor:
        return raw.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE) + self.log_temperature

    # ---- the density

    def log_prob(
        self, x: Shaped[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x, context)
        return self._by_member(x, context).logsumexp(0) - math.log(self.members)

    def loss(self, x: Shaped[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        """Return the mean of the members' own losses, whose gradients do not mix the members."""
        self.check(x, context)
        return -self._by_member(x, context).mean()

    def _by_member(self, x: Tensor, context: Tensor | None) -> Float[Tensor, "M B"]:
        return self._joint(x, self.mixture(len(x), context)).logsumexp(-1)

    def _joint(self, x: Shaped[Tensor, "B D"], parts: Components) -> Float[Tensor, "M B K"]:
        """Return log π + log p(observed values) of each component."""
        return parts.log_weight + self._factors(x, parts)

    def _factors(self, x: Shaped[Tensor, "B D"], parts: Components) -> Float[Tensor, "M B K"]:
        """Return log p(observed values) of each component."""
        total = x.new_zeros((), dtype=parts.mean.dtype)
        if len(self.real):
            total = total + self._numbers(x[:, self.real].to(parts.mean.dtype), parts).sum(-2)
        for d, log_codes in zip(self.codes, parts.log_codes, strict=True):
            known = ~x[:, d].isnan() if x.is_floating_point() else torch.ones_like(x[:, d], dtype=torch.bool)
            code = torch.where(known, x[:, d], 0).long().view(1, -1, 1, 1).expand(*log_codes.shape[:3], 1)
            total = total + torch.where(known[:, None], log_codes.gather(-1, code).squeeze(-1), 0.0)
        return total

    def _numbers(self, x: Float[Tensor, "B R"], parts: Components) -> Float[Tensor, "M B R K"]:
        known = ~x.isnan()
        x = torch.where(known, x, self.map.at.to(x.dtype))  # NaN would reach the gradients
        u, log_slope = self.map.encode(x)
        log_p = normal_log_prob((u[..., None] - parts.mean) * torch.exp(-parts.log_scale)) - parts.log_scale
        log_p = log_p + log_slope[..., None]
        if len(self.integers):
            i = self.integers
            mean, inverse = parts.mean[..., i, :], torch.exp(-parts.log_scale[..., i, :])
            ends = [self.map.encode(x + side)[0][..., i, None] for side in (-0.5, 0.5)]
            mass = interval_log_prob(*[(end - mean) * inverse for end in ends])
            log_p = log_p.index_copy(-2, i, mass)
        return torch.where(known[..., None], log_p, 0.0)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n D"]:
        return self._draw(self.mixture(n, context), torch.arange(n, device=self.offsets.device))

    @torch.no_grad()
    def sample_each(
        self, n: int, draws: int, context: Shaped[Tensor, "n ..."] | None = None
    ) -> Shaped[Tensor, "n draws D"]:
        """Draw several samples for each of n rows, whose components are computed once."""
        rows = torch.arange(n, device=self.offsets.device).repeat_interleave(draws)
        return self._draw(self.mixture(n, context), rows).view(n, draws, -1)

    def _draw(self, parts: Components, rows: Int64[Tensor, " N"]) -> Shaped[Tensor, "N D"]:
        m = torch.randint(self.members, (len(rows),), device=rows.device)
        return self._draw_from(parts, m, rows, sample_categories(parts.log_weight[m, rows].exp()))

    def _draw_from(self, parts: Components, m: Tensor, rows: Tensor, k: Tensor) -> Shaped[Tensor, "N D"]:
        """Draw from component k of member m for each row."""
        x = parts.mean.new_empty(len(rows), *self.event_shape)
        mean, scale = parts.mean[m, rows, :, k], parts.log_scale[m, rows, :, k].exp()
        x[:, self.real] = self._in_units(mean + scale * torch.randn_like(mean)).to(x.dtype)
        for d, log_codes in zip(self.codes, parts.log_codes, strict=True):
            x[:, d] = sample_categories(log_codes[m, rows, k].exp()).to(x.dtype)
        return x

    def _in_units(self, u: Float[Tensor, "... R"]) -> Float[Tensor, "... R"]:
        """Return numbers in the units of the data, in float64: integers are rounded."""
        y = self.map.decode(u)
        y[..., self.integers] = y[..., self.integers].round()
        return y

    def check(self, x: Shaped[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        if self.codes:
            check_codes(x.nan_to_num(nan=0.0) if x.is_floating_point() else x, self.categories)

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N D"], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Fit the maps of numbers, and start the components from the marginal distributions.

        Without inputs the components start at rows of the data.
        """
        initialise_context(self.inputs, context)
        if self.neighbours is not None and context is not None:
            self.neighbours.remember(context, x)
        x = x.to(self.offsets.dtype)
        numbers = x[:, self.real]
        self.map.initialise(numbers)
        if len(self.real):
            self.low.copy_(numbers.nan_to_num(nan=math.inf).amin(0))
            self.high.copy_(numbers.nan_to_num(nan=-math.inf).amax(0))
        m, k = self.members, self.components
        picked = x[torch.randint(len(x), (k,), device=x.device)]
        u = self.map.encode(picked[:, self.real])[0].nan_to_num(nan=0.0).T
        if self.network is not None:
            place = (torch.arange(k, device=x.device, dtype=x.dtype) + 0.5) / k
            u = (SPREAD * torch.special.ndtri(place)).expand(len(self.real), k)
        parts = [x.new_zeros(k), u.flatten(), torch.full_like(u, math.log(START_SCALE)).flatten()]
        for d in self.codes:
            column = x[: 2**20, d]
            counts = torch.bincount(column[~column.isnan()].long(), minlength=self.categories[d]).to(x) + SMOOTHING
            log_p = (counts / counts.sum()).log().repeat(k, 1)
            if self.network is None:
                known = ~picked[:, d].isnan()
                log_p[known, picked[known, d].long()] += 1.0
            parts.append(log_p.flatten())
        offsets = torch.cat(parts).repeat(m)
        self.offsets.copy_(offsets + NOISE * torch.randn_like(offsets))

    @torch.no_grad()
    def calibrate(self, x: Shaped[Tensor, "N D"], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Choose the factor of all scales and the neighbours' weights by the likelihood of the validation split."""
        x, context = x[:CALIBRATION_ROWS], None if context is None else context[:CALIBRATION_ROWS]
        if self.neighbours is None:
            self._choose_temperature(x, context)
            return
        self.neighbours.forget_use()
        self._choose_temperature(x, context)
        distance, near = self._neighbours(context)
        y = self.neighbours.y[near]
        by_scale = [self._factors(x, self._of_rows(y, y.new_tensor(scale)))[0] for scale in LOG_SCALES]
        self.neighbours.choose(self.log_prob(x, context), distance, by_scale)
        if self.neighbours.used:
            self._choose_temperature(x, context)  # the networks are left with the rows that have no neighbour

    def _choose_temperature(self, x: Tensor, context: Tensor | None) -> None:
        """Set the mean of the posterior: with few rows, the most likely temperature is often too low."""
        scores = []
        for value in TEMPERATURES.tolist():
            self.log_temperature.fill_(value)
            scores.append(self.log_prob(x, context).double().sum())
        posterior = torch.stack(scores).softmax(0)
        self.log_temperature.copy_(posterior @ TEMPERATURES.to(posterior.device))

    def output_layers(self) -> tuple[nn.Module, ...]:
        return ()

    # ---- some columns given others

    @torch.no_grad()
    def fill(self, x: Shaped[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None) -> Shaped[Tensor, "B D"]:
        """Draw the missing values of each row, NaN, from p(missing | observed)."""
        self.check(x, context)
        parts = self.mixture(len(x), context)
        j = sample_categories(self._components_given(x, parts)[0])
        rows = torch.arange(len(x), device=x.device)
        k = parts.log_weight.shape[-1]  # with neighbours, more than the networks' components
        drawn = self._draw_from(parts, j // k, rows, j % k)
        return torch.where(x.isnan(), drawn.to(x.dtype), x)

    @torch.no_grad()
    def column(
        self, x: Shaped[Tensor, "B D"], d: int, context: Shaped[Tensor, "B ..."] | None = None
    ) -> NumberGiven | CodeGiven:
        """Return the distribution of column d given the observed values of the other columns of each row."""
        others = x.clone()
        others[:, d] = math.nan
        parts = self.mixture(len(x), context)
        weight, flat = self._components_given(others, parts)
        if d in self.codes:
            log_codes = flat(parts.log_codes[self.codes.index(d)])
            return CodeGiven((weight[..., None] * log_codes.double().exp()).sum(1))
        j = self.real.tolist().index(d)
        mean, log_scale = (flat(part[:, :, j]).double() for part in (parts.mean, parts.log_scale))
        return NumberGiven(weight, mean, log_scale.exp(), self.map, j, j in self.integers.tolist())

    def _components_given(
        self, x: Shaped[Tensor, "B D"], parts: Components
    ) -> tuple[Float64[Tensor, "B MK"], Callable[[Tensor], Tensor]]:
        """Return the weights of all members' components given the observed values, and what flattens (M, B, K, ...)."""

        def flat(part: Tensor) -> Tensor:
            return part.transpose(0, 1).flatten(1, 2)

        return flat(self._joint(x, parts)).double().softmax(1), flat

    # ---- each dimension by itself

    @torch.no_grad()
    def marginal_cdf(
        self, x: Float[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B D"]:
        r"""Return $P(X_d \le x_d \mid c)$ of each number, in float64; NaN for codes."""
        out = x.new_full(x.shape, math.nan, dtype=torch.float64)
        if len(self.real):
            y = x[:, self.real].double()
            y[:, self.integers] += 0.5
            out[:, self.real] = _cdf(self.mixture(len(x), context), self.map.encode(y)[0])
        return out

    @torch.no_grad()
    def marginal_quantiles(
        self, n: int, levels: Sequence[float], context: Shaped[Tensor, "n ..."] | None = None
    ) -> Float[Tensor, "n Q D"]:
        """Return the quantiles of each number by bisection of its distribution function; NaN for codes."""
        parts = self.mixture(n, context)
        out = parts.mean.new_full((n, len(levels), *self.event_shape), math.nan, dtype=torch.float64)
        reach = 8 * parts.log_scale.exp()
        for j, level in enumerate(levels):
            low = (parts.mean - reach).amin((0, 3)).double()
            high = (parts.mean + reach).amax((0, 3)).double()
            for _ in range(40):
                middle = (low + high) / 2
                below = _cdf(parts, middle) < level
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            out[:, j, self.real] = self._in_units((low + high) / 2)
        return out

    @torch.no_grad()
    def marginal_moments(
        self, n: int, context: Shaped[Tensor, "n ..."] | None = None
    ) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n D"]]:
        """Return the mean and the standard deviation of each number; NaN for codes.

        Values further from the training data than their range count as at that distance: after an asinh, a component of
        tiny weight can have a mean without bound.
        """
        parts = self.mixture(n, context)
        out = parts.mean.new_full((2, n, *self.event_shape), math.nan, dtype=torch.float64)
        weight = parts.log_weight.exp().double()[:, :, None] / self.members
        low, high, at = (bound.double()[:, None] for bound in (self.low, self.high, self.map.at))
        reach = high - low
        first, second = parts.mean.new_zeros(2, n, len(self.real), dtype=torch.float64)
        for z in _normal_points():  # one point at a time: memory stays that of the components
            u = (parts.mean.double() + parts.log_scale.double().exp() * z).movedim(-2, -1)
            y = self._in_units(u).movedim(-1, -2)
            v = torch.maximum(torch.minimum(y, high + reach), low - reach) - at
            first = first + (weight * v).sum((0, 3)) / POINTS
            second = second + (weight * v.square()).sum((0, 3)) / POINTS
        if len(self.real):
            out[0][:, self.real] = first + self.map.at
            out[1][:, self.real] = (second - first.square()).clamp_min(0).sqrt()
        return out[0], out[1]

    @torch.no_grad()
    def marginal_probabilities(
        self, n: int, context: Shaped[Tensor, "n ..."] | None = None
    ) -> dict[int, Float[Tensor, "n C"]]:
        """Return the probabilities of the codes, by the number of their dimension."""
        parts = self.mixture(n, context)
        log_weight = parts.log_weight - math.log(self.members)
        return {
            d: (log_weight[..., None] + log_codes).logsumexp((0, 2)).exp().double()
            for d, log_codes in zip(self.codes, parts.log_codes, strict=True)
        }


def _join(own: Shaped[Tensor, "M ..."], other: Shaped[Tensor, "1 ..."], dim: int = -1) -> Shaped[Tensor, "M ..."]:
    """Return each member's components, then those that all members share."""
    return torch.cat([own, other.expand(len(own), *other.shape[1:])], dim)


def _normal_points() -> list[float]:
    """Return points of equal weight with the mean and the variance of N(0, 1)."""
    place = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    z = torch.special.ndtri(place)
    points: list[float] = (z / z.std(correction=0)).tolist()
    return points


def _cdf(parts: Components, u: Float[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    """Return the distribution function of each number after its map."""
    z = (u[..., None] - parts.mean.double()) * torch.exp(-parts.log_scale.double())
    weight = parts.log_weight.double().exp()[:, :, None]
    return (weight * torch.special.ndtr(z)).sum(-1).mean(0)
