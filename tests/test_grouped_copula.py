"""A Gaussian copula for each category: normalised, sampled as it says, with missing values, and saved."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest

import loglik
from loglik.autoregressive import GroupedCopula

INTEGERS, CATEGORIES = [False, True, True, True], [0, 0, 2, 3]


def rows(n: int = 400) -> torch.Tensor:
    """A number and an integer whose correlation and skewness depend on a code, and a code that is noise."""
    torch.manual_seed(0)
    g = torch.randint(2, (n,)).float()
    z = torch.randn(n)
    number = torch.where(g == 1, (z + 0.3 * torch.randn(n)).exp(), -2 * z)
    integer = torch.where(g == 1, (2 * z).round(), (2 * torch.randn(n)).round())
    return torch.stack([number, integer, g, torch.randint(3, (n,)).float()], 1)


@pytest.fixture(scope="module")
def density() -> GroupedCopula:
    made = GroupedCopula(INTEGERS, CATEGORIES)
    made.initialise(rows())
    return made


def test_it_is_normalised(density):
    x = torch.linspace(-6, 6, 601).sinh()
    row = torch.full((len(x), 4), torch.nan)
    row[:, 0], total = x, 0.0
    for integer in range(-14, 15):
        row[:, 1] = integer
        total += torch.trapezoid(density.log_prob(row).exp(), x.double()).item()
    assert total == pytest.approx(1, abs=3e-3)


def test_the_column_that_explains_most_is_chosen(density):
    assert density.group == 2
    others = GroupedCopula(INTEGERS, CATEGORIES)
    x, fresh = rows(), rows(600)[400:]
    log_p = {}
    for group in (-1, 3):
        others._fit(x, group)
        log_p[group] = others.log_prob(fresh).mean()
    assert density.log_prob(fresh).mean() > max(log_p.values()) + 0.3


def test_a_missing_value_is_summed_over(density):
    x = rows()[:20]
    gone = x.clone()
    gone[:, 2] = torch.nan
    both = [density.log_prob(torch.cat([x[:, :2], torch.full((20, 1), float(g)), x[:, 3:]], 1)) for g in range(2)]
    assert torch.allclose(torch.stack(both).logsumexp(0), density.log_prob(gone))
    gone = x.clone()
    gone[:, 1] = torch.nan
    values = torch.arange(-60, 61).float()
    each = x.repeat_interleave(len(values), 0)
    each[:, 1] = values.repeat(20)
    assert torch.allclose(density.log_prob(each).view(20, -1).logsumexp(1), density.log_prob(gone), atol=1e-3)


def test_samples_have_the_density(density):
    """The codes have their probabilities, and the first number's scores are normal in each group."""
    torch.manual_seed(1)
    drawn = density.sample(4000)
    only = torch.full((3, 4), torch.nan)
    only[:, 3] = torch.arange(3.0)
    p = density.log_prob(only).exp()
    assert ((drawn[:, 3, None] == torch.arange(3)).double().mean(0) - p).abs().max() < 0.03
    for g in range(2):
        part = drawn[drawn[:, 2] == g, 0].double().numpy()
        scores = density.scores[g + 1].transform(torch.from_numpy(part)[:, None].repeat(1, 2))[:, 0]
        gaussian = density.gaussians[g + 1]
        z = (scores - gaussian.mean[0]) / gaussian.covariance[0, 0].sqrt()
        assert kstest(z.numpy(), "norm").pvalue > 1e-3


def test_few_rows_of_a_category_share_the_copula_of_all():
    x = rows()
    x[x[:, 2] == 1, 2] = 0
    x[:5, 2] = 1
    made = GroupedCopula(INTEGERS[:3], CATEGORIES[:3])
    made._fit(x[:, :3], 2)
    assert made.fitted == [True, True, False]
    assert torch.isfinite(made.log_prob(made.sample(50))).all()


def test_weights_restore_the_density(density):
    other = GroupedCopula(INTEGERS, CATEGORIES)
    other.load_state_dict(density.state_dict())
    assert torch.equal(other.log_prob(rows()), density.log_prob(rows()))


def test_fit_saves_and_loads_it(tmp_path):
    x = torch.cat([rows()[:, :1], rows()[:, :1].square()], 1)
    run = loglik.fit("mixture:copulas", x, out=tmp_path / "run", progress=False)
    again = loglik.load(tmp_path / "run")
    assert torch.equal(again.density.log_prob(x), run.density.log_prob(x))


def test_targets_given_inputs_are_refused():
    table = {"a": rows()[:, 0].numpy(), "b": rows()[:, 1].numpy()}
    with pytest.raises(ValueError, match=r"models whole tables.*use mixture"):
        loglik.fit("mixture:copulas", table, target="b", progress=False)
