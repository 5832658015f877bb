"""Denoisers, scores and velocities in other libraries' conventions, against Gaussians whose log p is known."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from helpers.densities import check_sums_to_one
from loglik.adapters import denoiser, score, velocity
from loglik.adapters.adapted import Adapted
from loglik.adapters.ddpm_bound import DDPMBound
from loglik.adapters.paths import Steps
from loglik.adapters.wrapped import Wrapped
from loglik.density import Bound
from loglik.diffusion import LinearBeta, with_likelihood
from loglik.diffusion.schedule import alpha, sigma
from loglik.evaluation import evaluate

MEAN, SCALE = 0.4, 0.7


def column(values, like):
    return values.view(-1, *[1] * (like.dim() - 1)).to(like.dtype)


def guess(y, a, b, kind):
    """The exact prediction of y = a w + b ε for w from N(m, s²)."""
    a, b = column(a, y), column(b, y)
    w = MEAN + a * SCALE**2 / (a**2 * SCALE**2 + b**2) * (y - a * MEAN)
    noise = (y - a * w) / b
    return {"data": w, "noise": noise, "v": a * noise - b * w, "score": -noise / b, "velocity": w - noise}[kind]


def edm(y, s):
    """k-diffusion's and EDM's D(x, σ)."""
    return guess(y, torch.ones_like(s), s, "data")


def epsilon_of_sigma(y, s):
    return guess(y, torch.ones_like(s), s, "noise")


def ddpm(kind, steps=1000):
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64), 0)

    def call(y, t):
        a = torch.exp(torch.lerp(*(alpha_bar.log()[i] for i in (t.long(), t.ceil().long())), t.double() % 1))
        return guess(y, a.sqrt(), (1 - a).sqrt(), kind)

    return call


def vp(kind, factor=1.0):
    def call(y, t):
        a = torch.exp(-LinearBeta().integral(t / factor))
        return guess(y, a.sqrt(), (1 - a).sqrt(), kind)

    return call


def sub_vp(y, labels):
    """score_sde's network: -b times the score."""
    integral = LinearBeta().integral(labels / 999)
    return guess(y, torch.exp(-integral / 2), -torch.expm1(-integral), "noise")


def ve_network(y, s):
    return guess(y, torch.ones_like(s), s, "score")


def ve_score(y, t):
    s = 0.01 * (50 / 0.01) ** t
    return guess(y, torch.ones_like(s), s, "score")


def forwards(y, t):
    """The velocity of torchcfm and flow_matching: the data at t = 1."""
    return guess(y, t, (1 - t).clamp_min(1e-9), "velocity")


def backwards(y, t):
    return -forwards(y, 1 - t)


def lipman(y, t, s=0.01):
    a, b = t, 1 - (1 - s) * t
    return guess(y, a, b, "data") - (1 - s) * guess(y, a, b, "noise")


def tong(y, t, s=0.1):
    a, b = t, ((1 - t) ** 2 + s**2).sqrt()
    return guess(y, a, b, "data") - column((1 - t) / b, y) * guess(y, a, b, "noise")


INTERFACES = {
    "k-diffusion": lambda **units: denoiser(edm, "edm", **units),
    "ve noise": lambda **units: denoiser(epsilon_of_sigma, "ve", **units),
    "ddpm noise": lambda **units: denoiser(ddpm("noise"), "vp", **units),
    "ddpm data": lambda **units: denoiser(ddpm("data"), "vp", prediction="data", **units),
    "ddpm v": lambda **units: denoiser(ddpm("v"), "vp", prediction="v", **units),
    "vp schedule": lambda **units: denoiser(vp("noise"), "vp", schedule=LinearBeta(), **units),
    "score_sde vp": lambda **units: score(vp("noise", 999.0), "vp", **units),
    "score_sde vp score": lambda **units: score(vp("score"), "vp", network=False, **units),
    "score_sde subvp": lambda **units: score(sub_vp, "subvp", **units),
    "score_sde ve": lambda **units: score(ve_network, "ve", **units),
    "score_sde ve score": lambda **units: score(ve_score, "ve", network=False, **units),
    "flow": lambda **units: denoiser(forwards, "flow", **units),
    "torchcfm": lambda **units: velocity(forwards, gaussian=True, **units),
    "reverse": lambda **units: velocity(backwards, gaussian=True, data_at=0, **units),
    "sigma_min": lambda **units: velocity(lipman, gaussian=True, sigma_min=0.01, **units),
    "torchcfm sigma": lambda **units: velocity(tong, gaussian=True, sigma=0.1, **units),
}


