"""`density.distribution()` keeps the promises of `torch.distributions`, and Pyro samples from it."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import (
    Categorical,
    Distribution,
    ExpTransform,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.distributions import kl_divergence as closed_kl

from helpers.densities import CASES, perturb, ready
from loglik.density import Bound, StandardNormal
from loglik.divergence import cross_entropy, entropy, kl_divergence
from loglik.flows import Flow, LogisticMixture, StandardLogistic, autoregressions, maf, nsf
from loglik.transforms import Standardise
from loglik.vae import VAE, Gaussian


@pytest.fixture(autouse=True)
def validated():
    """Libraries such as zuko switch torch's default validation off when they are imported."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    yield
    Distribution.set_default_validate_args(before)


def conditional_flow() -> Flow:
    """A spline flow p(x | c) over two dimensions, given vectors of three numbers."""
    torch.manual_seed(1)
    flow = Flow(nsf(2, context=4, layers=2, hidden=(8,)), StandardNormal((2,)), context=nn.Linear(3, 4))
    perturb(flow, 0.3)
    return flow.eval()


def normal_flow(mean: torch.Tensor, std: torch.Tensor) -> Flow:
    """N(m, s²) in each dimension."""
    transform = Standardise((len(mean),))
    transform.mean.copy_(mean)
    transform.std.copy_(std)
    return Flow([transform], StandardNormal((len(mean),)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_of_every_family(case):
    density, event, context = ready(case, n=3)
    one = density.distribution(None if context is None else context[:1])
    assert one.event_shape == density.event_shape and one.batch_shape == (() if context is None else (1,))
    batch = one.expand((2, 1))
    draws = batch.sample((2,))
    assert draws.shape == (2, 2, 1, *density.event_shape) and not draws.requires_grad
    assert batch.support.check(draws).all()
    log_p = batch.log_prob(draws)
    assert log_p.shape == (2, 2, 1) and log_p.isfinite().all()
    assert Independent(batch, 1).log_prob(draws).shape == (2, 2)
    assert one.bound is density.bound and str(density.bound.value) in repr(one)
    assert one.log_prob(event).shape == (3,)
    assert batch.has_rsample == density.has_rsample


@pytest.mark.parametrize("case", [case for case in CASES if case.spec == "table"], ids=str)
def test_log_prob_is_the_densitys(case):
    density, event, context = ready(case, n=6)
    distribution = density.distribution(context)
    torch.manual_seed(3)
    own = density.log_prob(event, context)
    torch.manual_seed(3)
    torch.testing.assert_close(distribution.log_prob(event), own)


REPARAMETERIZED = [case for case in CASES if ready(case, n=4)[0].has_rsample]


def test_who_has_rsample():
    families = {str(case).partition("-")[0] for case in REPARAMETERIZED}
    assert {"flow", "flow:nsf", "flow:maf", "flow:iaf", "flow:continuous", "vae"} <= families
    assert not families & {"mixture", "classifier", "autoregressive", "diffusion", "independent"}


def finite_difference(distribution, parameter, f):
    """The slope of f(rsample) along a random direction of a parameter, by autograd and by central differences."""

    def value():
        torch.manual_seed(5)
        return f(distribution.rsample((2,)))

    direction = torch.randn_like(parameter)
    (gradient,) = torch.autograd.grad(value(), parameter)
    epsilon = 1e-6
    with torch.no_grad():
        parameter.add_(epsilon * direction)
        above = value()
        parameter.sub_(2 * epsilon * direction)
        below = value()
        parameter.add_(epsilon * direction)
    return (gradient * direction).sum(), (above - below) / (2 * epsilon)


def smooth(x):
    return (x / 40).sin().sum() + x.square().mean()


@pytest.mark.parametrize("case", REPARAMETERIZED, ids=str)
def test_gradients_through_rsample(float64, case):
    density, _, context = ready(case, n=4)
    distribution = density.double().distribution(context)
    parameters = [p for p in density.parameters() if p.numel()]
    assert distribution.rsample().requires_grad
    reached = 0
    for parameter in parameters[-4:]:
        try:
            slope, truth = finite_difference(distribution, parameter, smooth)
        except RuntimeError as error:  # an encoder's parameter
            assert "not have been used" in str(error)
            continue
        torch.testing.assert_close(slope, truth, rtol=1e-4, atol=1e-6)
        reached += 1
    assert reached > 0


def test_gradients_through_rsample_reach_the_context(float64):
    flow = conditional_flow().double()
    context = torch.randn(5, 3, requires_grad=True)
    slope, truth = finite_difference(flow.distribution(context), context, smooth)
    torch.testing.assert_close(slope, truth, rtol=1e-5, atol=1e-8)
    assert slope.abs() > 1e-3


@pytest.mark.parametrize("base", [StandardNormal, StandardLogistic])
def test_gradients_through_a_numerical_inverse(float64, base):
    flow = Flow(autoregressions(2, LogisticMixture(3), layers=1, hidden=(6,)), base((2,)))
    perturb(flow, 0.3)
    for parameter in flow.parameters():
        slope, truth = finite_difference(flow.distribution(), parameter, smooth)
        torch.testing.assert_close(slope, truth, rtol=1e-4, atol=1e-6)


def test_no_rsample_without_a_pathwise_gradient():
    density, _, context = ready(next(case for case in CASES if str(case) == "mixture-table"))
    distribution = density.distribution(context)
    assert not distribution.has_rsample
    with pytest.raises(NotImplementedError, match="Mixture has no rsample"):
        distribution.rsample()


def test_a_normal_is_torchs(float64):
    mean, std = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 2.0, 1.0])
    ours, truth = normal_flow(mean, std).distribution(), Independent(Normal(mean, std), 1)
    x = truth.sample((4, 2))
    torch.testing.assert_close(ours.log_prob(x), truth.log_prob(x))
    torch.manual_seed(2)
    drawn = ours.rsample((4,))
    torch.manual_seed(2)
    torch.testing.assert_close(drawn, truth.rsample((4,)))


