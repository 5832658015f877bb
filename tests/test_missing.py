"""Missing values: log p of what is observed, against what is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from helpers.densities import SPECS, draw, tiny, train
from loglik.baselines import Independent
from loglik.checks import check_codes, check_complete
from loglik.classification.inputs import Columns
from loglik.density import Bound, Density, StandardNormal
from loglik.flows import Flow, LULinear
from loglik.missing import Imputed, hot_deck
from loglik.networks.mlp import MLP
from loglik.tasks import fill
from loglik.transforms import Dequantize, Jitter, Logit, Reshape, Scale, SoftTails, Standardise
from loglik.vae import VAE, Bernoulli, Codes, Gaussian, Integers, LocalPixels, Mixed

COVARIANCE = torch.tensor([[1.0, 0.8, 0.3], [0.8, 2.0, -0.4], [0.3, -0.4, 0.5]])
MEAN = torch.tensor([1.0, -2.0, 0.5])
NAN = torch.nan


def gaussian_rows(n: int, rate: float = 0.4) -> Tensor:
    x = MultivariateNormal(MEAN, COVARIANCE).sample((n,))
    return x.masked_fill(torch.rand(n, 3) < rate, NAN)


def observed_log_prob(x: Tensor, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE) -> Tensor:
    """Log p of the observed values of each row, of a Gaussian."""
    scores = []
    for row in x:
        o = ~row.isnan()
        at = covariance[o][:, o]
        scores.append(MultivariateNormal(mean[o], at).log_prob(row[o]) if o.any() else torch.zeros(()))
    return torch.stack(scores)


def gaussian_flow() -> Flow:
    """A Gaussian of complete rows: a shift, then a linear map."""
    shift = Standardise((3,))
    shift.mean.copy_(MEAN)
    return Flow([shift, LULinear(torch.linalg.inv(torch.linalg.cholesky(COVARIANCE)))], StandardNormal((3,)))


class Conditional(Density):
    """The Gaussian's own conditional, a perfect imputer."""

    event_shape = (3,)
    marginalises = True

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))  # so that there is something to train

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, samples: int = 1) -> Tensor:
        return observed_log_prob(x - self.shift)

    def sample(self, n: int, context: Tensor | None = None) -> Tensor:
        return MultivariateNormal(MEAN, COVARIANCE).sample((n,))

    def fill_with_log_prob(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        filled, log_q = x.clone(), torch.zeros(len(x))
        for i, row in enumerate(x):
            m = row.isnan()
            if m.any():
                gain = COVARIANCE[m][:, ~m] @ torch.linalg.inv(COVARIANCE[~m][:, ~m])
                mean = MEAN[m] + gain @ (row[~m] - MEAN[~m])
                q = MultivariateNormal(mean, COVARIANCE[m][:, m] - gain @ COVARIANCE[~m][:, m])
                filled[i, m] = q.sample()
                log_q[i] = q.log_prob(filled[i, m])
        return filled, log_q


# ---- checks


def test_missing_codes_and_values_are_refused_in_one_line():
    x = torch.tensor([[0.0, 1.0], [2.0, NAN]])
    with pytest.raises(ValueError, match="column 1 must hold codes 0 \\.\\.\\. 1, got nan"):
        check_codes(x, [0, 2])
    check_codes(x, [0, 2], missing=True)
    with pytest.raises(ValueError, match="column 0 must hold codes"):
        check_codes(x, [2, 2], missing=True)
    with pytest.raises(
        ValueError, match="row 1, column 1 is NaN, a missing value, and this density is of complete rows"
    ):
        check_complete(x)


@pytest.mark.parametrize("family", ["flow", "diffusion", "autoregressive"])
def test_densities_of_complete_rows_refuse_missing_values(family):
    density = tiny(family, SPECS["mixed table"])
    x = draw(SPECS["mixed table"], 8)[0]
    density.initialise(x)
    x[3, 0] = NAN
    assert not density.marginalises
    with pytest.raises(ValueError, match="row 3, column 0 is NaN"):
        density.log_prob(x)


# ---- hot deck


def test_hot_deck_keeps_each_columns_distribution():
    torch.manual_seed(0)
    x = torch.randn(1000, 2)
    x[:, 1] = x[:, 0].exp()
    gaps = torch.rand(1000, 2) < 0.5
    filled = hot_deck(x.masked_fill(gaps, NAN))
    assert torch.equal(filled[~gaps], x[~gaps])
    for d in range(2):
        known = x[~gaps[:, d], d]
        assert torch.isin(filled[:, d], known).all()
        shares = [(filled[:, d] <= known.quantile(q)).double().mean().item() for q in (0.1, 0.5, 0.9)]
        assert shares == pytest.approx([0.1, 0.5, 0.9], abs=0.01)


def test_hot_deck_returns_complete_rows_without_a_random_number():
    x = torch.randn(5, 2)
    state = torch.random.get_rng_state()
    assert hot_deck(x) is x
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(hot_deck(torch.full((3, 1), NAN)), torch.zeros(3, 1))


# ---- transforms of each column by itself


def _standardise() -> Standardise:
    transform = Standardise((3,))
    transform.initialise(5 * torch.randn(50, 3) + 2)
    return transform


@pytest.mark.parametrize(
    "transform",
    [Scale(-3.0, 1.0), _standardise(), SoftTails(0.5), Logit(), Jitter(), Reshape((3,), (3, 1))],
    ids=lambda t: type(t).__name__,
)
def test_the_log_determinant_leaves_out_missing_values(transform):
    torch.manual_seed(0)
    assert transform.columnwise
    transform.eval()
    x = 3 * torch.randn(20, 3)
    gaps = torch.rand(20, 3) < 0.5
    z, _ = transform.encode(x)
    gradient = torch.autograd.functional.vjp(lambda x: transform.encode(x)[0].view(20, 3), x, torch.ones(20, 3))[1]
    part, log_det = transform.encode(x.masked_fill(gaps, NAN))
    part, z = part.view(20, 3), z.view(20, 3)
    assert part[gaps].isnan().all() and torch.equal(part[~gaps], z[~gaps])
    torch.testing.assert_close(log_det, gradient.abs().log().masked_fill(gaps, 0).sum(1))


def test_dequantization_leaves_out_missing_values():
    transform = Dequantize(discrete=[True, True, False], categories=[3, 0, 0])
    x = torch.tensor([[0.0, 5.0, 0.3], [NAN, 5.0, NAN], [2.0, NAN, 0.3]])
    torch.manual_seed(0)
    v, log_det = transform.encode(x)
    assert torch.equal(v.isnan(), x.isnan())
    torch.testing.assert_close(transform.decode(v), x, equal_nan=True)
    assert log_det[1] == 0 and log_det.isfinite().all()


# ---- independent


def test_independent_columns_leave_out_missing_values():
    torch.manual_seed(0)
    x, _ = draw(SPECS["mixed table"], 400)
    gaps = torch.rand(x.shape) < 0.3
    options = {"categories": [0, 0, 3, 2]}
    density = Independent((4,), [False, True, True, True], **options)
    density.initialise(x.masked_fill(gaps, NAN))
    total = torch.zeros(400, dtype=torch.float64)
    for d, (discrete, count) in enumerate(zip([False, True, True, True], [0, 0, 3, 2], strict=True)):
        alone = Independent((1,), [discrete], categories=[count])
        alone.initialise(x[~gaps[:, d], d, None])
        total += alone.log_prob(x[:, d, None]).masked_fill(gaps[:, d], 0)
    torch.testing.assert_close(density.log_prob(x.masked_fill(gaps, NAN)), total)
    filled, log_q = density.fill_with_log_prob(x.masked_fill(gaps, NAN))
    assert torch.equal(filled[~gaps], x[~gaps]) and filled.isfinite().all()
    torch.testing.assert_close(log_q, density.log_prob(filled.masked_fill(~gaps, NAN)))


# ---- VAE


class LinearPosterior(nn.Module):
    """The posterior of z given the observed values of x = W z + noise, from the values and their flags."""

    def __init__(self, w: Tensor, std: float) -> None:
        super().__init__()
        self.w, self.std = w, std

    def forward(self, read: Tensor) -> Tensor:
        x, missing = read.chunk(2, 1)
        precision = 1 + ((1 - missing) * self.w.square()).sum(1, keepdim=True) / self.std**2
        mean = (x * self.w).sum(1, keepdim=True) / self.std**2 / precision
        return torch.cat([mean, 6 * torch.atanh(-0.5 * precision.log() / 6)], 1)


def test_a_vae_with_the_exact_posterior_returns_log_p_of_the_observed_values_in_each_draw():
    torch.manual_seed(0)
    w, std = torch.tensor([1.0, -0.5, 2.0]), 0.7
    decoder = nn.Linear(1, 3, bias=False)
    decoder.weight.data = w[:, None].clone()
    vae = VAE(LinearPosterior(w, std), decoder, Gaussian((3,), std), latent=1, missing=[True] * 3)
    x = (torch.randn(30, 1) * w + std * torch.randn(30, 3)).masked_fill(torch.rand(30, 3) < 0.4, NAN)
    truth = observed_log_prob(x, torch.zeros(3), torch.outer(w, w) + std**2 * torch.eye(3))
    torch.testing.assert_close(vae.log_prob(x), truth, rtol=1e-4, atol=1e-4)
    assert vae.marginalises and vae.loss(x).item() == pytest.approx(-truth.mean().item(), abs=0.3)


def test_a_vaes_importance_weights_average_to_p_of_the_observed_values():
    """Against quadrature over the one latent, with an observation model of every kind of column."""
    torch.manual_seed(0)
    observation = Mixed([Gaussian((1,)), Integers((1,)), Codes((1,), 3), Bernoulli((1,))])
    vae = VAE(MLP(observation.inputs + 4, 2, (8,)), MLP(1, observation.outputs, (8,)), observation, latent=1,
              missing=[True] * 4)  # fmt: skip
    x = torch.tensor([
        [0.4, 1.0, 2.0, 1.0], [NAN, 1.0, 2.0, 0.0], [0.4, NAN, 0.0, NAN], [NAN, NAN, 1.0, NAN], [NAN] * 4,
    ])  # fmt: skip
    vae.initialise(torch.randn(100, 4).round().clamp(0, 1))
    with torch.no_grad():
        z = torch.linspace(-8, 8, 4001)[:, None]
        theta, prior = vae.parameters_of(z), Normal(0, 1).log_prob(z[:, 0])
        truth = torch.stack([
            (observation.log_prob(row.expand(len(z), -1), theta) + prior).double().logsumexp(0) for row in x
        ]) + math.log(16 / 4000)  # fmt: skip
        log_p = vae.log_prob(x, samples=20_000)
        elbo = vae.log_prob(x.repeat(500, 1)).view(500, 5).mean(0)
    torch.testing.assert_close(log_p.double(), truth, rtol=0, atol=0.03)
    assert (elbo[:4] < truth[:4] + 0.02).all()
    assert log_p[4].abs() < 0.03  # nothing is observed: p = 1


def test_the_vae_recipe_reads_flags_only_where_values_may_be_missing():
    complete, gappy = tiny("vae", SPECS["mixed table"]), tiny("vae", SPECS["incomplete table"])
    widths = [next(density.base.encoder.parameters()).shape[1] for density in (complete, gappy)]
    assert widths[1] - widths[0] == 3
    assert complete.marginalises and gappy.marginalises
    x = draw(SPECS["incomplete table"], 32)[0]
    complete.initialise(hot_deck(x))
    assert complete.log_prob(x).isfinite().all()  # trained on complete rows, it scores others too


def test_a_vae_of_images_whose_pixels_depend_on_each_other_does_not_marginalise():
    observation = LocalPixels((1, 4, 4), lambda shape: Gaussian(shape, "dim") if False else Bernoulli(shape))
    vae = VAE(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), nn.Linear(2, observation.outputs), observation, latent=2)
    assert not vae.marginalises


