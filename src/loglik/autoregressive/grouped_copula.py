r"""GroupedCopula: a Gaussian copula for each category of one column, fitted in closed form.

D columns, of which R are numbers; a missing value is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from loglik.autoregressive.column_distributions import log_normal_mass
from loglik.autoregressive.copula import GaussianCopula
from loglik.autoregressive.normal_scores import NormalScores
from loglik.checks import check_codes
from loglik.density import Density, sample_categories

__all__ = ["GroupedCopula"]

MAX_GROUPS = 10  # categories of a column that can have a copula each
MIN_ROWS = 20  # of a category with a copula of its own
SMOOTHING = 0.5  # added to the count of a code
CHUNK = 512  # rows whose matrices are decomposed together


class GroupedCopula(Density):
    r"""The density $p(x) = P(g) \prod_{\text{codes}} P_g(x_c) \prod_{\text{numbers}} p_g(x_d \mid z_{<d})$.

    g is the code of one column, of at most 10 categories. Each category with 20 rows or more has its own maps to normal
    scores (`NormalScores`, smooth), a Gaussian copula of the scores z (`GaussianCopula`), and frequencies of the other
    codes; all others share those of the whole table. An integer has the mass of its cell. The column is the one that
    gives every other training row the highest likelihood under a fit to the rest, or none. There is no training by
    gradients, and a missing value is left out: the density of the others is normalised.

    Args:
        discrete_dims: for each column, whether it holds integers or codes.
        categories: for each column, its number of codes 0, 1, ...; 0 for numbers.
        knots: at most, of each column's map to normal scores.

    Reference: Nelsen 2006, "An introduction to copulas"; Olkin and Tate 1961, "Multivariate correlation models with
    mixed discrete and continuous variables", the location model.

    Raises:
        ValueError: a code beyond its categories.
    """

    marginalises = True
    closed_form = True
    at: Tensor
    chosen: Tensor

    def __init__(self, discrete_dims: Sequence[bool], categories: Sequence[int], *, knots: int = 32) -> None:
        super().__init__()
        self.event_shape, self.categories = (len(discrete_dims),), tuple(categories)
        self.discrete = all(discrete_dims)
        self.numbers = [d for d, count in enumerate(categories) if not count]
        self.codes = [d for d, count in enumerate(categories) if count]
        self.candidates = [d for d in self.codes if 1 < categories[d] <= MAX_GROUPS]
        slots = 1 + max((categories[d] for d in self.candidates), default=0)  # the first is of all rows
        integer = [bool(discrete_dims[d]) for d in self.numbers]
        self.scores = nn.ModuleList(NormalScores(integer, knots, smooth=True) for _ in range(slots))
        self.gaussians = nn.ModuleList(GaussianCopula(len(self.numbers)) for _ in range(slots))
        for d in self.codes:
            uniform = torch.full((slots, categories[d]), 1 / categories[d], dtype=torch.float64)
            self.register_buffer(f"table_{d}", uniform)
        self.register_buffer("chosen", torch.tensor([-1] + [0] * slots))  # the column g, and which slots are fitted
        self.group, self.fitted = -1, [False] * slots  # the same on the host, so that no batch waits for a GPU
        self.register_load_state_dict_post_hook(_note_chosen)
        self.register_buffer("at", torch.tensor(self.numbers, dtype=torch.long), persistent=False)

    def log_prob(
        self, x: Shaped[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        self.check(x)
        if self.group < 0:
            return self._log_prob_in(0, x)
        by_slot = {slot: self._log_prob_in(slot, x) for slot in self._slots()}
        log_p = torch.stack([by_slot[slot] for slot in self._slots()], 1) + self._table(self.group)[0].log()
        g = x[:, self.group]
        own = log_p.gather(1, g.nan_to_num(nan=0.0).long()[:, None])[:, 0]
        return torch.where(g.isnan(), log_p.logsumexp(1), own)

    def _slots(self) -> list[int]:
        """Return which slot each code of the column g has."""
        return [code + 1 if self.fitted[code + 1] else 0 for code in range(self.categories[self.group])]

    def _table(self, d: int) -> Float[Tensor, "slots C"]:
        """Return the probabilities of a column's codes in each slot."""
        found: Tensor = getattr(self, f"table_{d}")
        return found

    def _log_prob_in(self, slot: int, x: Shaped[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return log p of the observed values given a slot, without the column g."""
        log_p = self._log_prob_of_numbers(slot, x.index_select(1, self.at).double())
        for d in self.codes:
            if d != self.group:
                log_codes = self._table(d)[slot].log()[x[:, d].nan_to_num(nan=0.0).long()]
                log_p = log_p + torch.where(x[:, d].isnan(), 0.0, log_codes)
        return log_p

    def _log_prob_of_numbers(self, slot: int, numbers: Float[Tensor, "B R"]) -> Float[Tensor, " B"]:
        seen, gaussian = ~numbers.isnan(), self._gaussian(slot)
        z, middle, width, log_det = self._scores(slot)(torch.where(seen, numbers, 0.0))
        centred = torch.where(seen, z - gaussian.mean, 0.0)
        log_p = []
        for rows in torch.arange(len(numbers), device=numbers.device).split(CHUNK):
            on = seen[rows]
            alike = on.device.type == "cpu" and not torch.compiler.is_compiling() and bool((on == on[:1]).all())
            factor = self._factor(slot, on[:1] if alike else on)
            e = torch.linalg.solve_triangular(factor, centred[rows, :, None], upper=False)
            scale = factor.diagonal(dim1=1, dim2=2)
            mean = (factor @ e)[..., 0] - scale * e[..., 0] + gaussian.mean
            mass = log_normal_mass((middle[rows] - mean) / scale, width[rows] / scale)
            log_p.append(mass - torch.where(width[rows] > 0, 0.0, scale.log()))
        total = torch.cat(log_p) + log_det if log_p else log_det
        return torch.where(seen, total, 0.0).sum(1)

    def _scores(self, slot: int) -> NormalScores:
        found = self.scores[slot]
        assert isinstance(found, NormalScores)
        return found

    def _gaussian(self, slot: int) -> GaussianCopula:
        found = self.gaussians[slot]
        assert isinstance(found, GaussianCopula)
        return found

    def _factor(self, slot: int, seen: Bool[Tensor, "B R"]) -> Float[Tensor, "B R R"]:
        """Return the Cholesky factor of the covariance of what is seen, with rows of the identity for the rest."""
        on = seen.double()
        covariance = on[:, :, None] * self._gaussian(slot).covariance * on[:, None, :]
        return torch.linalg.cholesky_ex(covariance + torch.diag_embed(1 - on))[0]

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Float[Tensor, "n D"]:
        x = torch.zeros(n, *self.event_shape, dtype=torch.float64, device=self.at.device)
        slots = self._slots() if self.group >= 0 else [0]
        slot = torch.zeros(n, dtype=torch.long, device=x.device)
        if self.group >= 0:
            code = sample_categories(self._table(self.group)[0].expand(n, -1))
            x[:, self.group] = code.double()
            slot = sum((torch.where(code == k, own, 0) for k, own in enumerate(slots)), slot)
        for d in self.codes:
            if d != self.group:
                x[:, d] = sample_categories(self._table(d)[slot]).double()
        for own in set(slots):
            numbers = self._draw_numbers(own, n)
            for j, d in enumerate(self.numbers):
                x[:, d] = torch.where(slot == own, numbers[:, j], x[:, d])
        return x.float()

    def _draw_numbers(self, slot: int, n: int) -> Float[Tensor, "n R"]:
        """Draw the numbers of n rows, each given the scores of those before it."""
        gaussian, scores = self._gaussian(slot), self._scores(slot)
        factor = self._factor(slot, torch.ones(1, len(self.numbers), dtype=torch.bool, device=self.at.device))[0]
        x = torch.zeros(n, len(self.numbers), dtype=torch.float64, device=self.at.device)
        e = torch.zeros_like(x)
        for j in range(len(self.numbers)):
            column = slice(j, j + 1)
            mean = gaussian.mean[j] + e[:, :j] @ factor[j, :j]
            x[:, column] = scores.decode((mean + factor[j, j] * torch.randn_like(mean))[:, None], column)
            e[:, j] = (scores(x[:, column], column)[0][:, 0] - mean) / factor[j, j]
        return x

    def check(self, x: Shaped[Tensor, "B D"], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        check_codes(x, self.categories, missing=True)

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N D"], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Choose the column g, and fit the copulas."""
        self.check(x)
        best, chosen = -torch.inf, -1
        if self.candidates and len(x) >= 2 * MIN_ROWS:
            for group in (-1, *self.candidates):
                self._fit(x[::2], group)
                log_p = self.log_prob(x[1::2]).mean().item()
                best, chosen = max((best, chosen), (log_p, group))
        self._fit(x, chosen)

    def _fit(self, x: Shaped[Tensor, "N D"], group: int) -> None:
        self.group, self.fitted = group, [False] * len(self.fitted)
        self._fit_slot(0, x)
        for code in range(self.categories[group] if group >= 0 else 0):
            rows = x[x[:, group] == code]
            if len(rows) >= MIN_ROWS:
                self._fit_slot(code + 1, rows)
        self.chosen.copy_(torch.tensor([group, *self.fitted]))

    def _fit_slot(self, slot: int, x: Shaped[Tensor, "N D"]) -> None:
        """Fit the copula of a slot; frequencies of codes are smoothed towards those of all rows."""
        for d in self.codes:
            table, size = self._table(d), self.categories[d]
            counts = torch.bincount(x[~x[:, d].isnan(), d].long(), minlength=size).double()
            prior = table[0] if slot else torch.full_like(counts, 1 / size)
            table[slot] = (counts + SMOOTHING * size * prior) / (counts.sum() + SMOOTHING * size)
        numbers = x.index_select(1, self.at).double()
        scores = self._scores(slot)
        scores.initialise(numbers)
        seen = ~numbers.isnan()
        self._gaussian(slot).initialise(scores(torch.where(seen, numbers, 0.0))[0], seen)
        self.fitted[slot] = True


def _note_chosen(module: Any, _: Any) -> None:
    if module.chosen.device.type != "meta":
        module.group, *fitted = module.chosen.tolist()
        module.fitted = [bool(one) for one in fitted]
