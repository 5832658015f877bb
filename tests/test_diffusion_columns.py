"""Diffusions of rows with codes: the denoiser against Bayes' rule, the bound and the ODE against the truth."""

import math

import pytest
import torch
from torch import nn

from helpers.densities import perturb, tiny, train
from helpers.exact import Zero
from helpers.tables import boolean, category, real, rows_of, spec_of
from loglik.data.spec import DataSpec
from loglik.diffusion import ODE, ColumnDenoiser, Diffusion, with_likelihood
from loglik.diffusion.reconstruction import Codes
from loglik.diffusion.schedule import alpha, sigma

CATEGORIES = (3, 0, 2)


def rows(n: int) -> torch.Tensor:
    codes = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), n, replacement=True)
    return torch.stack([codes.float(), 2 + 0.5 * torch.randn(n), (torch.rand(n) < 0.8).float()], 1)


def independent() -> tuple[Diffusion, torch.Tensor]:
    """A network of zeros, which knows the columns' own distributions and nothing else."""
    x = rows(4000)
    x[:, 1] = (x[:, 1] - x[:, 1].mean()) / x[:, 1].std(correction=0)
    diffusion = Diffusion(ColumnDenoiser(Zero(6), CATEGORIES), (3,), categories=CATEGORIES)
    diffusion.initialise(x)
    return diffusion.eval(), x


def test_rows_become_numbers_and_one_hot_codes_and_come_back():
    space = Codes(CATEGORIES)
    x = torch.tensor([[2.0, 0.7, 0.0], [0.0, -1.5, 1.0]])
    v = space.embed(x)
    assert v.tolist() == [[pytest.approx(0.7), 0, 0, 1, 1, 0], [-1.5, 1, 0, 0, 0, 1]]
    assert torch.equal(space.data(v + 0.1 * torch.rand(2, 6) * (v == 1)).round(decimals=1)[:, [0, 2]], x[:, [0, 2]])
    known = torch.tensor([[True, False, False]])
    assert space.spread(known).tolist() == [[False, True, True, True, False, False]]
    assert space.real_dims == 1 and not space.discrete and Codes((2, 2)).discrete
    with pytest.raises(ValueError, match=r"column 0 must hold codes 0 \.\.\. 2, got 3"):
        space.embed(torch.tensor([[3.0, 0.0, 0.0]]))


def test_a_code_is_denoised_by_bayes_rule(float64):
    """P(k | x_t) by the Gaussian densities of x_t around each one-hot vector, times the marginal."""
    diffusion, _ = independent()
    denoiser, logsnr = diffusion.denoiser, torch.tensor([0.5, -2.0])
    x_t = torch.randn(2, 6)
    x_hat = denoiser(x_t, logsnr)
    prior = denoiser.offset[:3].exp()
    for row in range(2):
        a, s = alpha(logsnr[row]), sigma(logsnr[row])
        likelihood = torch.distributions.Normal(a * torch.eye(3), s).log_prob(x_t[row, 1:4]).sum(1).exp()
        torch.testing.assert_close(x_hat[row, 1:4], prior * likelihood / (prior * likelihood).sum())
    assert x_hat[:, 4:].sum(1).tolist() == pytest.approx([1, 1])


def test_independent_columns_have_their_own_log_probability():
    """Of the exact denoiser of independent columns both the bound and the ODE's estimate are the marginals' product."""
    diffusion, x = independent()
    for _ in range(100):
        diffusion.train().loss(x[torch.randint(4000, (256,))])  # the control variate learns its coefficients
    diffusion.eval()
    every = torch.cartesian_prod(torch.arange(3.0), torch.tensor([0.3]), torch.arange(2.0))
    p = diffusion.denoiser.offset.exp()
    truth = p[:3].log()[every[:, 0].long()] + p[3:].log()[every[:, 2].long()]
    truth = truth - 0.5 * 0.3**2 - 0.5 * math.log(2 * math.pi)
    with torch.no_grad():
        bound = torch.stack([diffusion.log_prob(every, samples=128) for _ in range(16)])
    error = bound.std(0) / 4
    assert ((bound.mean(0) - truth).abs() < 5 * error + 0.02).all() and error.max() < 0.2
    solved = with_likelihood(diffusion, "ode")
    assert isinstance(solved.likelihood, ODE)
    estimate = torch.stack([solved.log_prob(every) for _ in range(8)]).mean(0)
    torch.testing.assert_close(estimate, truth, atol=0.1, rtol=0)


def test_samples_have_the_columns_marginals_and_are_codes():
    diffusion, x = independent()
    drawn = diffusion.sample(4000)
    for d, count in ((0, 3), (2, 2)):
        shares, truth = (torch.bincount(t[:, d].long(), minlength=count) / 4000 for t in (drawn, x))
        assert len(shares) == count and ((shares - truth).abs() < 5 * (truth / 2000).sqrt()).all()
    assert abs(drawn[:, 1].mean()) < 0.1 and abs(drawn[:, 1].std() - 1) < 0.1


def test_a_table_of_codes_alone_has_a_probability():
    spec = DataSpec(kind="table", event_shape=(2,), columns=(boolean("a"), category("b", 3)))
    density = tiny("diffusion", spec)
    assert isinstance(density, Diffusion) and density.discrete
    assert not tiny("diffusion", DataSpec(kind="table", event_shape=(1,), columns=(real("x"),))).discrete


def test_gaps_among_codes_are_filled_by_codes():
    """Known columns stay as they are, and what is drawn exists."""
    torch.manual_seed(0)
    x = rows_of("real among codes", 300)
    density = tiny("diffusion", spec_of("real among codes"))
    train(density, x, steps=60)
    from loglik.tasks import fill

    missing = torch.rand(40, 3) < 0.5
    filled = fill(density, x[:40], missing)
    assert torch.equal(filled[~missing], x[:40][~missing])
    assert set(filled[:, 0].tolist()) <= {0.0, 1.0, 2.0} and set(filled[:, 2].tolist()) <= {0.0, 1.0}


def test_every_code_has_its_own_width():
    """Columns of 4, 1 and 2 codes: probabilities of each sum to one, wherever the network is."""
    denoiser = ColumnDenoiser(_Vector(7), (4, 1, 2))
    perturb(denoiser, 1.0)
    p = denoiser(torch.randn(5, 7), torch.zeros(5)).split([4, 1, 2], 1)
    for block in p:
        torch.testing.assert_close(block.sum(1), torch.ones(5))


class _Vector(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dims, dims)

    def forward(self, x, vector):
        return self.linear(x)
