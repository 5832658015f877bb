r"""AnyOrder: the columns of a table in any order, so that any of them can be missing, and any of them given.

D columns, of which S are observed; a missing value is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from loglik.autoregressive.column_distributions import CodeDistribution, ColumnDistribution, NumberDistribution
from loglik.autoregressive.gaussians import Conditionals, Encoded, TableGaussians
from loglik.autoregressive.normal_scores import NormalScores
from loglik.checks import check_codes, check_labels
from loglik.density import Density, embed, initialise_context
from loglik.networks.dropout import fade_dropout
from loglik.networks.soft_bound import tanh_bound

__all__ = ["AnyOrder"]

MAX_INDICATORS = 24  # categories of a column that the Gaussian has a variable for each of
MAX_VARIABLES = 128  # of the Gaussian
EMBEDDING = 16  # of a category of a column with more
FLOOR = 0.05  # a category's smallest starting probability, as a part of its frequency
REACH = 6.0  # beyond it the network sees no difference in a score
FEW_ROWS = 1000  # at which the network's output is halved, so that it learns more slowly than few rows overfit
REST = 0.1  # weight of the component for outliers of a conditional, times the square root of the number of rows
MAX_FITTED_ROWS = 2**13  # of the Gaussians
WIDE = math.log(3.0)  # log-scale of the second component, for outliers


@dataclass(frozen=True)
class Prediction:
    """What the factors of B rows are made of: the network's output for each column, and the Gaussians' conditionals."""

    outputs: list[Tensor]
    gaussians: Conditionals


class AnyOrder(Density):
    r"""The density $p(x) = \prod_t p(x_{\sigma(t)} \mid x_{\sigma(<t)})$, of which one network knows every factor.

    `log_prob` multiplies the factors of the observed columns in the table's order, and `fill` draws the missing ones
    given the observed ones. Each $p(x_d \mid x_S)$ is normalised exactly. So is p(x) for each set of observed columns;
    another order gives the same number only as far as the network has learnt that it must.

    A column of numbers has a mixture of C + 1 Gaussians in normal scores (`NormalScores`), with means $m + s\,a_c$ and
    log-scales $\log s + b_c$. For C of them m and s are those of a Gaussian copula given $x_S$ (`GaussianCopula`), and
    for the last those of a Gaussian of the standardised numbers (`StandardisedGaussian`). The network gives $a_c$,
    $b_c$ and the weights. A column of codes has a probability for each code: the copula's, corrected by the network.
    The network starts at the two Gaussians alone, with the weights of the highest likelihood for each column.

    In training, `loss` is an unbiased estimate of the mean of $-\log p$ over orders: for k uniform in 0 ... n-1 and S
    of k of the n observed columns of a row, $\frac{n}{n-k} \sum_{d \notin S} -\log p(x_d \mid x_S)$; for a fraction
    `in_order` of the rows S is the first k in the table's order. In evaluation it is the mean of $-\log p$.

    Args:
        network: from numbers of inputs and outputs to a network (B, I) -> (B, O), with an `output` layer; it receives
            the context's vector second if there is one.
        event_shape: of the data, D values in total.
        discrete_dims: for each column, whether it holds integers or codes.
        categories: for each column, its number of codes 0, 1, ...; 0 for numbers.
        components: C.
        knots: at most, of each column's map to normal scores.
        in_order: the fraction of training splits in the table's order.
        splits: number of sets S of each row and step.
        context: a network from a context to a vector; None for p(x).

    Reference: Uria, Murray and Larochelle 2014, "A deep and tractable density estimator", eq. 10; Hoogeboom et al.
    2022, "Autoregressive diffusion models", eq. 3; Strauss and Oliva 2021, "Arbitrary conditional distributions with
    energy".

    Raises:
        ValueError: a code beyond its categories.
    """

    marginalises = True
    spread: Tensor
    centre: Tensor
    marginal: Tensor
    log_rest: Tensor
    trust: Tensor
    start: Tensor
    owner: Tensor
    at: Tensor

    def __init__(
        self,
        network: Callable[[int, int], nn.Module],
        event_shape: tuple[int, ...],
        discrete_dims: Sequence[bool],
        *,
        categories: Sequence[int] | None = None,
        components: int = 3,
        knots: int = 64,
        in_order: float = 0.5,
        splits: int = 2,
        context: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.event_shape, self.dims = tuple(event_shape), math.prod(event_shape)
        self.categories = list(categories or [0] * self.dims)
        self.discrete, self.conditional = all(discrete_dims), context is not None
        self.components, self.in_order, self.splits, self.context = components, in_order, splits, context
        self.numbers = [d for d, count in enumerate(self.categories) if not count]
        most = max(MAX_VARIABLES - len(self.numbers), 0)
        self.indicated: list[int] = []
        for d, count in enumerate(self.categories):
            if 0 < count <= MAX_INDICATORS and sum(self.categories[i] for i in self.indicated) + count <= most:
                self.indicated.append(d)
        self.embedded = [d for d, count in enumerate(self.categories) if count and d not in self.indicated]
        self.scores = NormalScores([bool(discrete_dims[d]) for d in self.numbers], knots)
        indicators = sum(self.categories[d] for d in self.indicated)
        self.gaussians = TableGaussians(len(self.numbers), indicators)
        self.register_buffer("centre", torch.zeros(indicators))
        self.register_buffer("spread", torch.ones(indicators))
        self.tables = nn.ModuleList(nn.Embedding(self.categories[d], EMBEDDING) for d in self.embedded)
        self.frequencies = nn.ParameterList(nn.Parameter(torch.zeros(self.categories[d])) for d in self.embedded)
        inputs = 2 * len(self.numbers) + indicators + EMBEDDING * len(self.embedded) + self.dims
        self.sizes = [
            3 * (components + 1) if not count else count if d in self.indicated else EMBEDDING
            for d, count in enumerate(self.categories)
        ]
        self.register_buffer("log_rest", torch.full((2,), -6.0))
        self.register_buffer("trust", torch.ones(()))
        self.register_buffer("marginal", torch.zeros(2, len(self.numbers)))
        self.network = network(inputs, sum(self.sizes))
        for layer in self.output_layers():
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        start = torch.zeros(3, components + 1)
        start[0, 1:-1] = -4.0
        start[2, 1:-1] = torch.linspace(-0.7, WIDE, max(components - 1, 1))[: components - 1].flip(0)
        self.register_buffer("start", start.flatten(), persistent=False)
        owner = list(self.numbers) + [d for d in self.indicated for _ in range(self.categories[d])]
        self.register_buffer("at", torch.tensor(self.numbers, dtype=torch.long), persistent=False)
        self.register_buffer("owner", torch.tensor(owner, dtype=torch.long), persistent=False)

    @property
    def log_kept(self) -> Tensor:
        """Return the log of the weight of the components that the network sets."""
        return torch.log1p(-self.log_rest.exp().sum())

    # ---- evaluation

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        return self.column_log_probs(x, context).sum(1)

    def column_log_probs(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B D"]:
        """Return log p of each observed value given those before it in the table, in nats; 0 for a missing value."""
        self.check(x, context)
        rows = x.flatten(1)
        return self._in_order(rows, context, torch.zeros_like(rows, dtype=torch.bool), ~rows.isnan())

    def conditional_log_prob(
        self,
        x: Shaped[Tensor, "B ..."],
        given: Bool[Tensor, "..."],
        context: Shaped[Tensor, "B ..."] | None = None,
    ) -> Float[Tensor, " B"]:
        """Return log p of the observed values that are not given, given those that are: `given` is (B, D) or (D,)."""
        self.check(x, context)
        rows = x.flatten(1)
        observed = ~rows.isnan()
        given = given.to(rows.device).expand(rows.shape) & observed
        return self._in_order(rows, context, given, observed & ~given).sum(1)

    def _in_order(
        self, rows: Shaped[Tensor, "B D"], context: Tensor | None, given: Tensor, asked: Tensor
    ) -> Float[Tensor, "B D"]:
        """Return log p of the columns asked for, in the table's order, each given those before it and `given`."""
        known, encoded, out = given, self._encode(rows), []
        index = torch.arange(self.dims, device=rows.device)
        for d in range(self.dims):
            log_p = self._log_probs(encoded, self._predict(encoded, known, context), [d])
            out.append(torch.where(asked[:, d], log_p[:, 0], 0.0))
            known = known | (asked & (index == d))
        return torch.stack(out, 1)

    def loss(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, ""]:
        if not self.training:
            return -self.log_prob(x, context).mean()
        self.check(x, context)
        rows = x.flatten(1).repeat(self.splits, 1)
        context = None if context is None else context.repeat(self.splits, *[1] * (context.dim() - 1))
        observed = ~rows.isnan()
        given, weight = self._split(observed)
        encoded = self._encode(rows)
        log_p = self._log_probs(encoded, self._predict(encoded, given, context), range(self.dims))
        missing = observed & ~given
        return -(weight * torch.where(missing, log_p, 0.0).sum(1)).mean()

    def _split(self, observed: Bool[Tensor, "B D"]) -> tuple[Tensor, Tensor]:
        """Return a random subset of the observed columns of each row, and the weight of the others."""
        rows, n = len(observed), observed.sum(1)
        u = (torch.arange(rows, device=observed.device) + torch.rand(rows, device=observed.device)) / rows
        u = u[torch.rand(rows, device=observed.device).argsort()]
        k = torch.minimum((u * n).floor().long(), (n - 1).clamp_min(0))
        keys = torch.rand(observed.shape, device=observed.device)
        ordered = torch.rand(rows, 1, device=observed.device) < self.in_order
        keys = torch.where(ordered, torch.arange(self.dims, device=observed.device) / self.dims, keys)
        rank = torch.where(observed, keys, 2.0).argsort(1).argsort(1)
        given = observed & (rank < k[:, None])
        return given, n / (n - k).clamp_min(1)

    # ---- one column given others

    def column(
        self, x: Shaped[Tensor, "B D"], column: int, context: Shaped[Tensor, "B ..."] | None = None
    ) -> ColumnDistribution:
        """Return the distribution of a column given the observed values of the others in each row.

        Missing values are NaN; the column's own values are ignored.
        """
        return self.columns(x, [column], context)[0]

    @torch.no_grad()
    def columns(
        self, x: Shaped[Tensor, "B D"], columns: Sequence[int], context: Shaped[Tensor, "B ..."] | None = None
    ) -> list[ColumnDistribution]:
        """Return the distribution of each of some columns given the observed values of all other columns."""
        rows = x.flatten(1).to(self.device)
        known = ~rows.isnan()
        known[:, list(columns)] = False
        encoded = self._encode(rows)
        prediction = self._predict(encoded, known, context)
        return [self._distribution(prediction, d) for d in columns]

    @torch.no_grad()
    def impute(self, x: Shaped[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None) -> Float[Tensor, "B D"]:
        """Return rows with each missing value replaced by its conditional mean, or the most probable code.

        A row's missing values are predicted each by itself: for draws that fit one another see `fill`.
        """
        self.check(x, context)
        rows = x.flatten(1).to(self.device)
        prediction = self._predict(self._encode(rows), ~rows.isnan(), context)
        values = torch.stack([self._distribution(prediction, d).mean_value() for d in range(self.dims)], 1)
        return torch.where(rows.isnan(), values.to(rows.dtype), rows).view(x.shape)

    # ---- samples

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n ..."]:
        empty = torch.full((n, self.dims), torch.nan, device=self.device, dtype=self.spread.dtype)
        return self._draw(empty, context)[0].view(n, *self.event_shape)

    @torch.no_grad()
    def fill(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> Tensor:
        """Draw the missing values of each row, NaN, from p(missing | observed)."""
        return self.fill_with_log_prob(x, context)[0]

    @torch.no_grad()
    def fill_with_log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Shaped[Tensor, "B ..."], Float[Tensor, " B"]]:
        """Draw the missing values, NaN, of each row, and return the rows and log p(drawn | observed) in nats."""
        self.check(x, context)
        rows, log_p = self._draw(x.flatten(1).to(self.device), context)
        return rows.view(x.shape), log_p

    def _draw(self, rows: Float[Tensor, "B D"], context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draw the missing columns one after another."""
        known, log_p = ~rows.isnan(), torch.zeros(len(rows), device=rows.device, dtype=self.spread.dtype)
        index = torch.arange(self.dims, device=rows.device)
        for d in range(self.dims):
            distribution = self._distribution(self._predict(self._encode(rows), known, context), d)
            drawn = distribution.sample().to(rows.dtype)
            missing = ~known[:, d]
            log_p = log_p + torch.where(missing, distribution.log_prob(drawn), 0.0)
            rows = torch.where((index == d) & missing[:, None], drawn[:, None], rows)
            known = known | (index == d)
        return rows, log_p

    # ---- the network

    def _encode(self, rows: Shaped[Tensor, "B D"]) -> tuple[Tensor, Encoded]:
        """Return rows with zeros for missing values, and as the Gaussians read them."""
        rows = rows.to(torch.float64)
        codes = rows.nan_to_num(nan=0.0)
        flags = [nn.functional.one_hot(codes[:, d].long(), self.categories[d]) for d in self.indicated]
        indicators = (torch.cat(flags, 1) - self.centre) / self.spread if flags else rows[:, :0]
        return codes, self.gaussians.encode(rows.index_select(1, self.at), indicators, self.scores)

    def _predict(
        self, encoded: tuple[Tensor, Encoded], known: Bool[Tensor, "B D"], context: Tensor | None
    ) -> Prediction:
        """Return what the factors of rows are made of, given their known columns."""
        (codes, x), dtype, n = encoded, self.spread.dtype, len(self.numbers)
        seen = known.index_select(1, self.owner)
        found = self.gaussians(x, seen, self.scores)
        filled = torch.where(seen, x.scores, found.mean).clamp(-REACH, REACH)
        linear = torch.where(seen[:, :n], x.standardised[:, :n], found.linear).clamp(-REACH, REACH)
        vectors = [
            table(codes[:, d].long()) * known[:, d, None] for table, d in zip(self.tables, self.embedded, strict=True)
        ]
        features = torch.cat([filled.to(dtype), linear.to(dtype), *vectors, known.to(dtype)], 1)
        vector = embed(self.context, context)
        raw = self.network(features) if vector is None else self.network(features, vector)
        return Prediction(list((self.trust * raw.to(dtype)).split(self.sizes, 1)), found.to(dtype))

    def _distribution(self, prediction: Prediction, d: int) -> ColumnDistribution:
        """Return the distribution of a column."""
        raw, found = prediction.outputs[d], prediction.gaussians
        if not self.categories[d]:
            j, components = self.numbers.index(d), self.components
            log_weight, shift, log_scale = (raw + self.start).unflatten(1, (3, components + 1)).unbind(1)
            log_weight = torch.cat([log_weight[:, :-1], log_weight[:, -1:] + self.gaussians.log_odds[j]], 1)
            m, log_s = found.mean[:, j, None], found.log_scale[:, j, None]
            centre = torch.cat([m.expand(-1, components), found.linear_mean[:, j, None]], 1)
            log_unit = torch.cat([log_s.expand(-1, components), found.linear_log_scale[:, j, None]], 1)
            marginal = self.marginal[:, j, None, None].expand(2, len(m), 1)
            return NumberDistribution(
                torch.cat([log_weight.log_softmax(-1) + self.log_kept, self.log_rest.expand(len(m), 2)], 1),
                torch.cat([centre + log_unit.exp() * shift, m, marginal[0]], 1),
                torch.cat([log_unit + tanh_bound(log_scale, 5.0), log_s + WIDE, marginal[1]], 1),
                self.scores,
                j,
            )
        if d in self.indicated:
            i = sum(self.categories[other] for other in self.indicated if other < d)
            at = slice(i, i + self.categories[d])
            frequency = self.centre[at]
            linear = frequency + self.spread[at] * found.mean[:, len(self.numbers) :][:, at]
            return CodeDistribution(raw + torch.maximum(linear, FLOOR * frequency).log())
        e = self.embedded.index(d)
        return CodeDistribution(raw @ self.tables[e].weight.T + self.frequencies[e])  # type: ignore[operator, union-attr]

    def _log_probs(
        self, encoded: tuple[Tensor, Encoded], prediction: Prediction, columns: Sequence[int]
    ) -> Float[Tensor, "B columns"]:
        """Return log p of some columns' values."""
        parts, (codes, x) = [], encoded
        for d in columns:
            distribution = self._distribution(prediction, d)
            if isinstance(distribution, NumberDistribution):
                j = slice(distribution.column, distribution.column + 1)
                parts.append(distribution.log_prob_of_scores(x.middle[:, j], x.width[:, j], x.log_det[:, j]))
            else:
                parts.append(distribution.log_prob(codes[:, d])[:, None])
        return torch.cat(parts, 1)

    # ---- training data

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        rows = x.flatten(1)
        check_codes(torch.where(rows.isnan(), torch.zeros_like(rows), rows), self.categories)
        self.check_context(context)

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        check_labels(self.context, context)

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Fit the normal scores, the frequencies of codes and the copula to rows, which may have gaps."""
        self.check(x, context)
        initialise_context(self.context, context)
        rows = x.flatten(1)
        self.scores.initialise(rows.index_select(1, self.at))
        frequency = {d: _frequencies(rows[:, d], count) for d, count in enumerate(self.categories) if count}
        for parameter, d in zip(self.frequencies, self.embedded, strict=True):
            parameter.copy_(frequency[d].log())
        if self.indicated:
            p = torch.cat([frequency[d] for d in self.indicated])
            self.centre.copy_(p)
            self.spread.copy_((p * (1 - p)).sqrt().clamp_min(1e-3))
        some = rows[:: max(-(-len(rows) // MAX_FITTED_ROWS), 1)]
        n, copula = len(self.numbers), self.gaussians.copula
        numbers, indicators = some.index_select(1, self.at), self._encode(some)[1].scores[:, n:]
        self.gaussians.initialise(numbers, indicators, ~some.isnan().index_select(1, self.owner), self.scores)
        variance = copula.covariance.diagonal()[:n]
        self.marginal.copy_(torch.stack([copula.mean[:n], 0.5 * variance.log() + math.log(1.5)]))
        rest = REST / len(rows) ** 0.5
        self.log_rest[0], self.log_rest[1] = math.log(rest), math.log(rest / 4)
        self.trust.fill_(len(rows) / (len(rows) + FEW_ROWS))
        fade_dropout(self.network, len(rows))


def _frequencies(codes: Shaped[Tensor, " N"], count: int) -> Float[Tensor, " K"]:
    """Return the smoothed frequency of each code among those observed."""
    counts = torch.zeros(count, device=codes.device, dtype=torch.float64)
    known = ~codes.isnan()
    counts.scatter_add_(0, torch.where(known, codes, 0).long(), known.to(counts.dtype))
    return (counts + 0.5) / (counts.sum() + 0.5 * count)
