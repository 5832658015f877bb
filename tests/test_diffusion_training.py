"""Schedules, the SDE, objectives, guidance and inpainting."""

import math

import pytest
import torch
from torch import nn

from helpers.exact import CorrelatedDenoiser, GaussianDenoiser, two_moons_like
from loglik.density import Bound
from loglik.diffusion import (
    ODE,
    Chain,
    Cosine,
    Denoiser,
    Diffusion,
    Discrete,
    FlowMatching,
    Learned,
    LinearBeta,
    LinearLogSNR,
    Sampler,
    ScoreMatching,
    ddpm_betas,
    with_likelihood,
    with_noise_level,
    with_sampler,
)
from loglik.diffusion.schedule import NoiseSchedule, alpha, sigma
from loglik.diffusion.score_matching import TIMES, WEIGHTINGS
from loglik.diffusion.sde import diffusion as noise_of
from loglik.diffusion.sde import flow_in_logsnr, forward_drift, probability_flow, reverse_drift
from loglik.flows import Flow
from loglik.networks import ResidualMLP

SCHEDULES = [
    LinearBeta(),
    Discrete(ddpm_betas(50, 1e-3, 0.3)),
    Cosine(),
    FlowMatching(),
    LinearLogSNR(),
    Learned(units=4),
]


def moved_learned() -> Learned:
    schedule = Learned(units=4)
    with torch.no_grad():
        schedule.weights.add_(torch.randn(5))
    return schedule.double()


# ---- schedules


@pytest.mark.parametrize("schedule", [*SCHEDULES, "moved"], ids=lambda s: s if s == "moved" else type(s).__name__)
def test_views_are_one_schedule(float64, schedule):
    schedule = moved_learned() if schedule == "moved" else schedule.double()
    t = (torch.arange(40) + 0.37) / 41
    logsnr = schedule.logsnr(t)
    assert (logsnr.diff() < 0).all()
    torch.testing.assert_close(schedule.time(logsnr), t)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones(40))
    torch.testing.assert_close(schedule.alpha_bar(t), torch.exp(-schedule.integral(t)))
    h = 1e-6
    slope = (schedule.integral(t + h) - schedule.integral(t - h)) / (2 * h)  # d/dt ∫β = β
    torch.testing.assert_close(schedule.beta(t), slope, rtol=1e-4, atol=1e-6)
    rate = 2 * h / (schedule.logsnr(t - h) - schedule.logsnr(t + h))
    torch.testing.assert_close(schedule.rate(t), rate, rtol=1e-4, atol=1e-8)
    chain = Chain.of(schedule, 7)
    torch.testing.assert_close(torch.cumprod(1 - chain.betas, 0), chain.alpha_bar)
    place = (torch.arange(4000) + 0.5) / 4000
    drawn, density = schedule.draw(place)
    high, low = schedule.ends(place)
    torch.testing.assert_close((1 / density).mean(), high - low, rtol=1e-3, atol=0)
    torch.testing.assert_close((drawn / density).mean(), (high**2 - low**2) / 2, rtol=1e-2, atol=0)


def test_ddpms_list_is_met_at_its_times(float64):
    betas = ddpm_betas()
    schedule = Discrete(betas)
    alpha_bar = torch.cumprod(1 - torch.tensor(betas), 0)
    assert betas[0] == pytest.approx(1e-4) and betas[-1] == pytest.approx(0.02)
    torch.testing.assert_close(schedule.alpha_bar(torch.arange(1000) / 999), alpha_bar, rtol=1e-12, atol=0)
    torch.testing.assert_close(Chain.of(schedule, 1000).betas, torch.tensor(betas), rtol=1e-8, atol=0)


class Bumpy(NoiseSchedule):
    def logsnr(self, t):
        return 5 - 10 * t + 2 * torch.sin(12 * t)

    def time(self, logsnr):
        return logsnr

    def beta(self, t):
        return t


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Diffusion(GaussianDenoiser(0, 1), (1,), schedule=Bumpy()), "Bumpy: the log-SNR must fall from t = 0"),
        (lambda: Discrete([0.1, -0.1, 0.2]), "every β must lie between 0 and 1, .* got β_2 = -0.1"),
        (lambda: Discrete([0.1]), "needs at least 2, got 1"),
        (lambda: LinearLogSNR(-3.0, 3.0), "must fall from `highest` to `lowest`, got -3.0 and 3.0"),
        (lambda: Cosine(math.inf, 0.0), "must fall from `highest`"),
        (lambda: Learned(units=0), "units must be at least 1, got 0"),
        (lambda: Chain.of(LinearBeta(), 1), "at least 2 steps, got 1"),
        (lambda: ScoreMatching("best"), "unknown weighting 'best': use likelihood, simple"),
        (lambda: ScoreMatching(times="often"), "unknown times 'often': use uniform, time, importance"),
        (lambda: ScoreMatching(steps=0), "steps must be at least 2"),
        (lambda: Denoiser(nn.Identity(), unconditional=1.0), "a share from 0 to below 1, got 1.0"),
        (lambda: with_likelihood(Diffusion(GaussianDenoiser(0, 1), (1,)), "exact"), "unknown method 'exact'"),
    ],
)
def test_bad_input_is_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


