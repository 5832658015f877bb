"""`sbi_builder`: sbi's NPE and NLE train with our densities, in sbi's shapes."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

pytest.importorskip("sbi")

from loglik.adapters import sbi_builder
from loglik.density import Bound

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
]


@pytest.fixture(autouse=True)
def in_a_folder(own_folder):
    """sbi writes its logs into the working folder."""


def trained(trainer, builder, prior, theta, x, **settings):
    """A trainer of sbi after a few epochs on simulations."""
    inference = trainer(prior, density_estimator=builder, show_progress_bars=False)
    inference.append_simulations(theta, x)
    estimator = inference.train(**{"learning_rate": 3e-3, "training_batch_size": 100, **settings})
    return inference, estimator


def estimator_for(model="flow", condition=(3,), **options):
    torch.manual_seed(0)
    theta, x = torch.randn(50, 2), torch.randn(50, *condition)
    return sbi_builder(model, **options)(theta, x).eval()


SMALL = {"flow": {"width": 16, "depth": 2}, "mixture": {"width": 16}, "diffusion": {"width": 16, "depth": 1}}


@pytest.mark.parametrize("model", SMALL)
def test_shapes(model):
    estimator = estimator_for(model, **SMALL[model])
    assert (estimator.input_shape, estimator.condition_shape) == ((2,), (3,))
    condition = torch.randn(4, 3)
    drawn = estimator.sample((5,), condition)
    assert drawn.shape == (5, 4, 2)
    assert estimator.log_prob(drawn, condition).shape == (5, 4)
    assert estimator.log_prob(drawn[0], condition).shape == (1, 4)
    assert estimator.log_prob(drawn, condition[:1]).shape == (5, 4)
    assert estimator.log_prob(drawn[:, :1], condition).shape == (5, 4)
    assert estimator.log_prob(drawn, condition.expand(5, 4, 3)).shape == (5, 4)
    assert estimator.sample((2, 3), condition[:1]).shape == (2, 3, 1, 2)
    for mode in (estimator.train(), estimator.eval()):
        loss = mode.loss(drawn[0], condition)
        assert loss.shape == (4,) and loss.isfinite().all() and loss.requires_grad
    samples, log_p = estimator.sample_and_log_prob((5,), condition)
    assert samples.shape == (5, 4, 2) and log_p.isfinite().all()


def test_numbers_are_the_densitys():
    estimator = estimator_for(**SMALL["flow"])
    theta, x = torch.randn(6, 2), torch.randn(6, 3)
    truth = estimator.net.log_prob(theta, x)
    torch.testing.assert_close(estimator.log_prob(theta, x)[0], truth)
    torch.testing.assert_close(estimator.loss(theta, x), -truth)
    torch.testing.assert_close(estimator.log_prob(theta, x[:1])[0, 3], estimator.net.log_prob(theta[3:4], x[:1])[0])
    torch.manual_seed(4)
    drawn = estimator.sample((3,), x)
    torch.manual_seed(4)
    torch.testing.assert_close(drawn.flatten(0, 1), estimator.net.sample(18, x.repeat(3, 1)))


def test_units_are_the_users():
    """Parameters in thousands and simulations in thousandths: the density standardises both."""
    torch.manual_seed(0)
    theta, x = 5000 + 1000 * torch.randn(200, 2), 1e-3 * torch.randn(200, 3)
    estimator = sbi_builder(**SMALL["flow"])(theta, x).eval()
    nats = estimator.log_prob(theta, x).mean()
    gaussian = Normal(theta.mean(0), theta.std(0)).log_prob(theta).sum(1).mean()
    assert abs(nats - gaussian) < 0.3


def test_a_lower_bound_trains_on_its_loss():
    estimator = estimator_for("diffusion", **SMALL["diffusion"])
    assert estimator.net.bound is Bound.LOWER
    theta, x = torch.randn(6, 2), torch.randn(6, 3)
    torch.manual_seed(1)
    loss = estimator.loss(theta, x)
    torch.manual_seed(1)
    torch.testing.assert_close(loss, estimator.net.loss(theta, x).expand(6))


def test_npe_finds_a_gaussian_posterior():
    """x = θ + noise: the posterior is N(x s² / (s² + n²), ...) in each dimension."""
    torch.manual_seed(0)
    prior, noise = MultivariateNormal(torch.zeros(2), torch.eye(2)), 0.5
    theta = prior.sample((2000,))
    x = theta + noise * torch.randn_like(theta)
    from sbi.inference import NPE

    inference, _ = trained(NPE, sbi_builder(**SMALL["flow"]), prior, theta, x, max_num_epochs=40)
    posterior = inference.build_posterior()
    observed = torch.tensor([[1.0, -0.5]])
    drawn = posterior.sample((2000,), x=observed, show_progress_bars=False)
    variance = noise**2 / (1 + noise**2)
    assert (drawn.mean(0) - observed[0] * (1 - variance)).abs().max() < 0.15
    assert (drawn.std(0) / variance**0.5 - 1).abs().max() < 0.25
    truth = Independent(Normal(observed[0] * (1 - variance), variance**0.5), 1).log_prob(drawn[:200])
    assert (posterior.log_prob(drawn[:200], x=observed) - truth).mean().abs() < 0.2


def test_a_bounded_prior_bounds_the_posterior():
    """The density has mass outside of a box, which sbi rejects and renormalises for."""
    torch.manual_seed(0)
    prior = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    theta = prior.sample((1000,))
    x = theta + 0.5 * torch.randn_like(theta)
    from sbi.inference import NPE

    inference, estimator = trained(NPE, sbi_builder(**SMALL["flow"]), prior, theta, x, max_num_epochs=3)
    posterior, observed = inference.build_posterior(), torch.tensor([[0.9, 0.9]])
    drawn = posterior.sample((500,), x=observed, show_progress_bars=False)
    assert drawn.abs().max() <= 1
    outside = estimator.sample((2000,), observed).abs().amax(-1) > 1
    assert 0.01 < outside.float().mean() < 0.9
    corrected = posterior.log_prob(drawn, x=observed) - estimator.log_prob(drawn[:, None], observed)[:, 0]
    assert (corrected + (1 - outside.float().mean()).log()).abs().max() < 0.1
    assert posterior.log_prob(torch.tensor([[1.5, 0.0]]), x=observed).item() == -torch.inf


@pytest.mark.parametrize("model", ["mixture", "diffusion"])
def test_npe_trains_other_families(model):
    torch.manual_seed(0)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((600,))
    x = theta + 0.1 * torch.randn_like(theta)
    from sbi.inference import NPE

    inference, _ = trained(NPE, sbi_builder(model, **SMALL[model]), prior, theta, x, max_num_epochs=40)
    drawn = inference.build_posterior().sample((500,), x=torch.tensor([[1.0, -1.0]]), show_progress_bars=False)
    assert (drawn.mean(0) * torch.tensor([1.0, -1.0])).min() > 0.15  # the prior's is 0


def test_nle_learns_a_likelihood():
    torch.manual_seed(0)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((1500,))
    x = torch.cat([theta + 0.5 * torch.randn_like(theta), 0.5 * torch.randn(1500, 1)], 1)
    from sbi.inference import NLE

    inference, estimator = trained(
        NLE, sbi_builder(target="likelihood", **SMALL["flow"]), prior, theta, x, max_num_epochs=12
    )
    new = prior.sample((300,))
    observed = torch.cat([new, torch.zeros(300, 1)], 1) + 0.5 * torch.randn(300, 3)
    truth = Normal(0.0, 0.5).log_prob(observed - torch.cat([new, torch.zeros(300, 1)], 1)).sum(1)
    assert (truth - estimator.log_prob(observed, new)[0]).mean() < 0.25
    posterior = inference.build_posterior(mcmc_method="slice_np_vectorized")
    posterior.set_default_x(observed[:1])
    assert posterior.potential(new[:5]).isfinite().all()


def test_an_embedding_net_is_trained():
    """Images whose mean carries the parameter: a network of the user's own reads them."""
    torch.manual_seed(0)
    prior = MultivariateNormal(torch.zeros(1), torch.eye(1))
    theta = prior.sample((1000,))
    x = theta[:, :, None, None] + torch.randn(1000, 1, 4, 4)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 3))
    from sbi.inference import NPE

    before = copy.deepcopy(network.state_dict())
    builder = sbi_builder(embedding_net=network, **SMALL["flow"])
    inference, estimator = trained(NPE, builder, prior, theta, x, max_num_epochs=15)
    after = estimator.embedding_net.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    observed = torch.ones(1, 1, 4, 4)
    drawn = inference.build_posterior().sample((1000,), x=observed, show_progress_bars=False)
    assert abs(drawn.mean() - 16 / 17) < 0.25 and drawn.std() < 0.6