def carried(x, density):
    """log p of the ODE: the Gaussian at its highest log-SNR is carried to the lowest, where N(0, I) takes its place."""
    high, low = density.schedule.ends(torch.zeros((), dtype=torch.float64))
    (m0, v0), (m1, v1) = ((alpha(end) * MEAN, alpha(end) ** 2 * SCALE**2 + sigma(end) ** 2) for end in (high, low))
    z = m1 + (v1 / v0).sqrt() * (alpha(high) * x - m0)
    return Normal(0.0, 1.0).log_prob(z) + 0.5 * (v1 / v0).log() + alpha(high).log()


QUICK = ("k-diffusion", "ddpm noise", "ddpm v", "score_sde subvp", "score_sde ve", "torchcfm", "torchcfm sigma")
SHAPES = [(name, (2,)) for name in INTERFACES] + [(name, (1, 8, 8)) for name in QUICK[::3]]


@pytest.mark.parametrize(
    ("name", "shape"), [pytest.param(*c, marks=[] if c[0] in QUICK else [pytest.mark.slow]) for c in SHAPES]
)
@torch.no_grad()
def test_a_gaussian_has_its_nats(name, shape, float64):
    """The bound is below log p and tight, and the ODE's nats are exact within its own error, in float64."""
    dims, truth = math.prod(shape), Normal(MEAN, SCALE)
    x = truth.sample((64, *shape))
    density = INTERFACES[name](event_shape=shape, data=x)
    exact = truth.log_prob(x).flatten(1).sum(1)
    assert density.bound is Bound.LOWER and density.log_prob(x[:2]).dtype is torch.float64
    gap = (density.log_prob(x, samples=16) - exact) / dims
    error = gap.std() / math.sqrt(len(x))
    # the noise that torchcfm's sigma leaves on the data is counted as theirs
    assert gap.mean() < 4 * error and gap.mean() > -4 * error - (0.02 if "torchcfm sigma" in name else 0.005)
    x, solved = x[:8], with_likelihood(density, "ode")
    found, error = solved.log_prob(x), solved.numerical_error(x)
    assert solved.bound is Bound.ESTIMATE and error.max() <= 1e-3 * dims
    # a multiple of the identity has the same trace from every vector of signs
    assert ((found - carried(x, solved).flatten(1).sum(1)).abs() <= error + 1e-6 * dims).all()
    assert ((found - exact[:8]) / dims).abs().mean() < (0.02 if "torchcfm sigma" in name else 0.005)


def levels_of(chances, span):
    return torch.linspace(*span, len(chances))


CHAIN = torch.cumprod(1 - torch.linspace(5e-4, 0.1, 200, dtype=torch.float64), 0)


def of_levels(chances, span, kind="data"):
    """D(y, σ), or the prediction of DDPM's chain, of independent levels with known probabilities."""
    values, log_p = levels_of(chances, span), torch.tensor(chances).log()

    def expected(y, a, b):
        distance = (y.unsqueeze(-1) - a.unsqueeze(-1) * values) / b.unsqueeze(-1)
        return ((log_p - 0.5 * distance.square()).softmax(-1) * values).sum(-1)

    def edm(y, s):
        return expected(y, torch.ones_like(y), column(s, y).expand_as(y))

    def chain(y, t):
        a = column(CHAIN[t.round().long()], y).expand_as(y)
        x_hat = expected(y, a.sqrt(), (1 - a).sqrt())
        return (y - a.sqrt() * x_hat) / (1 - a).sqrt()

    return edm if kind == "data" else chain