# ---- the SDE


def test_the_sdes_move_the_marginals(float64):
    """On N(m, s²): the flow moves each quantile as the marginals do, and the SDEs add the variance that they must."""
    schedule, m, s = LinearBeta(), 0.7, 0.4
    t, h = torch.tensor(0.3), 1e-6

    def spread(at):
        a, sd = schedule.alpha(at), schedule.sigma(at)
        return a * m, (a * s).square() + sd.square()

    mean, variance = spread(t)
    x = mean + variance.sqrt() * torch.linspace(-2, 2, 5)[:, None]
    score = -(x - mean) / variance
    (m_1, v_1), (m_0, v_0) = spread(t + h), spread(t - h)
    quantile = (m_1 - m_0 + (v_1.sqrt() - v_0.sqrt()) * torch.linspace(-2, 2, 5)[:, None]) / (2 * h)
    flow = probability_flow(schedule, x, t, score)
    torch.testing.assert_close(flow, quantile, rtol=1e-5, atol=1e-6)
    g2 = noise_of(schedule, t) ** 2
    torch.testing.assert_close(forward_drift(schedule, x, t) - 0.5 * g2 * score, flow)
    torch.testing.assert_close(reverse_drift(schedule, x, t, score) + 0.5 * g2 * score, flow)
    logsnr = schedule.logsnr(t).expand(5)
    x_hat = GaussianDenoiser(m, s)(x, logsnr)
    torch.testing.assert_close(flow_in_logsnr(x, x_hat, logsnr) * (-1 / schedule.rate(t)), flow)


# ---- training


def small(**settings) -> Diffusion:
    network = ResidualMLP(2, 2, width=16, depth=1, context=8)
    return Diffusion(Denoiser(network, features=8), (2,), **settings)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("times", TIMES)
def test_a_weightings_draws_have_one_mean(float64, weighting, times):
    """Whichever times are drawn, the weighted integral is the same; log_prob knows nothing of the weighting."""
    schedule = Cosine(6.0, -6.0)
    objective, plain = ScoreMatching(weighting, times=times), ScoreMatching(weighting)
    if times == "importance":
        objective.moments.copy_(torch.linspace(0.1, 4, 64))
    place = (torch.arange(20_000) + 0.5) / 20_000
    (logsnr, factor, _), (truth_logsnr, truth_factor, _) = (o.draw(schedule, place) for o in (objective, plain))
    f, truth = (torch.sigmoid(lam - 1) for lam in (logsnr, truth_logsnr))
    torch.testing.assert_close((factor * f).mean(), (truth_factor * truth).mean(), rtol=5e-3, atol=0)
    x = torch.randn(4, 2)
    values = []
    for each in (objective, None):
        torch.manual_seed(2)
        values.append(small(schedule=schedule, objective=each).double().log_prob(x))
    assert torch.equal(*values)


def test_simple_is_ddpms_loss_and_v_is_the_error_of_v(float64):
    schedule, place = Cosine(6.0, -6.0), (torch.arange(1000) + 0.5) / 1000
    _, factor, _ = ScoreMatching("simple", times="time").draw(schedule, place)
    torch.testing.assert_close(factor, torch.ones(1000))
    logsnr, factor, _ = ScoreMatching("v", times="time").draw(schedule, place)
    torch.testing.assert_close(factor * alpha(logsnr) ** 2, torch.ones(1000))  # ‖v - v̂‖² = ‖ε - ε̂‖² / α²


