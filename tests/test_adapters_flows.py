"""Flows, distributions, estimators and VAEs of other libraries give exact nats, and the same as the libraries' own."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.nn.functional import one_hot

import loglik
from helpers.pythae_like import linear_vae
from loglik import Bound, Flow, StandardNormal
from loglik.adapters import (
    as_density,
    from_copulas,
    from_distribution,
    from_nflows,
    from_normflows,
    from_pythae,
    from_scipy,
    from_sklearn,
    from_zuko,
    preprocessed,
)
from loglik.flows import MaskedAutoregressive
from loglik.flows.maps import Affine, Spline
from loglik.flows.spline_bins import MIN_BIN, MIN_DERIVATIVE, UNIT_DERIVATIVE

zuko = pytest.importorskip("zuko")
nflows = pytest.importorskip("nflows")
nf = pytest.importorskip("normflows")

MEAN, STD = 1.5, 0.7
RATE = 0.3  # of the linear velocity of a continuous flow
TIES = np.array([[0.3, -0.2]])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def gaussian(dims: int) -> td.Distribution:
    return td.Independent(td.Normal(full(dims, MEAN), full(dims, STD)), 1)


def full(dims: int, value: float) -> torch.Tensor:
    return torch.full((dims,), value, dtype=torch.float64)


def zuko_gaussian(dims):
    from zuko.flows import Flow, UnconditionalDistribution, UnconditionalTransform

    shift = UnconditionalTransform(zuko.transforms.AdditiveTransform, full(dims, -MEAN))
    base = UnconditionalDistribution(zuko.distributions.DiagNormal, torch.zeros(dims).double(), full(dims, STD))
    return from_zuko(Flow([shift], base))


def zuko_solved(dims):
    flow = zuko.flows.CNF(dims).double()
    (solved,) = [module for module in flow.modules() if isinstance(module, zuko.flows.FFJTransform)]
    solved.ode = nn.Linear(dims + 2 * len(solved.freqs), dims).double()
    with torch.no_grad():
        solved.ode.weight.zero_()
        solved.ode.weight[:, -dims:] = RATE * torch.eye(dims, dtype=torch.float64)
        solved.ode.bias.zero_()
    scale = STD * math.exp(RATE)  # z = e^rate (x - m) / (s e^rate)
    return from_zuko(flow, mean=MEAN, scale=scale)


def nflows_gaussian(dims):
    from nflows.distributions import StandardNormal as Normal
    from nflows.flows import Flow
    from nflows.transforms import PointwiseAffineTransform

    scale = torch.tensor(1 / STD, dtype=torch.float64)
    return from_nflows(Flow(PointwiseAffineTransform(-MEAN * scale, scale), Normal([dims])).double())


def normflows_gaussian(dims):
    base = nf.distributions.DiagGaussian(dims)
    flow = nf.flows.AffineConstFlow((dims,)).double()
    with torch.no_grad():
        flow.t.fill_(MEAN)
        flow.s.fill_(math.log(STD))
    return from_normflows(nf.NormalizingFlow(base, [flow]).double())


def mixture_gaussian(dims):
    from sklearn.mixture import GaussianMixture

    estimator = GaussianMixture(1, covariance_type="spherical")
    estimator.weights_, estimator.means_ = np.ones(1), np.full((1, dims), MEAN)
    estimator.covariances_, estimator.precisions_cholesky_ = np.array([STD**2]), np.array([1 / STD])
    estimator.n_features_in_ = dims
    return from_sklearn(estimator)


def kernel_gaussian(dims):
    from sklearn.neighbors import KernelDensity

    return from_sklearn(KernelDensity(bandwidth=STD).fit(np.full((1, dims), MEAN)))


def scaled_pipeline(dims):
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.random.default_rng(0).normal(size=(4 * dims, dims)) * 3 + 1
    pipe = make_pipeline(StandardScaler(), PCA(whiten=True), GaussianMixture(1)).fit(rows)
    # the model of whitened rows, such that x is the Gaussian of the truth: push it through the steps
    scaler, pca, last = (step for _, step in pipe.steps)
    matrix = np.diag(1 / scaler.scale_) @ pca.components_.T @ np.diag(1 / np.sqrt(pca.explained_variance_))
    last.means_ = pipe[:-1].transform(np.full((1, dims), MEAN))
    covariance = STD**2 * matrix.T @ matrix
    last.covariances_ = covariance[None]
    last.precisions_cholesky_ = np.linalg.inv(np.linalg.cholesky(covariance)).T[None]
    return from_sklearn(pipe)


GAUSSIANS = {
    "zuko": zuko_gaussian,
    "zuko CNF": zuko_solved,
    "nflows": nflows_gaussian,
    "normflows": normflows_gaussian,
    "torch": lambda dims: from_distribution(gaussian(dims)),
    "torch, batch": lambda dims: from_distribution(td.Normal(full(dims, MEAN), STD)),
    "scipy": lambda dims: from_scipy(stats().multivariate_normal(np.full(dims, MEAN), STD**2 * np.eye(dims))),
    "scipy, each": lambda dims: from_scipy(stats().norm(np.full(dims, MEAN), STD)),
    "GaussianMixture": mixture_gaussian,
    "KernelDensity": kernel_gaussian,
    "Pipeline": scaled_pipeline,
}


def stats():
    from scipy import stats

    return stats


@pytest.mark.parametrize("dims", [2, 64])
@pytest.mark.parametrize("make", GAUSSIANS.values(), ids=GAUSSIANS)
def test_a_gaussian_gives_exact_nats(make, dims):
    density = make(dims)
    x = gaussian(dims).sample((5,))
    truth = gaussian(dims).log_prob(x)
    with torch.no_grad():
        found = density.log_prob(x)
        error = density.numerical_error(x)
        assert found.dtype is torch.float64
        assert density.event_shape == (dims,) and density.bound is Bound.EXACT
        allowed = 1e-5 if error is None else 1.1 * error + 1e-8
        assert ((found - truth).abs() <= allowed).all()
        assert error is None or (error < 1e-3 * dims).all()
        drawn = density.sample(400)
    assert drawn.shape == (400, dims)
    assert abs(drawn.mean() - MEAN) < 0.15 and abs(drawn.std() - STD) < 0.1


@pytest.mark.parametrize("make", GAUSSIANS.values(), ids=GAUSSIANS)
def test_integers_are_dequantized_below_the_mass_of_their_cells(make):
    """Levels 0 ... 3 under N(1.5, 0.7²): the cells of the ends are unbounded, so that the masses sum to 1."""
    density = preprocessed(make(2), levels=4)
    x = torch.tensor([[0, 1], [3, 2], [1, 3]])
    normal = td.Normal(MEAN, STD)
    edges = torch.tensor([-math.inf, 1.0, 2.0, 3.0, math.inf])
    mass = normal.cdf(edges).diff().log()[x].sum(1)
    assert density.discrete and density.bound is Bound.LOWER and density.importance_weighted
    with torch.no_grad():
        one = torch.stack([density.log_prob(x) for _ in range(50)]).mean(0)
        many = density.log_prob(x, samples=2000)
    assert (one < mass).all() and torch.allclose(many.float(), mass, atol=0.06)
    with pytest.raises(ValueError, match=r"must hold integers 0 \.\.\. 3, got 0 \.\.\. 4"):
        density.log_prob(torch.tensor([[0, 4]]))


def test_integers_of_a_whole_data_set_count_their_noise():
    x = td.Normal(MEAN, STD).sample((300, 2)).floor().clamp(0, 3).long()
    with pytest.raises(ValueError, match="4 levels, and the model is a density of real numbers: pass dequantize=True"):
        loglik.evaluate(from_distribution(gaussian(2)), x)
    result = loglik.evaluate(preprocessed(from_distribution(gaussian(2)), levels=4), x, samples=64)
    mass = td.Normal(MEAN, STD).cdf(torch.tensor([-math.inf, 1.0, 2.0, 3.0, math.inf])).diff().log()
    assert result.bound == "lower" and result.bits_per_dim is not None
    assert result.nats == pytest.approx(mass[x].sum(1).mean().item(), abs=0.02)


@pytest.mark.parametrize("dims", [2, 64])
def test_a_linear_vae_gives_exact_nats(dims):
    """The posterior is exact, so each importance weight is p(x): the bound is tight with one sample."""
    model = linear_vae(dims)
    weight, bias = model.encoder.weight.detach(), model.encoder.bias.detach()
    truth = td.MultivariateNormal(bias, weight @ weight.T + torch.eye(dims).double())
    density, x = from_pythae(model), truth.sample((6,))
    assert density.bound is Bound.LOWER and density.importance_weighted
    with torch.no_grad():
        assert torch.allclose(density.log_prob(x), truth.log_prob(x), atol=1e-9)
        assert torch.allclose(density.log_prob(x, samples=7), truth.log_prob(x), atol=1e-9)
        torch.manual_seed(1)
        terms = density.terms(x, samples=3)
        assert torch.allclose(sum(terms.values()), truth.log_prob(x), atol=1e-9)
        assert density.sample(500).cov().shape == (500, 500)
        assert abs(density.sample(4000).var(0).mean() - truth.variance.mean()) < 0.15


def test_a_vae_of_binary_data_is_a_probability_and_refuses_grey_values():
    density = from_pythae(linear_vae(4, loss="bce"))
    x = torch.cartesian_prod(*[torch.tensor([0, 1])] * 4)
    with torch.no_grad():
        total = density.log_prob(x, samples=4000).exp().sum()
    assert density.discrete and total.item() == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match=r"values from 0\.5 to 0\.5: binarise them"):
        density.log_prob(torch.full((1, 4), 0.5).double())
    with pytest.raises(ValueError, match=r"reconstruction_loss must be mse or bce, got 'msssim'"):
        from_pythae(linear_vae(4, loss="msssim"))


def context_of(labels):
    return one_hot(labels, 3).float()


FLOWS = {
    "MAF": lambda c: zuko.flows.MAF(3, c, transforms=2, hidden_features=(16,)),
    "NSF": lambda c: zuko.flows.NSF(3, c, transforms=2, hidden_features=(16,)),
    "NICE": lambda c: zuko.flows.NICE(3, c, transforms=2, hidden_features=(16,)),
    "NAF": lambda c: zuko.flows.NAF(3, c, transforms=1, hidden_features=(16,)),
    "BPF": lambda c: zuko.flows.BPF(3, c, transforms=2, hidden_features=(16,)),
    "GMM": lambda c: zuko.flows.GMM(3, c, components=2),
    "CNF": lambda c: zuko.flows.CNF(3, c, hidden_features=(16,)),
}


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_zuko_agrees_with_itself_in_the_units_of_the_data(make):
    x, labels = torch.randn(6, 3) * 2 + 1, torch.tensor([0, 1, 2, 0, 1, 2])
    flow, given = make(0).eval(), make(3).eval()
    scale = torch.tensor([2.0, 3.0, 4.0])
    density = from_zuko(flow, mean=1.0, scale=scale)
    conditional = from_zuko(given, context=context_of)
    assert not density.conditional and conditional.conditional and conditional.event_shape == (3,)
    with torch.no_grad():
        own = flow().log_prob((x - 1) / scale) - scale.log().sum()
        assert torch.allclose(density.log_prob(x), own, atol=1e-5)
        assert torch.allclose(conditional.log_prob(x, labels), given(context_of(labels)).log_prob(x), atol=1e-5)
        assert conditional.sample(6, labels).shape == (6, 3) and density.sample(4).shape == (4, 3)
    with pytest.raises(ValueError, match=r"this zuko model is p\(x \| context\): pass a context"):
        conditional.log_prob(x)
    with pytest.raises(ValueError, match="reads a vector for each row, and these are labels: pass context="):
        from_zuko(given).log_prob(x[:3], labels[:3])  # as many labels as the vector is wide
    with pytest.raises(ValueError, match="zuko refuses these data or their context"):
        from_zuko(given).log_prob(x, torch.zeros(6, 5))


def test_an_estimated_trace_is_an_estimate():
    assert from_zuko(zuko.flows.CNF(2, exact=False)).bound is Bound.ESTIMATE


def test_nflows_agrees_with_itself():
    from nflows.distributions import ConditionalDiagonalNormal
    from nflows.distributions import StandardNormal as Normal
    from nflows.flows import Flow as NFlow
    from nflows.flows import MaskedAutoregressiveFlow, SimpleRealNVP
    from nflows.transforms import CompositeTransform, RandomPermutation
    from nflows.transforms import MaskedPiecewiseRationalQuadraticAutoregressiveTransform as Spline

    x, inputs = torch.randn(5, 4), torch.randn(5, 2)
    plain = SimpleRealNVP(4, 8, 2, 1).eval()
    density = from_nflows(plain)
    with torch.no_grad():
        assert not density.conditional and torch.allclose(density.log_prob(x), plain.log_prob(x), atol=1e-5)
        assert density.sample(3).shape == (3, 4)
    spline = Spline(4, 8, context_features=3, tails="linear", tail_bound=3.0, use_residual_blocks=False)
    steps = CompositeTransform([RandomPermutation(4), spline])
    given = NFlow(steps, Normal([4]), embedding_net=nn.Linear(2, 3)).eval()
    density = from_nflows(given)
    with torch.no_grad():
        assert density.conditional and torch.allclose(density.log_prob(x, inputs), given.log_prob(x, inputs), atol=1e-5)
        assert density.sample(5, inputs).shape == (5, 4)
    hidden = NFlow(steps, ConditionalDiagonalNormal([4], context_encoder=nn.Linear(3, 8)))
    assert from_nflows(hidden).conditional  # its base reads the context
    assert not from_nflows(MaskedAutoregressiveFlow(4, 8, 2, 1)).conditional
    with pytest.raises(ValueError, match="pass a context"):
        density.log_prob(x)
    with pytest.raises(ValueError, match="nflows refuses these data or their context: mat1 and mat2"):
        density.log_prob(x, torch.randn(5, 7))


def normflows_cases():
    def blocks(context=None):
        layers = []
        for _ in range(2):
            layers.append(nf.flows.AutoregressiveRationalQuadraticSpline(4, 1, 8, num_context_channels=context))
            layers.append(nf.flows.LULinearPermute(4))
        return layers

    plain = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), blocks())
    given = nf.ConditionalNormalizingFlow(nf.distributions.DiagGaussian(4), blocks(2))
    classes = nf.ClassCondFlow(nf.distributions.ClassCondDiagGaussian(4, 3), blocks())
    with torch.no_grad():
        classes.q0.loc.normal_()
    return plain.eval(), given.eval(), classes.eval()


def test_normflows_agrees_with_itself():
    x, inputs, labels = torch.randn(5, 4), torch.randn(5, 2), torch.tensor([0, 1, 2, 1, 0])
    plain, given, classes = normflows_cases()
    with torch.no_grad():
        for model, context in ((plain, None), (given, inputs), (classes, labels)):
            density = from_normflows(model)
            arguments = () if context is None else (context,)
            assert density.conditional is (context is not None) and density.event_shape == (4,)
            assert torch.allclose(density.log_prob(x, context), model.log_prob(x, *arguments), atol=1e-5)
            assert density.sample(5, context).shape == (5, 4)
    with pytest.raises(ValueError, match=r"labels must hold integers 0 \.\.\. 2, got 3"):
        from_normflows(classes).log_prob(x, torch.full((5,), 3))
    with pytest.raises(ValueError, match="stochastic layer MetropolisHastings"):
        target = nf.distributions.TwoMoons()
        proposal = nf.distributions.DiagGaussianProposal((2,), 0.1)
        layer = nf.flows.MetropolisHastings(target, proposal, 1)
        from_normflows(nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [layer]))


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated")
def test_a_multiscale_flow_of_images():
    flows = [
        [nf.flows.GlowBlock(8, 8), nf.flows.Squeeze()],
        [nf.flows.GlowBlock(4, 8), nf.flows.Squeeze()],
    ]
    base = [nf.distributions.GlowBase((8, 2, 2), 10), nf.distributions.GlowBase((2, 4, 4), 10)]
    model = nf.MultiscaleFlow(base, flows, [nf.flows.Merge()], class_cond=True)
    x, labels = torch.rand(3, 1, 8, 8), torch.tensor([1, 0, 9])
    model.log_prob(x, labels)  # its ActNorm takes its weights from the first batch
    model.eval()
    density = from_normflows(model)
    with torch.no_grad():
        assert density.event_shape == (1, 8, 8) and density.conditional
        assert torch.allclose(density.log_prob(x, labels), model.log_prob(x, labels), atol=1e-4)
    result = loglik.evaluate(preprocessed(density, levels=17, scale=17), "digits", split="test", samples=1)
    assert result.bound == "lower" and result.bits_per_dim > 0


def test_a_circular_flow_of_zuko_is_a_density_of_angles():
    torch.manual_seed(0)
    density = from_zuko(zuko.flows.NCSF(1, transforms=1, hidden_features=(8,)).double())
    x = torch.linspace(-8, 8, 16001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        log_p = density.log_prob(x)
    assert log_p[(x[:, 0].abs() > math.pi)].isneginf().all()
    torch.testing.assert_close(torch.trapezoid(log_p.exp(), dx=1e-3).item(), 1.0, rtol=0, atol=2e-3)


@pytest.mark.parametrize("spline", [False, True], ids=["affine", "spline"])
def test_a_zuko_flow_is_our_flow_with_its_numbers(spline):
    """The same conditioner network and the same maps: the same nats."""
    torch.manual_seed(3)
    make = zuko.flows.NSF if spline else zuko.flows.MAF
    theirs = make(4, transforms=3, hidden_features=(32,), **({"bins": 8} if spline else {})).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(2)
    steps = []
    for step in theirs.transform.transforms:
        if spline:
            steps.append(MaskedAutoregressive(OurSplines(step.hyper), Spline(8, 5.0)))
        else:
            steps.append(MaskedAutoregressive(step.hyper, Affine(-math.log(1e-3))))
    ours, x = Flow(steps, StandardNormal((4,)).double()), 2 * torch.randn(64, 4).double()
    with torch.no_grad():
        adapted = from_zuko(theirs).log_prob(x)
        assert (adapted - ours.log_prob(x)).abs().max() < 1e-5
        assert adapted.std() > 0.5


class OurSplines(nn.Module):
    """zuko's parameters of splines as ours, which have a smallest bin and slope."""

    def __init__(self, hyper: nn.Module) -> None:
        super().__init__()
        self.hyper = hyper

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        widths, heights, derivatives = self.hyper(x).unflatten(-1, (4, 23)).split([8, 8, 7], -1)
        shares = [(p / (1 + (2 * p / math.log(1e-3)).abs())).softmax(-1) for p in (widths, heights)]
        slopes = (derivatives / (1 + (derivatives / math.log(1e-3)).abs())).exp()
        free = [(share - MIN_BIN) / (1 - 8 * MIN_BIN) for share in shares]
        inner = slopes - MIN_DERIVATIVE
        raw = [*(share.log() for share in free), inner + (-torch.expm1(-inner)).log() - UNIT_DERIVATIVE]
        return torch.cat(raw, -1).flatten(-2)


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        (td.Uniform(torch.zeros(2), torch.ones(2)), [0.5, 0.2], [0.5, 1.5]),
        (td.Gamma(torch.tensor([2.0]), 1.0), [1.5], [-1.0]),
        (td.Dirichlet(torch.ones(3)), [0.2, 0.3, 0.5], [0.2, 0.3, 0.6]),
        (td.LogNormal(torch.zeros(2), 1.0), [1.0, 2.0], [1.0, -2.0]),
        (td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.Exponential(torch.tensor([1.0, 2.0]))), [1.0], [-1.0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_minus_infinity_outside_of_a_support(distribution, inside, outside):
    density = from_distribution(distribution)
    found = density.log_prob(torch.tensor([inside, outside]))
    own = distribution.log_prob(torch.tensor(inside).view(distribution.batch_shape + distribution.event_shape))
    assert found[0].item() == pytest.approx(own.sum().item(), abs=1e-6) and found[1] == -math.inf


def test_discrete_distributions_are_probabilities():
    table = from_distribution(td.Categorical(logits=torch.randn(3, 4)))
    x = torch.cartesian_prod(*[torch.arange(4)] * 3)
    assert table.discrete and table.event_shape == (3,)
    assert table.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert table.log_prob(torch.tensor([[0, 1, 4]]))[0] == -math.inf
    assert loglik.evaluate(table, x).bits_per_dim is not None and table.sample(3).dtype is torch.int64
    counts = from_scipy(stats().poisson(np.array([1.0, 3.0])))
    assert counts.discrete and counts.log_prob([[1, 2]]).item() == pytest.approx(
        stats().poisson.logpmf([1, 2], [1.0, 3.0]).sum()
    )


def test_a_function_from_contexts_to_distributions():
    network = nn.Linear(2, 2)

    def normal(c):
        return td.Normal(network(c)[:, :1], network(c)[:, 1:].exp())

    given = from_distribution(normal, example=torch.zeros(1, 2))
    x, inputs = torch.randn(5, 1), torch.randn(5, 2)
    with torch.no_grad():
        own = normal(inputs).log_prob(x).sum(1)
        assert torch.allclose(given.log_prob(x, inputs), own) and given.sample(5, inputs).shape == (5, 1)
    with pytest.raises(ValueError, match="needs example=, a batch of contexts"):
        from_distribution(lambda c: td.Normal(c, 1))


@pytest.mark.parametrize("kernel", ["gaussian", "tophat", "epanechnikov", "exponential", "linear", "cosine"])
def test_kernel_densities_integrate_to_one_and_their_samples_fit(kernel):
    from sklearn.neighbors import KernelDensity

    density = from_sklearn(KernelDensity(kernel=kernel, bandwidth=0.8).fit(TIES))
    grid = torch.linspace(-12, 12, 601).double()
    log_p = density.log_prob(torch.cartesian_prod(grid, grid))
    assert log_p.exp().sum().item() * 0.04**2 == pytest.approx(1, abs=0.01)
    x = density.sample(4000)
    entropy = -(log_p.exp() * log_p.nan_to_num(neginf=0)).sum().item() * 0.04**2
    assert -density.log_prob(x).mean().item() == pytest.approx(entropy, abs=0.06)


def test_a_bayesian_mixture_is_a_lower_bound():
    from sklearn.mixture import BayesianGaussianMixture

    rows = np.random.default_rng(0).normal(size=(40, 1))
    estimator = BayesianGaussianMixture(n_components=2, random_state=0, max_iter=500).fit(rows)
    density, grid = from_sklearn(estimator), torch.linspace(-12, 12, 2001).double()[:, None]
    assert density.bound is Bound.LOWER
    assert np.allclose(density.log_prob(rows).numpy(), estimator.score_samples(rows))
    assert 0.8 < density.log_prob(grid).exp().sum().item() * 0.012 < 1  # the logarithm's expectation is below


def test_samples_differ_and_follow_torchs_seed():
    from sklearn.mixture import GaussianMixture

    density = from_sklearn(GaussianMixture(2, random_state=0).fit(np.random.default_rng(0).normal(size=(50, 2))))
    torch.manual_seed(1)
    first, second = density.sample(4), density.sample(4)
    torch.manual_seed(1)
    assert torch.equal(density.sample(4), first) and not torch.equal(first, second)


def test_wrong_models_and_data_are_one_line():
    from sklearn.ensemble import IsolationForest
    from sklearn.linear_model import LogisticRegression
    from sklearn.mixture import GaussianMixture
    from sklearn.neighbors import KernelDensity
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PowerTransformer, StandardScaler

    rows = np.random.default_rng(0).normal(size=(30, 2))
    fitted = GaussianMixture(1).fit(rows)
    wrong = {
        "GaussianMixture is not fitted: call its fit": lambda: from_sklearn(GaussianMixture()),
        "IsolationForest is no density, its scores are no log-densities": lambda: from_sklearn(IsolationForest()),
        r"is a classifier, p\(label | data\)": lambda: from_sklearn(LogisticRegression()),
        "is not normalised": lambda: from_sklearn(KernelDensity(metric="manhattan").fit(rows)),
        "StandardScaler is not fitted": lambda: from_sklearn(make_pipeline(StandardScaler(), fitted)),
        "no log-determinant that is known": lambda: from_sklearn(fitted, transform=PowerTransformer().fit(rows)),
        "mean of shape .3,. does not broadcast": lambda: from_sklearn(fitted, mean=[1, 2, 3]),
        "levels must be an integer of at least 2, got 1": lambda: from_sklearn(fitted, levels=1),
        "expected numbers, got an array of type <U1": lambda: from_sklearn(fitted, mean="x"),
        "no scale 0": lambda: from_sklearn(fitted, scale=0.0),
        "of events of shape .2,., got .3,.": lambda: from_sklearn(fitted).log_prob(np.zeros((4, 3))),
        "row 0, column 1 is NaN, a missing value": lambda: from_sklearn(fitted).log_prob([[0.0, math.nan]]),
        "an object of the class .*Linear, which has forward, is no density": lambda: as_density(nn.Linear(2, 2)),
        "the class .*NSF.*pass an object of it": lambda: as_density(zuko.flows.NSF),
        "from_sklearn has no setting 'size'": lambda: as_density(fitted, size=3),
        "expected a zuko LazyDistribution": lambda: from_zuko(nn.Linear(2, 2)),
        "expected an nflows Flow": lambda: from_nflows(nn.Linear(2, 2)),
        "expected NormalizingFlow": lambda: from_normflows(nn.Linear(2, 2)),
        "Linear has another prior": lambda: from_pythae(nn.Linear(2, 2)),
        "no frozen distribution": lambda: from_scipy(3),
        "shape .2,., and the data are arrays 3": lambda: loglik.evaluate(fitted, np.zeros((9, 3))),
    }
    for message, call in wrong.items():
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_model_of_flattened_images_is_reshaped():
    density = as_density(zuko.flows.MAF(64, transforms=1, hidden_features=(16,)), mean=8.0, scale=4.0)
    spec = loglik.data.as_data("digits").spec
    whole = as_density(density, spec, dequantize=True)
    result = loglik.evaluate(whole, "digits", split="test", samples=1)
    assert whole.event_shape == (1, 8, 8) and result.bits_per_dim > 0 and result.bound == "lower"


@pytest.mark.parametrize("name", ["VAE", "BetaVAE", "IWAE", "FactorVAE"])
def test_pythae_itself(name):
    models = pytest.importorskip("pythae.models")
    config = getattr(models, f"{name}Config")(input_dim=(1, 4, 4), latent_dim=2)
    torch.manual_seed(0)
    model = getattr(models, name)(config).eval()
    density, x = from_pythae(model), torch.rand(3, 1, 4, 4)
    with torch.no_grad():
        many = density.log_prob(x, samples=4000).double()
        own = [model.get_nll(row[None], n_samples=4000, batch_size=1000) for row in x]  # plus log p, not minus
    assert torch.allclose(many, torch.tensor(own).double(), atol=0.03)


class Marginal:
    """A column's distribution with copulas' interface."""

    def __init__(self, frozen) -> None:
        self.cdf, self.probability_density, self.percent_point = frozen.cdf, frozen.pdf, frozen.ppf


def test_a_gaussian_copula_counts_its_marginals():
    """Normal marginals make a Gaussian; those of other scales have the Jacobian of the map between them."""
    correlation = np.array([[1.0, 0.8], [0.8, 1.0]])
    scale = np.array([2.0, 0.5])
    marginals = [Marginal(stats().norm(1, s)) for s in scale]
    model = SimpleNamespace(columns=["a", "b"], univariates=marginals, correlation=correlation)
    density = from_copulas(model)
    truth = stats().multivariate_normal([1, 1], scale[:, None] * correlation * scale)
    x = truth.rvs(50, random_state=0)
    assert np.allclose(density.log_prob(x).numpy(), truth.logpdf(x), atol=1e-8)
    drawn = density.sample(2000).numpy()
    assert np.allclose(np.corrcoef(drawn.T), correlation, atol=0.03) and np.allclose(drawn.std(0), scale, rtol=0.06)
    model.univariates = [Marginal(stats().lognorm(1.0)), marginals[1]]
    log_x = np.column_stack([2 * np.log(x[:, 0].clip(0.1)) + 1, x[:, 1]])  # standard deviation 2, as in the truth
    expected = truth.logpdf(log_x) + np.log(2 / x[:, 0].clip(0.1))
    lognormal = from_copulas(model).log_prob(np.column_stack([x[:, 0].clip(0.1), x[:, 1]]))
    assert np.allclose(lognormal.numpy(), expected, atol=1e-8)
    with pytest.raises(ValueError, match="expected a GaussianMultivariate of copulas, got Linear"):
        from_copulas(nn.Linear(1, 1))


def test_copulas_itself():
    copulas = pytest.importorskip("copulas.multivariate")
    pandas = pytest.importorskip("pandas")
    from copulas.univariate import GaussianUnivariate

    rows = np.random.default_rng(0).multivariate_normal([0, 3], [[1, 0.5], [0.5, 2]], size=400)
    model = copulas.GaussianMultivariate(distribution=GaussianUnivariate)
    model.fit(pandas.DataFrame(rows, columns=["a", "b"]))
    fitted = stats().multivariate_normal(
        rows.mean(0), rows.std(0)[:, None] * np.asarray(model.correlation) * rows.std(0)
    )
    density = as_density(model)
    assert np.allclose(density.log_prob(rows).numpy(), fitted.logpdf(rows), atol=1e-6)
    assert density.sample(5).shape == (5, 2)