CHANCES = (0.5, 0.2, 0.05, 0.25)


@pytest.mark.parametrize(("span", "convention"), [((-1.0, 1.0), "edm"), ((0.0, 1.0), "vp")])
@torch.no_grad()
def test_integers_have_their_probability(convention, span, float64):
    """Dequantization is counted: the bound of events of 3 dimensions is their probability, and sums to at most 1."""
    call = of_levels(CHANCES, span, "data" if convention == "edm" else "noise")
    draws = torch.multinomial(torch.tensor(CHANCES), 3 * 256, True).view(256, 3).to(torch.uint8)
    density = denoiser(call, convention, event_shape=(3,), levels=4, span=span, data=draws, alphas_cumprod=CHAIN)
    exact = torch.tensor(CHANCES).log()[draws.long()].sum(1)
    assert density.discrete and density.bound is Bound.LOWER
    if convention == "vp":
        density.likelihood.whole = True  # all 199 divergences: one drawn at random is noisy where a level decides
        check_sums_to_one(density, torch.cartesian_prod(*[torch.arange(4, dtype=torch.uint8)] * 3), draws=10)
    rows = slice(None, 64 if convention == "vp" else None)
    gap = density.log_prob(draws[rows], samples=2 if convention == "vp" else 16) - exact[rows]
    error = gap.std() / math.sqrt(len(gap))
    assert error < 0.15 and -4 * error - 0.2 < gap.mean() < 4 * error
    # the chain's first step has a noise of 0.02, which leaves levels 0.33 apart untouched
    solved = with_likelihood(density, "ode").log_prob(draws[:32]) - exact[:32]
    assert abs(solved.mean()) < 4 * solved.std() / math.sqrt(32) + 0.01 and solved.std() < 1


def test_real_data_are_standardised_and_the_volume_is_counted(float64):
    """mean and scale of each dimension: log p is of the data as the user holds them."""
    mean, scale = torch.tensor([100.0, -3.0]), torch.tensor([20.0, 0.1])
    truth = Normal(mean + scale * MEAN, scale * SCALE)
    x = truth.sample((256,))
    density = denoiser(edm, event_shape=(2,), mean=mean, scale=scale, data=x)
    with torch.no_grad():
        gap = density.log_prob(x, samples=16) - truth.log_prob(x).sum(1)
        solved = with_likelihood(density, "ode")
        assert abs(gap.mean()) < 4 * gap.std() / 16 + 0.01
        assert (solved.log_prob(x) - truth.log_prob(x).sum(1)).abs().max() < 0.02
        drawn = density.sample(4000)
    assert ((drawn.mean(0) - truth.mean) / truth.stddev).abs().max() < 0.1
    assert (drawn.std(0) / truth.stddev - 1).abs().max() < 0.1


def discretised(x, mean, log_scale):
    """log P of 256 levels in [-1, 1] as in improved-diffusion, with its cdf and its limits of probability."""

    def cdf(v):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    plus, minus = (cdf(torch.exp(-log_scale) * (x - mean + h)) for h in (1 / 255, -1 / 255))
    middle = torch.where(x > 0.999, (1 - minus).clamp(min=1e-12).log(), (plus - minus).clamp(min=1e-12).log())
    return torch.where(x < -0.999, plus.clamp(min=1e-12).log(), middle)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@torch.no_grad()
