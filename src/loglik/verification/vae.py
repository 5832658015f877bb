r"""VAEs: $\log p(x) = \text{ELBO} + \mathrm{KL}$, the ELBO's two terms, the closed KL, and posterior collapse."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.density import StandardNormal
from loglik.vae import VAE, LadderVAE
from loglik.vae.diagnostics import diagnose
from loglik.vae.kl import gaussian_log_prob
from loglik.verification.check import Finding, Z, check, standard_error
from loglik.verification.linear_vae import LinearVAE
from loglik.verification.subject import DoesNotApply, Part, Subject

__all__ = ["closed_kl", "elbo_gap", "elbo_terms", "posterior_collapse"]

SECTION = "Deep generative models and the VAE"
SAMPLES = (1, 4, 16, 64, 256)
EXAMPLES = 16
LATENTS = 64  # examples whose latents are compared
KL_DRAWS = 256
REPEATS = 16
DRAWS = 512
ROUNDING = 1e-4


@check(
    "elbo-gap",
    section=SECTION,
    statement=r"\log p_\theta(x) = \mathcal L + D_{KL}(q_\phi(z \mid x) \Vert p_\theta(z \mid x))",
)
def elbo_gap(subject: Subject) -> Iterator[Finding]:
    r"""The ELBO is log p(x) less the KL divergence of q from the true posterior.

    Exact for a linear VAE, where log p and the divergence have closed forms. For this model the bound of K importance
    weights rises with K to log p(x), and the ELBO is at most an estimate of log p(x) by another proposal than q.
    """
    part = subject.part(VAE)
    if not part.density.importance_weighted:
        raise DoesNotApply(
            f"its prior, a {type(part.density.prior).__name__}, gives a bound that is no importance weight, so K "
            "draws are averaged and the bound does not rise with K"
        )
    yield from _linear_gap(subject)
    vae, x, context = part.density, part.event[:EXAMPLES], _first(part.context, EXAMPLES)
    values = []
    with subject.drawing():
        for k in SAMPLES:
            n = max(1, SAMPLES[-2] // k)
            values.append(torch.stack([vae.log_prob(x, context, samples=k).double() for _ in range(n)]).mean(0))
        other = None if isinstance(vae, LadderVAE) or len(vae.posterior_flow) else _other_proposal(part)
    for k, low, high in zip(SAMPLES[1:], values, values[1:], strict=False):
        rise = high - low
        computed = f"rise of the bound to K = {k}, where it is {high.mean().item():.5g} nats"
        yield Finding.at_least(computed, rise.mean().item(), 0, stderr=standard_error(rise), tolerance=1e-3)
    if other is not None:
        above = values[0] - other
        computed = "ELBO less log p(x), estimated by a wider proposal than q"
        yield Finding.at_most(computed, above.mean().item(), 0, stderr=standard_error(above), tolerance=1e-3)
    gap = values[-1] - values[0]
    computed = f"KL(q(z | x) ‖ p(z | x)) as log p - ELBO, log p by K = {SAMPLES[-1]}"
    yield Finding.reported(computed, gap.mean().item(), stderr=standard_error(gap))


@check(
    "elbo-terms",
    section=SECTION,
    statement=r"\mathcal L = \mathbb E_{q_\phi}[\log p_\theta(x \mid z)]"
    r" - \mathbb E_{q_\phi}\left[\log \frac{q_\phi(z \mid x)}{p(z)}\right]",
)
def elbo_terms(subject: Subject) -> Iterator[Finding]:
    r"""The ELBO is a reconstruction term less the KL divergence of q from the prior.

    The terms of the whole model, with the log-determinant of transforms before the VAE, sum to log_prob of the same
    noise. Each term of the VAE is compared with its formula at other noise.
    """
    part = subject.part(VAE)
    density, event, context = subject.density, subject.event, subject.context
    for samples in (1, 4):
        with subject.drawing():
            total = density.log_prob(event, context, samples=samples).double()
        with subject.drawing():
            terms = density.terms(event, context, samples=samples)
        error = (torch.stack(list(terms.values())).sum(0) - total).abs() / total.abs().clamp_min(1)
        computed = f"largest relative error of the sum, K = {samples}: {', '.join(terms)}"
        yield Finding.equal(computed, error.max().item(), 0, tolerance=ROUNDING)
    with subject.drawing(1):
        found = [part.density.terms(part.event, part.context) for _ in range(REPEATS)]
        formula = None if _is_deeper(part.density) else [_terms(part) for _ in range(REPEATS)]
    for name in ("reconstruction", "-KL"):
        mean = torch.stack([terms[name].double() for terms in found]).mean(0)
        if formula is None:
            yield Finding.reported(f"mean of {name}, nats", mean.mean().item(), stderr=standard_error(mean))
            continue
        difference = mean - torch.stack([terms[name] for terms in formula]).mean(0)
        computed = f"{name} less its formula; it is {mean.mean().item():.5g} nats"
        yield Finding.equal(
            computed, difference.mean().item(), 0, stderr=standard_error(difference), tolerance=ROUNDING
        )


@check(
    "closed-kl",
    section=SECTION,
    statement=r"D_{KL}(\mathcal N(\mu, \sigma^2) \Vert \mathcal N(0, 1))"
    r" = \frac12 (\mu^2 + \sigma^2 - 1) - \log \sigma",
)
def closed_kl(subject: Subject) -> Iterator[Finding]:
    """The closed form of the KL divergence is the mean of log q - log p over samples of q."""
    part = subject.part(VAE)
    vae = part.density
    if not isinstance(vae.prior, StandardNormal):
        raise DoesNotApply(f"its prior is a {type(vae.prior).__name__}, not N(0, I): the KL has no closed form")
    if len(vae.posterior_flow):
        raise DoesNotApply("its q is a flow, not a Gaussian: the KL has no closed form")
    x, context = part.event[:LATENTS], _first(part.context, LATENTS)
    closed, differences = [], []
    with subject.drawing():
        inferred = vae._infer(x, context)
        for _ in range(KL_DRAWS):
            draw = vae._draw(inferred, context)
            assert draw.kl is not None
            closed.append(draw.kl.double().sum(1))
            differences.append(closed[-1] + draw.log_ratio.double())
    found = torch.stack(differences)
    mean = found.mean(0)
    size = torch.stack(closed).mean().item()
    computed = f"closed KL less its mean over samples, {len(x)} examples; it is {size:.4g} nats"
    yield Finding.equal(computed, mean.mean().item(), 0, stderr=standard_error(mean), tolerance=ROUNDING)
    worst = (mean.abs() / (found.std(0) / math.sqrt(KL_DRAWS) + ROUNDING)).max().item()
    yield Finding.at_most(
        "the same of the worst example, in standard errors", worst, Z + 2
    )  # of many examples, with heavy tails


@check(
    "posterior-collapse",
    section=SECTION,
    statement=r"0 \le I_q(x; z) = \mathbb E_x[D_{KL}(q_\phi(z \mid x) \Vert p(z))] - D_{KL}(q_\phi(z) \Vert p(z))",
)
def posterior_collapse(subject: Subject) -> Iterator[Finding]:
    """The KL is the information of z about x and more; where both are 0 the posterior has collapsed to the prior.

    A dimension is active if its posterior's mean varies by more than 0.01 and its KL is above 0.01 nats.

    Reference: Hoffman and Johnson 2016, "ELBO surgery"; Burda et al. 2016, section 5.2.
    """
    part = subject.part(VAE)
    with subject.drawing():
        x, context = part.event[:LATENTS], _first(part.context, LATENTS)
        found = [diagnose(part.density, x, context) for _ in range(REPEATS // 2)]
    first, n = found[0], len(x)
    if math.isfinite(first.gap):
        kept = torch.stack([each.kl_total - each.gap for each in found]).cpu()
        computed = f"E KL(q(z | x) ‖ p) - KL(q(z) ‖ p), q(z) of {n} examples"
        yield Finding.at_least(computed, kept.mean().item(), 0, stderr=standard_error(kept), tolerance=0.05)
        yield Finding.reported("KL(q(z) ‖ p), which a better prior would save", first.gap.item())
    yield Finding.reported(f"active dimensions, of {len(first.kl)}", first.active.sum().item())
    yield Finding.reported("E KL(q(z | x) ‖ p), nats", first.kl_total.item())
    yield Finding.reported("largest KL of a dimension, nats", first.kl.max().item())
    yield Finding.reported("smallest KL of a dimension, nats", first.kl.min().item())


def _linear_gap(subject: Subject) -> Iterator[Finding]:
    """Compare ELBO + KL with log p(x) of a linear VAE, and the bound of many importance weights."""
    linear = LinearVAE(subject.seed)
    with torch.no_grad():
        x = linear.examples(64)
        log_p = linear.marginal.log_prob(x)
        elbo = linear.vae.log_prob(x.repeat(DRAWS, 1)).view(DRAWS, -1).mean(0)
        total = elbo + linear.gap(x) - log_p
        many = linear.vae.log_prob(x, samples=4096) - log_p
    computed = "ELBO + KL(q ‖ p(z | x)) - log p(x) of a linear VAE"
    yield Finding.equal(computed, total.mean().item(), 0, stderr=standard_error(total), tolerance=ROUNDING)
    computed = "bound at K = 4,096 less log p(x) of a linear VAE"
    yield Finding.equal(computed, many.mean().item(), 0, stderr=standard_error(many), tolerance=0.01)


def _other_proposal(part: Part[VAE]) -> Float[Tensor, " B"]:
    r"""Estimate log p(x) with importance weights whose proposal is $\mathcal N(\mu, (1.2 \sigma)^2)$."""
    vae, x, context = part.density, part.event[:EXAMPLES], _first(part.context, EXAMPLES)
    mean, log_scale = (t.repeat_interleave(SAMPLES[-1], 0) for t in vae.posterior(x, context))
    rows = x.repeat_interleave(SAMPLES[-1], 0)
    given = None if context is None else context.repeat_interleave(SAMPLES[-1], 0)
    wider = log_scale + math.log(1.2)
    z = mean + wider.exp() * torch.randn_like(mean)
    weight = vae.observation.log_prob(rows, vae.parameters_of(z, given)) + vae.prior.log_prob(z, given)
    weight = weight - gaussian_log_prob(z, mean, wider).sum(1)
    return weight.double().view(len(x), -1).logsumexp(1) - math.log(SAMPLES[-1])


def _terms(part: Part[VAE]) -> dict[str, Float[Tensor, " B"]]:
    """Return the two terms of the ELBO by their formulas, at one draw of z."""
    vae, x, context = part.density, part.event, part.context
    mean, log_scale = vae.posterior(x, context)
    z = mean + log_scale.exp() * torch.randn_like(mean)
    reconstruction = vae.observation.log_prob(x, vae.parameters_of(z, context)).double()
    log_q = torch.distributions.Normal(mean, log_scale.exp()).log_prob(z).double().sum(1)
    return {"reconstruction": reconstruction, "-KL": vae.prior.log_prob(z, context).double() - log_q}


def _is_deeper(vae: VAE) -> bool:
    """Whether q is more than one Gaussian: a ladder's, or a flow."""
    return isinstance(vae, LadderVAE) or len(vae.posterior_flow) > 0


def _first(context: Tensor | None, n: int) -> Tensor | None:
    return None if context is None else context[:n]