# ---- a density of complete rows beside an imputer


def test_a_perfect_imputer_makes_each_draw_exact():
    torch.manual_seed(0)
    x = gaussian_rows(40)
    x = x[~x.isnan().all(1)]
    density = Imputed(gaussian_flow(), Conditional())
    torch.testing.assert_close(density.log_prob(x), observed_log_prob(x), rtol=1e-4, atol=1e-4)
    assert density.bound is Bound.LOWER and density.importance_weighted and density.marginalises


def test_weights_of_any_imputer_average_to_p_of_the_observed_values():
    torch.manual_seed(0)
    x, flow = gaussian_rows(20), gaussian_flow()
    imputer = Independent((3,), [False] * 3)
    imputer.initialise(gaussian_rows(2000))
    density, truth = Imputed(flow, imputer), observed_log_prob(x)
    with torch.no_grad():
        one = density.log_prob(x.repeat(400, 1)).view(400, 20)
        many = density.log_prob(x, samples=20_000)
    complete = ~x.isnan().any(1)
    assert complete.any() and torch.equal(one[0, complete].float(), flow.log_prob(x[complete]))
    torch.testing.assert_close(many.float(), truth, rtol=0, atol=0.1)
    assert (one.mean(0) < truth + 0.05).all() and one.mean() < truth.mean() - 0.1