def test_the_chains_bound_is_improved_diffusions(variance, float64):
    """Against `calc_bpd_loop`, written out once: the same x_t, so the same terms."""
    steps, levels, event = 50, 256, (2, 3, 3)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-3, 0.3, steps), 0)
    weight = torch.randn(4, 2)

    def call(y, t):
        both = torch.einsum("oc,bchw->bohw", weight, torch.tanh(y) * torch.cos(0.1 * column(t, y)))
        return both if variance == "learned_range" else both[:, :2]

    doubled = variance == "learned_range"
    wrapped = Wrapped(call, Steps(alpha_bar), "noise", doubled=doubled)
    bound = DDPMBound(wrapped, variance=variance, clip=1.0, whole=True)
    density = Adapted(wrapped, event, levels=levels, likelihood=bound, checked=False)
    density.prepared = True  # without the control variate
    x = torch.randint(0, levels, (7, *event), dtype=torch.uint8)
    torch.manual_seed(3)
    terms = density.terms(x)

    torch.manual_seed(3)
    torch.rand(2, 2, 4), torch.rand(())  # the times that a draw would have had
    v = x.double() * (2 / 255) - 1
    before = torch.cat([torch.ones(1), alpha_bar[:-1]])
    betas = 1 - alpha_bar / before
    posterior_variance = betas * (1 - before) / (1 - alpha_bar)
    clipped = torch.cat([posterior_variance[1:2], posterior_variance[1:]]).log()
    c1, c2 = betas * before.sqrt() / (1 - alpha_bar), (1 - before) * (1 - betas).sqrt() / (1 - alpha_bar)
    total = 0.0
    for t in (*range(1, steps), 0):
        x_t = alpha_bar[t].sqrt() * v + (1 - alpha_bar[t]).sqrt() * torch.randn_like(v)
        output = call(x_t, torch.full((7,), t))
        if variance == "learned_range":
            part = (output[:, 2:] + 1) / 2
            log_variance = part * betas[t].log() + (1 - part) * clipped[t]
        else:
            large = torch.cat([clipped[:1], betas[1:].log()])
            log_variance = (clipped if variance == "fixed_small" else large)[t].expand_as(v)
        x_hat = ((x_t - (1 - alpha_bar[t]).sqrt() * output[:, :2]) / alpha_bar[t].sqrt()).clamp(-1, 1)
        mean = c1[t] * x_hat + c2[t] * x_t
        if t == 0:
            decoder = discretised(v, mean, 0.5 * log_variance)
        else:
            true = c1[t] * v + c2[t] * x_t
            gap = clipped[t] - log_variance
            total += 0.5 * (-1 - gap + gap.exp() + (true - mean) ** 2 * torch.exp(-log_variance)).flatten(1).sum(1)
    a = alpha_bar[-1]
    prior = 0.5 * (-1 - (1 - a).log() + (1 - a) + a * v**2).flatten(1).sum(1)
    assert torch.allclose(terms["diffusion"], -total, rtol=1e-10)
    assert torch.allclose(terms["prior"], -prior, rtol=1e-8)
    # their cdf is an approximation, and is cut off at 1e-12
    ours = terms["reconstruction"]
    assert torch.allclose(ours, decoder.flatten(1).sum(1), rtol=0.02) or (ours < decoder.flatten(1).sum(1)).all()


# ---- velocities of other paths, by the ODE


def optimal(mean, scale):
    """The field of straight lines from z to m + s z: noise and data are not independent."""

    def call(y, t):
        t = column(t, y)
        return mean + (scale - 1) * (y - t * mean) / (t * scale + 1 - t)

    return call


@pytest.mark.parametrize(("shape", "data_at"), [((2,), 0), ((2,), 1), ((1, 8, 8), 1)])
def test_a_velocity_carries_noise_to_its_density(shape, data_at, float64):
    """Of an optimal-transport field, which has no Gaussian path: log p is exact within the error that it states."""
    field = optimal(2.0, 0.3)
    call = field if data_at == 1 else lambda y, t: -field(y, 1 - t)
    truth = Normal(2.0, 0.3)
    x = truth.sample((8, *shape))
    density = velocity(call, event_shape=shape, data_at=data_at, data=x)
    error, dims = density.numerical_error(x), math.prod(shape)
    assert density.bound is Bound.ESTIMATE and error.max() < 1e-3 * dims
    assert ((density.log_prob(x) - truth.log_prob(x).flatten(1).sum(1)).abs() <= error + 1e-9 * dims).all()
    drawn = density.sample(2000).flatten()
    assert abs(drawn.mean() - 2) < 0.03 and abs(drawn.std() - 0.3) < 0.03