def test_log_prob_broadcasts_events_over_contexts(float64):
    flow, contexts = conditional_flow().double(), torch.randn(4, 3)
    distribution = flow.distribution(contexts)
    x = torch.randn(2)
    each = torch.stack([flow.log_prob(x[None], c[None])[0] for c in contexts])
    torch.testing.assert_close(distribution.log_prob(x), each)
    grid = distribution.log_prob(torch.randn(7, 1, 2))
    assert grid.shape == (7, 4)
    assert distribution.expand((5, 4)).log_prob(torch.randn(7, 5, 1, 2)).shape == (7, 5, 4)
    assert distribution.expand((5, 4)).context.shape == (5, 4, 3)


def test_expanded_batches_are_independent_draws():
    distribution = conditional_flow().distribution(torch.zeros(1, 3)).expand((2000, 1))
    x = distribution.sample()
    assert x.shape == (2000, 1, 2) and x.flatten(1).unique(dim=0).shape[0] == 2000


def test_transformed_distribution(float64):
    distribution = conditional_flow().double().distribution(torch.randn(4, 3))
    positive = TransformedDistribution(distribution, [ExpTransform()])
    assert (positive.batch_shape, positive.event_shape, positive.has_rsample) == ((4,), (2,), True)
    y = positive.rsample((3,))
    assert y.requires_grad
    torch.testing.assert_close(positive.log_prob(y), distribution.log_prob(y.log()) - y.log().sum(-1))


def test_mixture_of_conditional_distributions(float64):
    distribution = conditional_flow().double().distribution(torch.randn(4, 3))
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mixture = MixtureSameFamily(Categorical(weights), distribution)
    x = mixture.sample((6,))
    assert x.shape == (6, 2)
    by_hand = (distribution.log_prob(x[:, None]) + weights.log()).logsumexp(1)
    torch.testing.assert_close(mixture.log_prob(x), by_hand)


def test_the_mass_of_a_batch_is_one(float64):
    distribution = conditional_flow().double().distribution(torch.randn(3, 3))
    grid = torch.linspace(-9, 9, 201)
    points = torch.cartesian_prod(grid, grid)[:, None]
    mass = distribution.log_prob(points).exp().sum(0) * (grid[1] - grid[0]) ** 2
    torch.testing.assert_close(mass, torch.ones(3), atol=1e-2, rtol=0)


def test_validate_args():
    distribution = conditional_flow().distribution(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="within the support"):
        distribution.log_prob(torch.full((2, 2), math.nan))
    with pytest.raises(ValueError, match="right-most size"):
        distribution.log_prob(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="not broadcastable"):
        distribution.log_prob(torch.zeros(3, 2))


def test_support_of_integers_and_labels():
    pixels, _, _ = ready(next(case for case in CASES if str(case) == "autoregressive-image"))
    assert not pixels.distribution().support.check(torch.full((1, 2, 2), 3))
    with pytest.raises(ValueError, match="within the support"):
        pixels.distribution().log_prob(torch.full((1, 1, 2, 2), 3))
    classifier, labels, x = ready(next(case for case in CASES if str(case) == "classifier-table"))
    distribution = classifier.distribution(x)
    assert distribution.batch_shape == (16,) and distribution.event_shape == ()
    each = distribution.log_prob(torch.arange(3)[:, None])
    torch.testing.assert_close(each.logsumexp(0), torch.zeros(16), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="within the support"):
        distribution.log_prob(torch.full_like(labels, 3))


def test_missing_values_are_in_the_support_of_what_marginalises():
    density, event, _ = ready(next(case for case in CASES if str(case) == "mixture-incomplete_table"))
    assert event.isnan().any()
    torch.testing.assert_close(density.distribution().log_prob(event), density.log_prob(event))