def test_the_loss_is_minus_the_bound_and_trains_both():
    torch.manual_seed(0)
    x = gaussian_rows(50, rate=0.2)
    x = x[~x.isnan().all(1)]
    density = Imputed(gaussian_flow(), Conditional())
    loss = density.loss(x)
    assert loss.item() == pytest.approx(-observed_log_prob(x).mean().item(), abs=1e-3)
    loss.backward()
    own = -observed_log_prob(x - density.imputer.shift).mean()
    (gradient,) = torch.autograd.grad(own, density.imputer.shift)
    torch.testing.assert_close(density.imputer.shift.grad, gradient)
    assert density.density.transforms[1].lower.grad.abs().sum() > 0


def test_filled_values_have_the_distribution_of_the_density():
    """With an imputer that knows only the columns by themselves."""
    torch.manual_seed(0)
    imputer = Independent((3,), [False] * 3)
    imputer.initialise(gaussian_rows(4000))
    density = Imputed(gaussian_flow(), imputer)
    row = torch.tensor([2.0, NAN, NAN])
    drawn = fill(density, row.expand(3000, 3), row.isnan().expand(3000, 3))
    assert torch.equal(drawn[:, 0], torch.full((3000,), 2.0))
    gain = COVARIANCE[1:, 0]  # the first column has variance 1
    mean, covariance = MEAN[1:] + gain, COVARIANCE[1:, 1:] - torch.outer(gain, gain)
    torch.testing.assert_close(drawn[:, 1:].mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(drawn[:, 1:].T.cov(), covariance, rtol=0, atol=0.15)


def test_an_imputed_density_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="the same rows"):
        Imputed(StandardNormal((2,)), Conditional())
    with pytest.raises(ValueError, match="a Flow has no fill_with_log_prob"):
        Imputed(gaussian_flow(), gaussian_flow())