def test_a_velocity_of_a_gaussian_path_needs_no_such_word(float64):
    """By the ODE from 0 to 1, the Gaussian path's field has the exact nats, too."""
    x = Normal(MEAN, SCALE).sample((16, 2))
    density = velocity(forwards, event_shape=(2,), data=x)
    gap = (density.log_prob(x) - Normal(MEAN, SCALE).log_prob(x).sum(1)).abs()
    assert (gap <= density.numerical_error(x) + 1e-9).all() and gap.max() < 2e-3


def test_a_velocity_in_the_wrong_direction_is_found(float64):
    x = Normal(2.0, 0.3).sample((32, 2))
    density = velocity(optimal(2.0, 0.3), event_shape=(2,), data_at=0)
    with pytest.raises(ValueError, match=r"noise of variance .*, which should be 1; it does with data_at=1 \("):
        density.log_prob(x)
    with pytest.raises(ValueError, match="is it trained"):
        velocity(lambda y, t: 3 * y, event_shape=(2,), data=x)
    with pytest.raises(ValueError, match="integers have no density under an ODE"):
        velocity(forwards, event_shape=(2,), levels=4)


# ---- a wrong convention is found


def wrong(make, x, match, **units):
    """The error comes when data are passed, and before the first scores."""
    with pytest.raises(ValueError, match=match) as raised:
        make(event_shape=tuple(x.shape[1:]), data=x, **units)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=match):
        evaluate(make(event_shape=tuple(x.shape[1:]), **units), x)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_a_wrong_convention_is_found_and_the_right_one_named(shape):
    x = Normal(MEAN, SCALE).sample((64, *shape))
    wrong(
        lambda **u: denoiser(ddpm("noise"), "edm", **u),
        x,
        r"does not denoise at σ=.*; it does as convention='vp', pred",
    )
    wrong(lambda **u: denoiser(edm, "vp", **u), x, r"it does as convention='edm', prediction='data'")
    wrong(lambda **u: denoiser(epsilon_of_sigma, "edm", **u), x, r"it does as prediction='noise'")
    wrong(lambda **u: denoiser(ddpm("v"), "vp", **u), x, r"it does as prediction='v'")
    wrong(lambda **u: denoiser(ddpm("data"), "vp", **u), x, r"it does as prediction='data'")
    wrong(lambda **u: denoiser(backwards, "flow", **u), x, r"it does as .*data_at=0")
    wrong(lambda **u: velocity(forwards, gaussian=True, data_at=0, **u), x, r"it does as .*data_at=1")
    wrong(lambda **u: score(ve_score, "ve", **u), x, "does not denoise")
    wrong(lambda **u: score(vp("noise", 999.0), "vp", network=False, **u), x, "does not denoise")
    wrong(lambda **u: denoiser(lambda y, t: torch.zeros_like(y), "vp", **u), x, "no other convention fits.*trained")


def near_two(kind, path):
    """The exact prediction of two clusters, of which a call that returns nearly 0 is no good guess."""

    def call(y, label):
        a, b = (column(value, y) for value in path(label))
        distance = [(y - sign * a).square().sum(1, keepdim=True) / (0.09 * a**2 + b**2) for sign in (1, -1)]
        p = torch.softmax(-0.5 * torch.stack(distance), 0)
        each = torch.stack([s + 0.09 * a / (0.09 * a**2 + b**2) * (y - s * a) for s in (1, -1)])
        w = (p * each).sum(0)
        noise = (y - a * w) / b
        return {"data": w, "noise": noise, "v": a * noise - b * w, "score": -noise / b, "velocity": w - noise}[kind]

    return call


