"""Missing values: each way to fill them against a conditional that is known, and tables with gaps."""

import csv
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import loglik
from helpers.exact import CorrelatedDenoiser
from helpers.mixed import mixed_rows, write_rows
from loglik.density import Density
from loglik.diffusion import Diffusion, Sampler
from loglik.flows import Flow
from loglik.tasks import fill, fill_table
from loglik.transforms import Permute, Standardise

COVARIANCE = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.0, 0.0], [0.3, 0.0, 1.0]], dtype=torch.float64)
MEAN, UNIT = torch.tensor([10.0, 0.0, -5.0]), torch.tensor([1.0, 100.0, 0.01])


class Gaussian(Density):
    event_shape = (3,)
    truth = MultivariateNormal(torch.zeros(3, dtype=torch.float64), COVARIANCE)

    def log_prob(self, x, context=None, *, samples=1):
        return self.truth.log_prob(x)

    def sample(self, n, context=None):
        return self.truth.sample((n,))


class Joint(Density):
    """P(a, b) of two codes."""

    event_shape, discrete = (2,), True
    p = torch.tensor([[0.3, 0.02, 0.08], [0.05, 0.5, 0.05]], dtype=torch.float64)

    def log_prob(self, x, context=None, *, samples=1):
        return self.p[tuple(x.long().T)].log()

    def sample(self, n, context=None):
        codes = self.p.flatten().multinomial(n, replacement=True)
        return torch.stack([codes // 3, codes % 3], 1).double()


def standardised(base):
    whole = Flow([Standardise((3,))], base).double()
    whole.transforms[0].mean.copy_(MEAN)
    whole.transforms[0].std.copy_(UNIT)
    return whole


@pytest.mark.parametrize("way", ["denoised", "weighted"])
def test_gaps_are_drawn_from_the_conditional(float64, way):
    """The mean and the covariance of two columns of a Gaussian given the third, behind a change of units."""
    n, known = 4000, 1.5
    base = (
        Gaussian()
        if way == "weighted"
        else Diffusion(CorrelatedDenoiser(torch.zeros(3), COVARIANCE), (3,), sampler=Sampler(steps=60))
    )
    x = torch.full((n, 3), torch.nan)
    x[:, 0] = MEAN[0] + known * UNIT[0]
    filled = fill(standardised(base), x, torch.tensor([False, True, True]).expand(n, 3))
    assert torch.equal(filled[:, 0], x[:, 0])
    v = ((filled - MEAN) / UNIT)[:, 1:]
    slope = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    conditional = COVARIANCE[1:, 1:] - slope[:, None] * COVARIANCE[:1, 1:]
    noise = 4 * conditional.diag().sqrt() / math.sqrt(n)
    share = 0.0 if way == "weighted" else 0.1  # what steps and repeats leave
    assert ((v.mean(0) - slope * known).abs() < noise + share * (slope * known).abs()).all()
    assert (v.T.cov() - conditional).abs().max() < (0.1 + 2 * share) * conditional.max()


def test_gaps_of_codes(float64):
    n = 4000
    x = torch.stack([torch.arange(n) % 2, torch.full((n,), 7)], 1).double()
    filled = fill(Joint(), x, torch.tensor([False, True]).expand(n, 2))
    for a in (0, 1):
        found = torch.bincount(filled[a::2, 1].long(), minlength=3) / (n // 2)
        expected = Joint.p[a] / Joint.p[a].sum()
        assert ((found - expected).abs() < 4 * (expected * (1 - expected) / (n // 2)).sqrt()).all()


def test_what_cannot_fill_is_named():
    x, missing = torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.bool)
    mixed = Flow([Permute([1, 0, 2])], Diffusion(CorrelatedDenoiser(torch.zeros(3), COVARIANCE), (3,)))
    with pytest.raises(ValueError, match="a diffusion does not fill missing values behind these transforms"):
        fill(mixed, x, missing)
    given = loglik.Flow([], loglik.StandardNormal((3,)), context=nn.Embedding(2, 4))
    with pytest.raises(ValueError, match=r"missing values are filled in rows \(B, D\), by a density p\(row\)"):
        fill(given, x, missing)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rows = mixed_rows("big, or so")
    return write_rows(tmp_path_factory.mktemp("filling") / "whole.csv", rows), rows


@pytest.mark.parametrize("model", ["independent", "vae", "diffusion", "flow", "autoregressive"])
def test_tables_are_filled_and_the_rest_is_left(table, tmp_path, model):
    whole, rows = table
    options = {} if model == "independent" else {"max_steps": 5, "width": 16}
    if model == "diffusion":
        options["steps"] = 10
    run = loglik.fit(model, whole, label="label", progress=False, **options)
    gaps = [list(row) for row in rows[:30]]
    for i, row in enumerate(gaps[:20]):
        row[i % 3] = ""
    gaps[3][1] = gaps[3][2] = ""
    assert fill_table(run, write_rows(tmp_path / "gaps.csv", gaps), tmp_path / "new" / "filled.csv") == 22
    filled = list(csv.reader((tmp_path / "new" / "filled.csv").read_text().splitlines()))[1:]
    for old, new in zip(gaps, filled, strict=True):
        assert all(a == b or float(a) == float(b) for a, b in zip(old, new, strict=True) if a)
        assert (
            new[2] in ("big, or so", "small") and float(new[1]) == int(float(new[1])) and math.isfinite(float(new[0]))
        )


def test_runs_that_cannot_fill_are_one_line(table, tmp_path):
    whole, _ = table
    common = {"label": "label", "progress": False, "max_steps": 1, "width": 8}
    classifier = loglik.fit("classifier", whole, **common)
    with pytest.raises(ValueError, match="this is a classifier"):
        fill_table(classifier, whole, tmp_path / "no.csv")
    conditional = loglik.fit("flow", whole, conditional=True, **common)
    with pytest.raises(ValueError, match="train one without conditional=True"):
        fill_table(conditional, whole, tmp_path / "no.csv")
    array = loglik.fit("independent", np.random.default_rng(0).normal(size=(30, 2)), progress=False)
    with pytest.raises(ValueError, match="fill needs a run of a table, and this run's data are"):
        fill_table(array, whole, tmp_path / "no.csv")


def test_what_the_rest_of_a_row_determines_is_filled_with_it():
    """Two totals, both missing or one: drawing one after the other from their marginals would find neither."""
    x = torch.randn(500, 4)
    x[:, 2] = x[:, 0] + x[:, 1] + 1e-3 * torch.randn(500)
    x[:, 3] = 0.5 * x[:, 2] + 1e-3 * torch.randn(500)
    density = loglik.fit("flow", x, width=16, depth=2, max_steps=20, progress=False).density
    missing = torch.zeros(60, 4, dtype=torch.bool)
    missing[:40, 2], missing[20:, 3] = True, True
    filled = fill(density, x[:60], missing)
    assert torch.equal(filled[~missing], x[:60][~missing])
    assert (filled - x[:60])[missing].abs().max() < 0.02
