"""The control variate of the diffusion term: it leaves the bound as it is, and takes the noise of Gaussians away."""

import copy

import pytest
import torch
from torch.distributions import MultivariateNormal

from helpers.exact import CorrelatedDenoiser, two_moons_like
from loglik.data.spec import DataSpec
from loglik.diffusion import VLB, Denoiser, Diffusion, Learned, LinearBeta, LinearLogSNR, ScoreMatching
from loglik.diffusion.control import BINS, Control
from loglik.diffusion.denoiser import residual_of
from loglik.diffusion.schedule import add_noise
from loglik.networks import ResidualMLP
from loglik.recipes import build


def odd(control: Control) -> Control:
    """With coefficients, a density over log-SNRs and moments that fit nothing."""
    control.initialise(torch.randn(50, len(control.mean)) @ torch.tensor([[1.0, 0.8], [0.0, 0.5]]) + 0.3)
    control.repeated.copy_(torch.tensor([0.0, 1.0]))
    control.products.copy_(control.squares * 2 * torch.rand(BINS, 2))
    control.left.copy_(torch.rand(BINS).square())
    return control


@torch.no_grad()
@pytest.mark.parametrize(
    ("likelihood", "draws"), [(VLB(), 4000), (VLB(20, spacing="logsnr"), 4000), (VLB(20, whole=True), 400)]
)
def test_any_control_variate_leaves_each_rows_bound_as_it_is(float64, likelihood, draws):
    mixture = two_moons_like()
    diffusion = Diffusion(mixture, (2,), schedule=LinearLogSNR(9.0, -9.0), likelihood=likelihood)
    x = mixture.truth.sample((6,))

    def scores():
        values = diffusion.log_prob(x.repeat(draws, 1), samples=4).view(draws, 6)
        return values.mean(0), values.var(0) / draws

    plain, plain_variance = scores()
    odd(diffusion.control)
    mean, variance = scores()
    assert ((mean - plain).abs() < 4 * (variance + plain_variance).sqrt()).all()
    assert (variance + plain_variance).sqrt().max() < 0.3


@torch.no_grad()
def test_the_bound_of_a_known_mixture_is_its_log_density(float64):
    """Row by row: the exact denoiser's continuous bound is log p, whatever the control variate."""
    mixture = two_moons_like()
    diffusion = Diffusion(mixture, (2,), schedule=LinearBeta(beta_max=40.0))
    x = mixture.truth.sample((6,))
    odd(diffusion.control)
    values = diffusion.log_prob(x.repeat(4000, 1), samples=4).view(4000, 6)
    error = values.std(0) / 4000**0.5
    assert ((values.mean(0) - mixture.truth.log_prob(x)).abs() < 4 * error + 2e-3).all() and error.max() < 0.3


@torch.no_grad()
@pytest.mark.parametrize("likelihood", [VLB(), VLB(20, spacing="logsnr")])
def test_a_gaussian_has_no_noise_left(float64, likelihood):
    mean, root = torch.tensor([0.7, -0.2, 0.1]), torch.tensor([[0.9, 0.0, 0.0], [0.8, 0.1, 0.0], [-0.3, 0.2, 0.5]])
    truth = MultivariateNormal(mean, root @ root.T)
    diffusion = Diffusion(
        CorrelatedDenoiser(mean, root @ root.T), (3,), schedule=LinearBeta(beta_max=40.0), likelihood=likelihood
    )
    variance, basis = torch.linalg.eigh(root @ root.T)
    for buffer, value in (("mean", mean), ("variance", variance), ("basis", basis)):
        getattr(diffusion.control, buffer).copy_(value)
    x = truth.sample((5,))
    first, again = diffusion.log_prob(x), diffusion.log_prob(x)
    assert (first - again).abs().max() < 1e-8
    if likelihood.steps is None:
        assert (first - truth.log_prob(x)).abs().max() < 2e-3


def test_a_table_diffusion_starts_with_little_noise():
    """One draw of a row had a standard deviation of 44 nats on such a table."""
    x = torch.randn(500, 6) @ torch.randn(6, 6)
    density = build("diffusion", DataSpec(kind="array", event_shape=(6,)))
    density.initialise(x)
    with torch.no_grad():
        values = density.eval().log_prob(x[:8].repeat(200, 1)).view(200, 8)
    assert values.std(0).max() < 12