def test_wrong_contexts():
    flow = conditional_flow()
    with pytest.raises(ValueError, match="pass a context"):
        flow.distribution()
    with pytest.raises(ValueError, match="no context"):
        StandardNormal((2,)).distribution(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        flow.distribution(torch.zeros(4, 3), samples=0)


def test_expand_follows_torch():
    four, one = conditional_flow().distribution(torch.zeros(4, 3)), StandardNormal((2,)).distribution()
    assert four.expand((2, -1)).sample().shape == (2, 4, 2)
    for distribution, shape in ((four, (3,)), (four, ()), (one, (-1,)), (one.expand((3,)), (2,))):
        with pytest.raises(ValueError, match="does not expand to"):
            distribution.expand(shape)


def test_moments_where_marginals_are_known():
    density, _, _ = ready(next(case for case in CASES if str(case) == "mixture-table"))
    distribution = density.distribution().expand((2,))
    draws = density.sample(40_000).double()
    assert distribution.mean.shape == (2, 3)
    error = draws.std(0) / 200
    assert ((distribution.mean[0] - draws.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(distribution.variance[0], draws.var(0), rtol=0.1, atol=0)
    with pytest.raises(NotImplementedError, match="moments of Flow"):
        _ = conditional_flow().distribution(torch.zeros(1, 3)).mean
    with pytest.raises(NotImplementedError):
        distribution.entropy()


def test_a_bound_says_so_and_tightens():
    torch.manual_seed(0)
    vae = VAE(nn.Linear(3, 4), nn.Linear(2, 6), Gaussian((3,)), StandardNormal((2,)))
    perturb(vae, 0.5)
    x = torch.randn(200, 3)
    once, often = vae.distribution(), vae.distribution(samples=64)
    assert once.bound is Bound.LOWER and "lower" in repr(once)
    assert often.log_prob(x).mean() > once.log_prob(x).mean() + 0.05
    assert often.expand((200,)).samples == 64


def test_divergences_of_distributions(float64):
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.5])
    p, q = normal_flow(mean, std).distribution(), MultivariateNormal(torch.zeros(2), torch.eye(2))
    truth = closed_kl(Independent(Normal(mean, std), 1), Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
    for first, second in ((p, q), (p.density, q), (p, StandardNormal((2,)))):
        kl = kl_divergence(first, second, 20_000)
        assert abs(kl.nats - truth) < 5 * kl.stderr < 0.5
    h = entropy(q, 20_000)
    assert abs(h.nats - q.entropy()) < 5 * h.stderr
    assert cross_entropy(q, p).nats > h.nats
    with pytest.raises(ValueError, match="same events"):
        kl_divergence(p, Categorical(torch.ones(3)))
    with pytest.raises(ValueError, match=r"batch shape \(2,\)"):
        entropy(Normal(mean, std))


# ---- Pyro


def test_pyro_samples_and_scores():
    pyro = pytest.importorskip("pyro")
    flow, contexts = conditional_flow(), torch.randn(4, 3)

    def model():
        with pyro.plate("rows", 4):
            x = pyro.sample("x", flow.distribution(contexts))
            with pyro.poutine.mask(mask=torch.tensor([True, False, True, True])):
                pyro.sample("y", flow.distribution(contexts), obs=torch.zeros(4, 2))
        with pyro.plate("more", 3):
            pyro.sample("z", StandardNormal((2,)).distribution())
        return x

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    x, y, z = (trace.nodes[name] for name in "xyz")
    torch.testing.assert_close(x["log_prob"], flow.log_prob(x["value"], contexts))
    assert x["value"].requires_grad and z["value"].shape == (3, 2)
    expected = flow.log_prob(torch.zeros(4, 2), contexts)[[0, 2, 3]].sum()
    torch.testing.assert_close(y["log_prob_sum"], expected)
    grouped = flow.distribution(contexts).to_event(1)
    assert grouped.batch_shape == () and grouped.event_shape == (4, 2)
    assert flow.distribution(contexts).expand_by([5]).batch_shape == (5, 4)


def test_a_flow_is_a_guide_in_pyro(float64):
    """The posterior of a normal mean with a correlated likelihood has a closed form, and so has the best ELBO."""
    pyro = pytest.importorskip("pyro")
    precision = torch.tensor([[4.0, 3.0], [3.0, 4.0]])
    observed = torch.tensor([1.0, -0.5])
    likelihood = MultivariateNormal(observed, precision_matrix=precision)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)

    def model():
        z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("likelihood", likelihood.log_prob(z))

    flow = Flow(maf(2, layers=2, hidden=(8,)), StandardNormal((2,)))

    def guide():
        pyro.module("flow", flow)
        pyro.sample("z", flow.distribution())

    def elbo(particles):
        return pyro.infer.Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=0)

    evidence = MultivariateNormal(observed, torch.eye(2) + precision.inverse()).log_prob(torch.zeros(2))
    before = -elbo(500).loss(model, guide)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), elbo(32))
    for _ in range(120):
        svi.step()
    after = -elbo(2000).loss(model, guide)
    assert before < evidence - 1
    assert abs(after - evidence) < 0.1
    mean = torch.linalg.solve(torch.eye(2) + precision, precision @ observed)
    assert (flow.sample(4000).mean(0) - mean).abs().max() < 0.1