@pytest.mark.parametrize("steps", [None, 30])
@pytest.mark.parametrize("times", TIMES)
def test_a_weighting_of_ones_own_is_that_of_score_matching(float64, times, steps):
    """λ(t) = σ_t²/2 is DDPM's simple loss, and λ(t) = β(t)/2 the likelihood's."""
    schedule, u = LinearBeta(), (torch.arange(64) + 0.5) / 64
    own = {
        "simple": lambda t: schedule.sigma(t).square() / 2,
        "likelihood": lambda t: schedule.beta(t) / 2,
    }
    for name, weight in own.items():
        logsnr, factor, _ = ScoreMatching(name, times=times, steps=steps).draw(schedule, u)
        same, mine, _ = ScoreMatching(weight, times=times, steps=steps).draw(schedule, u)
        torch.testing.assert_close(same, logsnr)
        if steps is None or name == "simple":  # a chain's likelihood weighs by its steps, not by β(t)
            torch.testing.assert_close(mine, factor)


def test_a_weighting_of_ones_own_trains():
    density = Diffusion(small().denoiser, (2,), objective=ScoreMatching(lambda t: 1 + t))
    density.loss(torch.randn(16, 2)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in density.denoiser.parameters())


def test_the_objective_in_t_steps_is_the_bound_in_t_steps(float64):
    schedule, x = LinearLogSNR(6.0, -6.0), torch.randn(2, 2).repeat(4000, 1)
    diffusion = small(schedule=schedule, objective=ScoreMatching(steps=10)).double()
    with torch.no_grad():
        loss = torch.stack([diffusion.loss(x) for _ in range(8)])
        values = with_likelihood(diffusion, "vlb", 10).log_prob(x, samples=9)
    assert abs(loss.mean() + values.mean()) < 5 * (loss.std() / math.sqrt(8) + values.std() / math.sqrt(8000))