@pytest.mark.slow
def test_every_convention_taken_for_every_other_is_found_and_named():
    x = torch.cat([s + 0.3 * torch.randn(128, 3) for s in (1, -1)])
    bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

    def vp(t):
        a = bars[t.round().long().clamp(0, 999)]
        return a.sqrt(), (1 - a).sqrt()

    paths = {
        "edm": lambda s: (torch.ones_like(s), s.clamp_min(1e-5)),
        "vp": vp,
        "flow": lambda t: (t, (1 - t).clamp_min(1e-5)),
    }
    kinds = {"edm": ("data", "noise", "score"), "vp": ("noise", "data", "v"), "flow": ("velocity", "data", "noise")}
    every = [(convention, kind) for convention in kinds for kind in kinds[convention]]
    for true in every:
        call = near_two(true[1], paths[true[0]])
        for chosen in every:
            try:
                denoiser(call, chosen[0], prediction=chosen[1], event_shape=(3,), data=x)
                message = "accepted"
            except ValueError as error:
                message = str(error)
            same = true[0] == chosen[0]
            name = f"prediction={true[1]!r}" if same else f"convention={true[0]!r}, prediction={true[1]!r}"
            want = "accepted" if true == chosen else f"it does as {name}"
            assert want in message, (true, chosen, message)


def test_another_span_is_found():
    x = torch.multinomial(torch.tensor(CHANCES), 3 * 256, True).view(256, 3).to(torch.uint8)
    wrong(lambda **units: denoiser(of_levels(CHANCES, (0.0, 1.0)), **units), x, r"it does as .*span=\(0, 1\)", levels=4)


def test_little_training_is_not_taken_for_a_wrong_convention():
    """A denoiser with an error of twice the mean's passes where no other convention fits."""
    x = Normal(MEAN, SCALE).sample((64, 2))
    rough = denoiser(lambda y, s: edm(y, s) + 0.8 * column(s, y).clamp(max=1) * torch.sign(y), event_shape=(2,), data=x)
    assert rough.log_prob(x).isfinite().all()
    with pytest.raises(ValueError, match="no other convention fits"):
        denoiser(lambda y, s: edm(y, s) + 2.5 * column(s, y).clamp(max=1) * torch.sign(y), event_shape=(2,), data=x)
    assert denoiser(lambda y, s: 9 * y, event_shape=(2,), data=x, checked=False).log_prob(x).isfinite().all()


def test_a_row_alone_is_scored_and_the_next_batch_checked():
    density = denoiser(ddpm("noise"), "edm", event_shape=(2,))
    x = Normal(MEAN, SCALE).sample((64, 2))
    assert density.log_prob(x[:1]).isfinite().all()
    with pytest.raises(ValueError, match="does not denoise"):
        density.log_prob(x)


def test_the_check_leaves_the_noise_as_it_is():
    """With the same seed, the second evaluation has the numbers of the first, which included the check."""
    x, density = Normal(MEAN, SCALE).sample((64, 2)), denoiser(edm, event_shape=(2,))
    first = evaluate(density, x, samples=2)
    assert density.prepared and evaluate(density, x, samples=2).nats == first.nats
    assert first.bound == "lower" and set(first.terms) == {"reconstruction", "prior", "diffusion"}


# ---- classes, modules, and wrong input


def test_classes_are_the_context(float64):
    centres = torch.tensor([-1.0, 0.0, 2.0])

    def call(y, s, classes):
        mean = centres[classes].unsqueeze(1)
        return mean + 0.25 / (0.25 + column(s, y) ** 2) * (y - mean)

    labels = torch.randint(3, (256,))
    x = centres[labels].unsqueeze(1) + 0.5 * torch.randn(256, 2)
    density = denoiser(call, event_shape=(2,), classes=3, data=x, labels=labels)
    exact = Normal(centres[labels].unsqueeze(1), 0.5).log_prob(x).sum(1)
    with torch.no_grad():
        gap = density.log_prob(x, labels, samples=16) - exact
    assert density.conditional and abs(gap.mean()) < 4 * gap.std() / 16 + 0.01
    assert evaluate(density, (x, labels), samples=4).n == 256
    assert (density.sample(500, torch.full((500,), 2)).mean(0) - 2).abs().max() < 0.1
    with pytest.raises(ValueError, match="pass the labels"):
        density.log_prob(x)
    with pytest.raises(ValueError, match=r"labels must hold integers 0 \.\.\. 2"):
        density.check(x, torch.full((256,), 3))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)

    def forward(self, y, s):
        return self.scale * self.dropout(edm(y, s))


