r"""How a VAE is trained: the gradient through $z = \mu + \sigma \odot \epsilon$, and what leaving the KL out does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.density import Density, StandardNormal
from loglik.devices import fork_generators
from loglik.evaluation.scores import arguments, evaluating
from loglik.recipes import RECIPES, build
from loglik.vae import VAE, LadderVAE
from loglik.verification.check import Finding, Z, check, standard_error
from loglik.verification.linear_vae import LinearVAE
from loglik.verification.subject import DoesNotApply, Part, Subject

__all__ = ["reparameterised_gradient", "without_kl"]

SECTION = "Deep generative models and the VAE"
EXAMPLES = 8
DRAWS = 512  # of the latents of each example, fewer of many latents
MOVED = 0.5  # of a standard deviation
LATENTS = 2**16  # numbers drawn for an example
ROWS = 400  # of the data, for the two small VAEs
BATCH = 32
STEPS = 150
RATE = 5e-3
SMALLEST_FALL = 0.1  # of the mean log σ without the KL


@check(
    "reparameterised-gradient",
    section=SECTION,
    statement=r"\nabla_\phi \mathbb E_{q_\phi}[f(z)] = \mathbb E_\epsilon[\nabla_\phi f(\mu_\phi + \sigma_\phi \odot"
    r" \epsilon)] = \mathbb E_{q_\phi}[f(z) \nabla_\phi \log q_\phi(z)]",
)
def reparameterised_gradient(subject: Subject) -> Iterator[Finding]:
    r"""The gradient through the noise is unbiased, as the score-function estimator is, whose variance is larger.

    $f = \log p(x, z) - \log q(z \mid x)$, by a shift of $\mu_d$ and of $\log \sigma_d$ of all examples, for each
    latent dimension d of the (top) posterior, whose mean is first moved by half a standard deviation. The
    score-function estimator has the mean f of an example's other draws as a baseline, which leaves it unbiased; its
    variance is that without a baseline. That it is the larger is no theorem for every f, so it is judged for a linear
    VAE, whose f is quadratic.

    Reference: Mohamed et al. 2020, "Monte Carlo gradient estimation in machine learning", section 5.
    """
    part = subject.part(VAE)
    if len(part.density.posterior_flow):
        raise DoesNotApply("its q is a flow: z is no longer μ + σ ε")
    with fork_generators(part.event.device), torch.enable_grad():
        torch.manual_seed(subject.seed)
        gradients = _gradients(part)
    n = len(gradients.noise)
    half = gradients.noise.shape[1] // 2
    for name, dims in (("μ", slice(0, half)), ("log σ", slice(half, None))):
        noise, score = gradients.noise[:, dims], gradients.score[:, dims]
        error = ((noise.var(0) + score.var(0)) / n).sqrt()
        worst = ((noise.mean(0) - score.mean(0)).abs() / (error + 1e-9)).max().item()
        computed = f"difference of the two gradients by {name}, {n:,} draws, largest of {half}, in standard errors"
        yield Finding.at_most(computed, worst, Z + 2)  # of many dimensions, with heavy tails
        difference = (noise - score).mean(1)  # by a shift of all dimensions at once
        mean, error_of_mean = difference.mean().item(), standard_error(difference)
        computed = f"the same, mean over dimensions; through the noise it is {noise.mean().item():.4g}"
        yield Finding.equal(computed, mean, 0, stderr=error_of_mean, tolerance=1e-6)
    yield Finding.reported("variance of a draw through the noise, sum over dimensions", _variance(gradients.noise))
    yield Finding.reported("variance of a draw by the score function", _variance(gradients.plain))
    with fork_generators(part.event.device), torch.enable_grad():
        torch.manual_seed(subject.seed)
        linear = LinearVAE(subject.seed)
        of_linear = _gradients(Part(linear.vae, linear.examples(EXAMPLES), None))
    ratio = _variance(of_linear.plain) / _variance(of_linear.noise)
    yield Finding.at_least("variance by the score function over that through the noise, of a linear VAE", ratio, 1)


@check("without-kl", section=SECTION, statement=r"\beta = 0: \quad \sigma_\phi(x) \to 0")
def without_kl(subject: Subject) -> Iterator[Finding]:
    r"""Trained without the KL the posterior's standard deviation falls, and samples from the prior are not data.

    Two small VAEs of the model's recipe and options learn up to 400 examples, one with the KL and one without.
    Distances of samples are energy distances of standardised values.
    """
    found = {beta: _trained(subject, beta) for beta in (1.0, 0.0)}
    fall = found[0.0].log_scale - found[1.0].log_scale
    computed = f"mean log σ without the KL, {found[0.0].log_scale:.4g}, less that with it, {found[1.0].log_scale:.4g}"
    yield Finding.at_most(computed, fall, -SMALLEST_FALL)
    if isinstance(subject.part(VAE).density.prior, StandardNormal):  # others may be made of posteriors
        computed = "distance of samples to the data without the KL less that with it"
        yield Finding.at_least(computed, found[0.0].distance - found[1.0].distance, 0, tolerance=0.02)
    for beta, name in ((1.0, "with"), (0.0, "without")):
        yield Finding.reported(f"distance of samples to the data {name} the KL", found[beta].distance)
        yield Finding.reported(f"E KL(q(z | x) ‖ p) {name} the KL in the loss, nats", found[beta].kl)


@dataclass(frozen=True)
class _Gradients:
    """Of f by D = 2L shifts, of μ and of log σ, in N draws.

    `noise` through the noise, `score` by the score function with a baseline, `plain` without one.
    """

    noise: Float[Tensor, "N D"]
    score: Float[Tensor, "N D"]
    plain: Float[Tensor, "N D"]


def _gradients(part: Part[VAE]) -> _Gradients:
    """Return the gradients of some examples, one after another."""
    vae = copy.deepcopy(part.density).eval()
    for parameter in vae.parameters():
        parameter.requires_grad_(False)
    pieces, draws = [], max(2, min(DRAWS, LATENTS // _top(vae)))
    for n in range(min(EXAMPLES, len(part.event))):
        x = part.event[n].expand(draws, *part.event.shape[1:])
        context = None if part.context is None else part.context[n].expand(draws, *part.context.shape[1:])
        pieces.append(_gradients_of(vae, x, context))
    return _Gradients(*(torch.cat(rows) for rows in zip(*pieces, strict=True)))


def _variance(gradients: Float[Tensor, "N D"]) -> float:
    return gradients.var(0).sum().item()


def _top(vae: VAE) -> int:
    """Return how many latents the first posterior has: all, or the top group's of a ladder."""
    return vae.sizes[0] if isinstance(vae, LadderVAE) else vae.latent