@pytest.mark.parametrize(
    "objective", [ScoreMatching("simple"), ScoreMatching(times="importance"), ScoreMatching("sigmoid")], ids=str
)
def test_training_lowers_the_objective(objective):
    x = two_moons_like().truth.sample((256,))
    diffusion = small(objective=objective)
    optimizer = torch.optim.Adam(diffusion.parameters(), 1e-2)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = diffusion.loss(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < sum(losses[:20])
    if objective.times == "importance":
        assert objective.moments.std() > 0


def test_a_learned_schedule_lowers_the_variance_and_keeps_the_bound():
    """Nothing but the schedule is trained; the estimate's mean stays and its spread falls."""
    mixture = two_moons_like()
    x = mixture.truth.sample((2048,))
    diffusion = Diffusion(mixture, (2,), schedule=Learned(13.0, -10.0))

    def draws():
        with torch.no_grad():
            terms = diffusion.terms(x.repeat(8, 1))["diffusion"]
        return terms.mean().item(), terms.std().item()

    before = draws()
    optimizer = torch.optim.Adam([p for p in diffusion.parameters() if p.requires_grad], 5e-2)
    for _ in range(60):
        optimizer.zero_grad()
        diffusion.loss(x).backward()
        optimizer.step()
    after = draws()
    assert after[1] < 0.95 * before[1]
    assert abs(after[0] - before[0]) < 5 * (before[1] + after[1]) / math.sqrt(8 * 2048)


def test_the_bound_can_move_the_ends():
    diffusion = Diffusion(two_moons_like(), (2,), schedule=Learned(4.0, -1.0, ends=True))
    x = two_moons_like().truth.sample((20_000,))
    diffusion.loss(x).backward()
    high, low = diffusion.schedule.limits.grad
    assert high < 0 < low  # less noise at the data's end, more at the other


# ---- guidance


def conditional(**settings) -> Diffusion:
    network = ResidualMLP(2, 2, width=16, depth=1, context=12)
    nn.init.normal_(network.blocks[0].second.weight)
    denoiser = Denoiser(network, features=8, context=nn.Embedding(3, 4), unconditional=0.5)
    return Diffusion(denoiser, (2,), **settings)


def test_classifier_free_guidance_is_its_formula():
    diffusion = conditional(sampler=Sampler(guidance=3.0)).eval()
    x_t, logsnr, y = torch.randn(3, 2), torch.zeros(3), torch.arange(3)
    guided, cost = diffusion._guided(y)
    with_y = diffusion.denoiser(x_t, logsnr, y)
    without = diffusion.denoiser(x_t, logsnr, y, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(guided(x_t, logsnr), without + 3 * (with_y - without))
    assert cost == 2 and not torch.allclose(with_y, without)
    diffusion.sampler = Sampler(method="unipc", steps=4, guidance=3.0)
    assert diffusion.draw(3, y)[1] == 8


def test_labels_are_left_out_in_training_only():
    diffusion = conditional()
    x_t, logsnr, y = torch.ones(200, 2), torch.zeros(200), torch.ones(200, dtype=torch.long)
    assert len(diffusion.train().denoiser(x_t, logsnr, y).unique(dim=0)) == 2
    assert len(diffusion.eval().denoiser(x_t, logsnr, y).unique(dim=0)) == 1


def test_guidance_without_labels_is_refused():
    with pytest.raises(ValueError, match="guidance needs labels"):
        small(sampler=Sampler(guidance=2.0)).sample(2)
    with pytest.raises(ValueError, match="guidance needs labels"):
        conditional(sampler=Sampler(guidance=2.0)).sample(2)
    with pytest.raises(ValueError, match="guidance needs labels"):
        small(sampler=Sampler(classifier=lambda x, logsnr, y: x.sum(1))).sample(2)
    diffusion = conditional(sampler=Sampler(guidance=2.0))
    diffusion.denoiser.unconditional = 0.0
    with pytest.raises(ValueError, match="trained without labels too"):
        diffusion.sample(3, torch.arange(3))


def test_a_classifier_of_noised_data_guides(float64):
    """Two Gaussians at ±1 and the exact p(y | x_t): the guided density is that of the label's Gaussian."""

    class Two(nn.Module):
        def forward(self, x_t, logsnr, context=None):
            a, s = alpha(logsnr)[:, None], sigma(logsnr)[:, None]
            variance = (a * 0.3) ** 2 + s**2
            share = torch.sigmoid(2 * a * x_t / variance)
            each = [m + a * 0.09 * (x_t - a * m) / variance for m in (-1.0, 1.0)]
            return (1 - share) * each[0] + share * each[1]

    def classifier(x_t, logsnr, y):
        a = alpha(logsnr)[:, None]
        logit = (2 * a * x_t / ((a * 0.3) ** 2 + sigma(logsnr)[:, None] ** 2)).squeeze(1)
        return nn.functional.logsigmoid(torch.where(y == 1, logit, -logit))

    diffusion = Diffusion(Two(), (1,), sampler=Sampler(method="unipc", steps=30, classifier=classifier))
    drawn = diffusion.sample(2000, torch.ones(2000, dtype=torch.long)).squeeze(1)
    assert abs(drawn.mean() - 1) < 0.03 and abs(drawn.std() - 0.3) < 0.03
    x_t, logsnr = diffusion.noised(torch.randn(6, 1))
    joined = with_noise_level(x_t, logsnr)
    assert joined.shape == (6, 2) and torch.allclose(joined[:, 1] * 10, logsnr)


# ---- inpainting


def test_inpainting_is_the_conditional_density(float64):
    """For a correlated Gaussian, x_2 given x_1 = 1 is N(ρ, 1 - ρ²)."""
    rho = 0.8
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]])
    diffusion = Diffusion(CorrelatedDenoiser(torch.zeros(2), covariance), (2,), sampler=Sampler(steps=40))
    x = torch.tensor([[1.0, 99.0]]).repeat(3000, 1)
    known = torch.tensor([[True, False]]).expand(3000, 2)
    drawn = diffusion.inpaint(x, known, repeats=8)
    assert (drawn[:, 0] == 1).all()
    assert abs(drawn[:, 1].mean() - rho) < 0.06
    assert abs(drawn[:, 1].std() - math.sqrt(1 - rho**2)) < 0.09
    rough = diffusion.inpaint(x, known, repeats=1)
    assert abs(rough[:, 1].mean() - rho) > abs(drawn[:, 1].mean() - rho)
    with pytest.raises(ValueError, match="repeats and steps must be at least 1, got 0"):
        diffusion.inpaint(x, known, repeats=0)


# ---- settings of a diffusion within a density


def test_settings_reach_a_diffusion_within_and_leave_the_original():
    flow = Flow([], small())
    estimated, quick = with_likelihood(flow, "ode", 5), with_sampler(flow, method="ddim", steps=3)
    assert estimated.bound is Bound.ESTIMATE and isinstance(estimated.base.likelihood, ODE)
    assert estimated.numerical_error(torch.randn(3, 2)).shape == (3,)
    assert flow.bound is Bound.LOWER and flow.numerical_error(torch.randn(3, 2)) is None
    assert quick.base.sampler.steps == 3 and flow.base.sampler.steps == 200
    assert quick.sample(4).shape == (4, 2)
    with pytest.raises(ValueError, match="this density has none"):
        with_sampler(nn_density(), steps=3)


def nn_density():
    from loglik.density import StandardNormal

    return StandardNormal((2,))