def test_training_learns_coefficients_and_where_to_draw(float64):
    """Levels of two values ask for other coefficients than the Gaussian; the loss's gradient does not change."""
    signs = torch.randint(0, 2, (512, 3)).double() * 2 - 1
    diffusion = Diffusion(Denoiser(ResidualMLP(3, 3, width=16, depth=1, context=8), features=8), (3,))
    diffusion.initialise(signs)
    assert diffusion.control.repeated.all()

    def spread():
        torch.manual_seed(1)
        with torch.no_grad():
            return diffusion.log_prob(signs[:4].repeat(500, 1)).view(500, 4).std(0).mean().item()

    def gradient():
        torch.manual_seed(2)
        diffusion.zero_grad()
        diffusion.loss(signs).backward()
        return [p.grad.clone() for p in diffusion.parameters()]

    optimizer = torch.optim.Adam(diffusion.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        diffusion.loss(signs).backward()
        optimizer.step()
    diffusion.eval()
    learned, with_control = spread(), gradient()
    start = Control(3, 1.0)
    for name in ("products", "squares", "left"):
        getattr(diffusion.control, name).copy_(getattr(start, name))
    assert learned < 0.75 * spread()
    for mine, plain in zip(with_control, gradient(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-12)


def test_columns_of_few_values_have_a_covariance_of_their_own(float64):
    few = torch.randint(0, 2, (300, 1)).double()
    many = torch.randn(300, 2) + few
    control = Control(3, 1.0)
    control.initialise(torch.cat([many[:, :1], few, many[:, 1:]], 1))
    assert control.repeated.tolist() == [0, 1, 0]
    torch.testing.assert_close(control.basis.T @ control.basis, torch.eye(3))
    assert control.basis[1].abs().tolist() == [0, 1, 0] and control.basis[0, 2] != 0
    assert control.variance[1].item() == pytest.approx(few.var(correction=0).item())


@pytest.mark.parametrize("count", [1, 3, 8, 10])
def test_neighbours_have_times_apart(count):
    diffusion = Diffusion(two_moons_like(), (2,))
    times = torch.stack([diffusion._stratified(count, torch.zeros(1)) for _ in range(2000)])
    assert times.min() >= 0 and times.max() <= 1
    assert (times.mean(0) - 0.5).abs().max() < 4 * (1 / 12 / 2000) ** 0.5
    if count >= 8:
        assert ((times[:, 4:8] * 4).long().sort(1).values == torch.arange(4)).all()
    if count == 8:
        assert ((times * 8).long().sort(1).values == torch.arange(8)).all()


def test_the_loss_is_minus_the_bound_on_a_chain_too(float64):
    """The loss of T steps, with its control variate, against the sum over all of them."""
    mixture = two_moons_like()
    schedule = LinearLogSNR(6.0, -6.0)
    diffusion = Diffusion(
        mixture, (2,), schedule=schedule, objective=ScoreMatching(steps=10), likelihood=VLB(10)
    ).eval()
    odd(diffusion.control)
    x = mixture.truth.sample((4,)).repeat(4000, 1)
    with torch.no_grad():
        loss, bound = diffusion.loss(x), diffusion.log_prob(x)
    assert abs(loss + bound.mean()) < 6 * bound.std() / len(x) ** 0.5 < 2


def test_the_closed_form_is_the_integral(float64):
    """Each bin's integral against a sum over many log-SNRs."""
    control, schedule = odd(Control(2, 1.0)), LinearLogSNR(9.0, -9.0)
    x, n = torch.randn(5, 2), 200 * BINS
    step = 18.0 / n
    levels = -9.0 + step * (torch.arange(n) + 0.5)
    summed = control.tables(schedule.ends(x), (levels, torch.full_like(levels, step)))
    integral = control.integral(schedule, x)
    torch.testing.assert_close(integral.slope, summed.slope, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(integral.offset, summed.offset, rtol=1e-5, atol=1e-8)
    values = [control.expected(control.project(x, tables), tables) for tables in (integral, summed)]
    torch.testing.assert_close(*values, rtol=1e-5, atol=0)


def test_what_is_kept_follows_moments_and_schedule():
    """The tables are kept between calls, and new ones are written in their place, where a CUDA graph reads them."""
    control, x = odd(Control(2, 1.0)), torch.randn(5, 2)
    schedule = LinearLogSNR(9.0, -9.0)
    first = control.integral(schedule, x)
    assert control.integral(schedule, x) is first and schedule.ends(x)[0] is schedule.ends(x)[0]
    control.variance.mul_(2)
    assert control.integral(schedule, x) is first
    torch.testing.assert_close(first, control.tables(schedule.ends(x)))
    wider = LinearLogSNR(10.0, -9.0)
    torch.testing.assert_close(control.integral(wider, x), control.tables(wider.ends(x)))
    copied = copy.deepcopy(control)
    copied.variance.mul_(3)
    torch.testing.assert_close(copied.integral(schedule, x), copied.tables(schedule.ends(x)))
    assert control.double().integral(schedule, x.double()).slope.dtype == torch.float64
    learned = Learned(9.0, -9.0, ends=True)
    control.float().integral(learned, x).slope.sum().backward()
    assert learned.limits.grad.abs().min() > 0
    with torch.inference_mode():
        fresh = Control(2, 1.0)
        assert fresh.integral(schedule, x).slope.isfinite().all()


@pytest.mark.parametrize("prediction", ["noise", "v", "data", "score"])
def test_the_residual_is_the_error_of_the_noise(float64, prediction):
    denoiser = Denoiser(
        ResidualMLP(3, 3, width=8, depth=1, context=8), prediction=prediction, features=8, event_shape=(3,)
    )
    v, epsilon, logsnr = torch.randn(6, 3) * 0.4 + 0.3, torch.randn(6, 3), torch.linspace(-6, 6, 6)
    denoiser.initialise(v)
    x_hat = denoiser(add_noise(v, epsilon, logsnr), logsnr)
    expected = torch.exp(0.5 * logsnr)[:, None] * (v - x_hat)
    torch.testing.assert_close(residual_of(denoiser)(v, epsilon, logsnr, None), expected)


def test_a_subclass_with_a_forward_of_its_own_has_its_own_residual(float64):
    class Zero(Denoiser):
        def forward(self, x_t, logsnr, context=None, keep=None):
            return torch.zeros_like(x_t)

    v, epsilon, logsnr = torch.randn(6, 3), torch.randn(6, 3), torch.linspace(-6, 6, 6)
    zero = Zero(ResidualMLP(3, 3, width=8, depth=1, context=8), features=8)
    torch.testing.assert_close(residual_of(zero)(v, epsilon, logsnr, None), torch.exp(0.5 * logsnr)[:, None] * v)