def _gradients_of(vae: VAE, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three estimates of the gradient for rows that are all one example."""
    with torch.no_grad():
        top = _top(vae)
        mean, log_scale = (part[:, :top] for part in vae.posterior(x, context))
        mean = mean + MOVED * log_scale.exp()  # at the best q the gradient is 0, as that of a wrong estimator may be
        parameters = torch.cat([mean, log_scale + MOVED / 2], 1)
        inferred = vae._infer(x, context)
    shifted = parameters.requires_grad_()  # a row for each draw: a gradient for each
    mu, log_sigma = shifted.chunk(2, 1)
    if isinstance(vae, LadderVAE):
        vae._top = lambda parameters: (mu, log_sigma)  # type: ignore[method-assign]
    else:
        inferred = (mu, log_sigma)
    draw = vae._draw(inferred, context)
    f = vae.observation.log_prob(x, draw.theta) + draw.log_ratio
    (noise,) = torch.autograd.grad(f.sum(), shifted, retain_graph=True)
    log_q = torch.distributions.Normal(mu, log_sigma.exp()).log_prob(draw.z[:, :top].detach()).sum(1)
    (score,) = torch.autograd.grad(log_q.sum(), shifted)
    f, score = f.detach().double(), score.double()
    baseline = (f.sum() - f) / (len(f) - 1)  # the mean of the other draws
    return noise.double(), (f - baseline).unsqueeze(1) * score, f.unsqueeze(1) * score


@dataclass(frozen=True)
class _Trained:
    """What a small VAE learned: the mean log σ of its posterior, the distance of its samples, its KL."""

    log_scale: float
    distance: float
    kl: float


def _trained(subject: Subject, beta: float) -> _Trained:
    subject.part(VAE)
    name = subject.model.partition(":")[0]
    if name not in RECIPES or "beta" not in RECIPES[name].options:
        raise DoesNotApply("this density has no recipe by which a second one could be trained without the KL")
    density, x, context = _small(subject, beta)
    optimizer = torch.optim.Adam(density.parameters(), lr=RATE)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (BATCH,), device=x.device)
        optimizer.zero_grad()
        density.loss(x[rows], None if context is None else context[rows]).backward()
        optimizer.step()
    density.eval()
    small = Subject(density, subject.data, subject.model, subject.options, "train", subject.seed)
    inner = small.part(VAE)
    with evaluating(density, subject.seed):
        log_scale = inner.density.posterior(inner.event, inner.context)[1].double().mean().item()
        kl = -inner.density.terms(inner.event, inner.context, samples=4)["-KL"].double().mean().item()
        distance = energy_distance(small.event, small.drawn(len(small.event)))
    return _Trained(log_scale, distance, kl)


def _small(subject: Subject, beta: float) -> tuple[Density, Tensor, Tensor | None]:
    """Return a small VAE of the subject's recipe that is not trained, with training data."""
    recipe, _, kind = subject.model.partition(":")
    options = {k: v for k, v in subject.options.items() if k in RECIPES[recipe].options and k != "size"}
    ladder = isinstance(subject.part(VAE).density, LadderVAE)
    options |= {"width": 16 if ladder else 64, "dropout": 0.0, "kl_warmup": 0, "free_bits": 0.0, "beta": beta}
    if kind:
        options[RECIPES[recipe].variant] = kind
    try:
        density = build(recipe, subject.data.spec, **options).to(subject.density.device)
    except ValueError as reason:
        raise DoesNotApply(f"a small model with these options cannot be built: {reason}") from reason
    split = subject.data.train
    x, context = arguments(density, split.x[:ROWS], None if split.y is None else split.y[:ROWS])
    density.initialise(x, context)
    return density.train(), x, context


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Return $2 \mathbb E\lVert X - Y \rVert - \mathbb E\lVert X - X' \rVert - \mathbb E\lVert Y - Y' \rVert$.

    Values are divided by the standard deviation of x. Reference: Székely and Rizzo 2013, "Energy statistics".
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    std = x.std(0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    x, y = x / std, y / std
    off = len(x) * (len(x) - 1)
    inside = torch.cdist(x, x).sum() / off + torch.cdist(y, y).sum() / (len(y) * (len(y) - 1))
    return (2 * torch.cdist(x, y).mean() - inside).item()
