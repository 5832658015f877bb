"""Every family on tables small enough to enumerate: total mass, samples that can exist, and that both agree."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from helpers.densities import tiny, train
from helpers.tables import TABLES, boolean, category, every_row, integer, real, rows_of, spec_of
from loglik.data.dataset import into_splits
from loglik.data.spec import DataSpec
from loglik.density import Bound, Density
from loglik.evaluation import log_probs
from loglik.recipes import RECIPES
from loglik.training import fit

FAMILIES = ["independent", "autoregressive", "flow", "vae", "diffusion"]
VARIANTS = [
    f"{family}:{kind}"
    for family in FAMILIES
    for kind in RECIPES[family].kinds
    if kind not in ("glow", "unet", "dit")  # of images
]
CASES = [(family, table) for family in FAMILIES for table in TABLES] + [
    pytest.param(variant, table, marks=() if table == "every kind" else pytest.mark.slow)
    for variant in VARIANTS
    for table in TABLES
]


def trained(family: str, table: str) -> tuple[Density, Tensor]:
    torch.manual_seed(3)
    x = rows_of(table, 200)
    density = tiny(family, spec_of(table))
    train(density, x, steps=25)
    return density, x


@torch.no_grad()
def masses(density: Density, rows: Tensor, at_once: int = 2**18) -> tuple[Tensor, Tensor]:
    """p of each row, or its bound, and the variance of that estimate."""
    if density.bound is Bound.EXACT:
        p = density.log_prob(rows).double().exp()
        return p, torch.zeros_like(p)
    draws = max(64, min(1000, 2**18 // len(rows)))
    log_p = torch.cat(
        [
            density.log_prob(rows.repeat(min(step, draws - start), 1)).double().view(-1, len(rows))
            for step in [max(1, at_once // len(rows))]
            for start in range(0, draws, step)
        ]
    )
    if density.importance_weighted:
        weights = log_p.exp()
        return weights.mean(0), weights.var(0) / draws
    p = log_p.mean(0).exp()
    return p, p.square() * log_p.var(0) / draws


def check_exist(drawn: Tensor, table: str) -> None:
    """Samples are rows that can exist, as they come from the density."""
    assert drawn.isfinite().all()
    for column, values in zip(TABLES[table][0], drawn.unbind(1), strict=True):
        if column.categories:
            assert set(values.unique().tolist()) <= set(range(len(column.categories))), column.name
        elif column.type == "integer":
            assert torch.equal(values, values.floor()), column.name
        else:
            assert not torch.equal(values, values.floor())


def check_frequencies(drawn: Tensor, rows: Tensor, p: Tensor, variance: Tensor) -> None:
    """Pearson's chi-square over the rows that are expected at least five times, and all others together."""
    n = len(drawn)
    of = {tuple(row): i for i, row in enumerate(rows.tolist())}
    counts = torch.zeros(len(rows) + 1, dtype=torch.float64)
    for row in drawn.tolist():
        counts[of.get(tuple(row), len(rows))] += 1
    often = n * p >= 5
    expected = torch.cat([n * p[often], (n * (1 - p[often].sum())).clamp_min(0.5).view(1)])
    seen = torch.cat([counts[:-1][often], (n - counts[:-1][often].sum()).view(1)])
    # a count varies by n p, its expectation by the Monte Carlo error of p
    spread = expected + n**2 * torch.cat([variance[often], variance[often].sum().view(1)])
    statistic = ((seen - expected).square() / spread).sum().item()
    assert chi2.sf(statistic, len(seen) - 1) > 1e-4, (statistic, len(seen))


@pytest.mark.parametrize(("family", "table"), CASES)
def test_mass_and_samples(family, table):
    density, x = trained(family, table)
    # histograms have steps, which a quadrature needs more points for
    rows, weight = every_row(table, x, 8001 if density.bound is Bound.EXACT else 201)
    p, variance = masses(density, rows)
    total, error = p.sum().item() * weight, math.sqrt(variance.sum().item()) * weight
    continuous = weight != 1.0
    open_range = any(column.type == "integer" for column in TABLES[table][0])
    rounding = 0.02 if continuous else 1e-3 if open_range else 1e-5  # of quadrature, of integers further out
    assert total < 1 + 4 * error + rounding, (total, error)
    # where the prior is estimated too, a few weights that are rarely drawn hold much of the mass
    rarely_drawn = family == "vae:hierarchical"
    if density.importance_weighted:  # exact, or weights that average to p
        assert total > 1 - 4 * error - rounding - rarely_drawn * 0.5, (total, error)
    drawn = density.sample(10_000)
    check_exist(drawn, table)
    assert density.log_prob(drawn[:256]).isfinite().all()
    if density.importance_weighted and not continuous and not rarely_drawn:
        check_frequencies(drawn, rows, p, variance)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES[1:])
def test_nothing_is_gained_where_nothing_depends(family):
    """On six independent columns of every kind a gain over the baseline is within twice its error."""
    generator, n = torch.Generator().manual_seed(4), 1500
    normal = torch.randn(n, 4, generator=generator)
    uniform = torch.rand(n, 2, generator=generator)
    columns = (real("a"), real("b"), integer("c"), integer("d"), category("e", 3), boolean("f"))
    spec = DataSpec(kind="table", event_shape=(6,), columns=columns)
    code = (uniform[:, 0] > 0.6).float() + (uniform[:, 0] > 0.9)
    counts = [(normal[:, 2] * 2 + 4).round(), (normal[:, 3] + 5).exp().floor()]
    x = torch.stack([3 + 2 * normal[:, 0], normal[:, 1].exp(), *counts, code, (uniform[:, 1] < 0.2).float()], 1)
    data = into_splits("columns", spec, x, None, seed=0)
    runs = [fit(name, data, max_steps=300, seed=0, progress=False) for name in ("independent", family)]
    baseline, scores = (log_probs(run.density, data.test, samples=32) for run in runs)
    gain = scores - baseline
    assert gain.mean() < 2 * gain.std() / len(gain) ** 0.5