def test_the_module_inside_a_call_moves_and_counts_with_the_density():
    network, x = Network(), Normal(MEAN, SCALE).sample((64, 2))
    inside = denoiser(lambda y, s: network(y, s), event_shape=(2,), module=network, data=x)
    itself = denoiser(network, event_shape=(2,), data=x)
    for density in (inside, itself):
        assert evaluate(density, x, samples=1).params == 1 and not network.training
        assert density.double().log_prob(x).dtype is torch.float64
        density.float()
    # a network in half precision is called in its own, and the number is not
    assert inside.wrapped.module is network and density.log_prob(x).dtype is torch.float32


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: denoiser(edm, "karras", event_shape=(2,)), "unknown convention 'karras': use edm, ve, vp or flow"),
        (lambda: denoiser(edm, "edm", prediction="v", event_shape=(2,)), "edm has no prediction 'v': use data, noise"),
        (lambda: denoiser(edm, "flow", prediction="x", event_shape=(2,)), "flow has no prediction 'x'"),
        (lambda: denoiser(edm, sigmas=(1, 0.1), event_shape=(2,)), "sigmas must rise"),
        (lambda: denoiser(edm, "vp", alphas_cumprod=[0.1, 0.5], event_shape=(2,)), "alphas_cumprod must have 2 values"),
        (
            lambda: denoiser(edm, "vp", alphas_cumprod=[0.5, 0.1], schedule=LinearBeta(), event_shape=(2,)),
            "pass alphas_cumprod, of a chain, or schedule",
        ),
        (lambda: denoiser(edm, "vp", variance="big", event_shape=(2,)), "unknown variance 'big'"),
        (lambda: denoiser(edm, event_shape=(2,), levels=4, mean=1.0), "mean and scale are of real data"),
        (lambda: denoiser(edm, event_shape=(2,), span=(0.0, 1.0)), "is of integers: pass levels"),
        (lambda: denoiser(edm, event_shape=(2,), levels=4, span=(1.0, 0.0)), "span must rise"),
        (lambda: denoiser(edm, event_shape=(2,), scale=-1.0), "scale must be above 0, got -1"),
        (lambda: denoiser(edm, event_shape=(2,), sigma=1.0), "unknown setting 'sigma': use event_shape, levels, span"),
        (lambda: denoiser(edm), "pass event_shape"),
        (lambda: score(edm, "vpe", event_shape=(2,)), "unknown sde 'vpe': use vp, subvp or ve"),
        (lambda: velocity(edm, data_at=2, event_shape=(2,)), "data_at must be 0 or 1"),
        (lambda: velocity(edm, sigma=0.1, sigma_min=0.1, event_shape=(2,)), "pass sigma_min or sigma"),
        (
            lambda: denoiser(lambda y, s: y[:, :1], event_shape=(2,), data=torch.randn(64, 2)),
            r"must return a tensor of shape \(1024, 2\), got \(1024, 1\)",
        ),
        (
            lambda: denoiser(lambda y, s: {"sample": y}, event_shape=(2,), data=torch.randn(64, 2)),
            "must return a tensor of shape .*, got dict",
        ),
    ],
)
def test_wrong_input_is_one_line(make, match):
    with pytest.raises(ValueError, match=match) as raised:
        make()
    assert "\n" not in str(raised.value)