def test_copies_and_saved_weights():
    estimator = estimator_for(**SMALL["flow"])
    theta, x = torch.randn(6, 2), torch.randn(6, 3)
    other = copy.deepcopy(estimator)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(other.log_prob(theta, x), estimator.log_prob(theta, x))
    other.load_state_dict(estimator.state_dict())
    torch.testing.assert_close(other.log_prob(theta, x), estimator.log_prob(theta, x))


def test_evaluation_is_by_the_average_of_the_weights():
    """d = min(0.99, (1 + n) / (10 + n)): the first step replaces the start, the second has weight 1 - 2/11."""
    torch.manual_seed(0)
    theta, x = torch.randn(50, 2), torch.randn(50, 3)
    estimator = sbi_builder(embedding_net=nn.Linear(3, 4), **SMALL["flow"])(theta, x)
    before = estimator.eval().log_prob(theta, x)
    torch.testing.assert_close(estimator.train().eval().log_prob(theta, x), before)
    optimiser = torch.optim.Adam(estimator.train().parameters(), 1e-2)
    trained = list(estimator._trained.parameters())
    weights = []
    for _ in range(2):
        optimiser.zero_grad()
        estimator.loss(theta, x).mean().backward()
        optimiser.step()
        weights.append([p.detach().clone() for p in trained])
    with torch.no_grad():
        own = estimator.log_prob(theta, x)
    estimator.eval()
    averaged = [*estimator.net.parameters(), *estimator.embedding_net.parameters()]
    for mean, first, second in zip(averaged, *weights, strict=True):
        torch.testing.assert_close(mean, first + (1 - 2 / 11) * (second - first))
    after = estimator.log_prob(theta, x)
    assert not torch.allclose(after, before) and not torch.allclose(after, own)
    torch.testing.assert_close(estimator.train().eval().log_prob(theta, x), after)


def test_wrong_input():
    with pytest.raises(ValueError, match="unknown model 'glow'"):
        sbi_builder("glow")
    with pytest.raises(ValueError, match="classifier is no p"):
        sbi_builder("classifier")
    with pytest.raises(ValueError, match="target must be posterior"):
        sbi_builder(target="evidence")
    with pytest.raises(ValueError, match="widht"):
        sbi_builder("flow", widht=3)
    estimator = estimator_for(**SMALL["flow"])
    with pytest.raises(ValueError, match=r"expected rows of 3 columns, got the shape \(2, 4\)"):
        estimator.net.distribution(torch.zeros(2, 4)).log_prob(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="condition"):
        estimator.log_prob(torch.zeros(4, 2), torch.zeros(4, 5))
    with pytest.raises(ValueError, match="input"):
        estimator.log_prob(torch.zeros(4, 5), torch.zeros(4, 3))