@pytest.mark.slow
def test_a_flow_and_its_imputer_learn_from_incomplete_rows():
    """A recipe's flow on a Gaussian with 40 % of the values missing: near the truth, far above independent columns."""
    torch.manual_seed(0)
    spec = replace(SPECS["table"], columns=tuple(replace(c, missing=True) for c in SPECS["table"].columns), classes=())
    density = tiny("flow", spec, kind="maf", dropout=0.0)
    data, x = gaussian_rows(600), gaussian_rows(300)
    train(density, data, steps=100, lr=3e-3)
    baseline = Independent((3,), [False] * 3)
    baseline.initialise(data)
    with torch.no_grad():
        own, truth = density.log_prob(x, samples=64).mean().item(), observed_log_prob(x).mean().item()
    independent = baseline.log_prob(x).mean().item()
    assert independent < truth - 0.1
    assert independent + 0.5 * (truth - independent) < own < truth + 0.02


def test_only_rows_with_gaps_are_passed_to_the_imputer():
    imputer, seen = Conditional(), []
    density, fill = Imputed(gaussian_flow(), imputer), imputer.fill_with_log_prob
    imputer.fill_with_log_prob = lambda x, context=None: (seen.append(x), fill(x, context))[1]
    x = torch.randn(6, 3)
    density.log_prob(x)
    assert not seen
    x[2, 0] = x[5, 1] = NAN
    density.log_prob(x)
    torch.testing.assert_close(seen[0], x[[2, 5]], equal_nan=True)


# ---- classifier


def test_columns_read_a_missing_value_as_zero_and_a_flag():
    columns = Columns([0, 3, 0], [True, True, False])
    columns.initialise(torch.tensor([[1.0, 0.0, 5.0], [3.0, 1.0, 7.0], [NAN, 2.0, 6.0]]))
    out = columns(torch.tensor([[NAN, NAN, 6.0], [2.0, 1.0, NAN]]))
    assert torch.equal(out[0, [0, 2, 3, 4]], torch.zeros(4)) and out[0, 1] == 0
    assert torch.equal(out[:, -2:], torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert torch.equal(out[1, 2:5], torch.tensor([0.0, 1.0, 0.0])) and out[1, 1] == 0
    assert columns.outputs == out.shape[1]
