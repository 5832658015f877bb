r"""A density is normalised: by enumeration, by importance sampling, and for a small model of the same recipe."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor

from loglik.density import Bound, Density
from loglik.evaluation.scores import evaluating
from loglik.verification.check import Finding, check, standard_error
from loglik.verification.events import MAX_EVENTS, events_of, gaussian_near
from loglik.verification.minimal_kl import known_source, small_model
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["normalised", "normalised_recipe", "sum_over"]

SECTION = "Autumn 2025, B2: likelihood"
DRAWS = 2048
MIN_EFFECTIVE = 100.0  # effective sample size, below which an average of importance weights says nothing


@check("normalised", section=SECTION, statement=r"\sum_x p_\theta(x) = 1, \quad \int p_\theta(x)\,dx = 1")
def normalised(subject: Subject) -> Finding:
    r"""All probabilities sum to 1, by enumeration or by importance sampling; those of a lower bound to at most 1.

    Where the events are too many to enumerate, $\mathbb E_{x \sim p}[q(x) / p(x)] = 1$ for an exact density p and a
    normalised q that its samples suggest, and $\mathbb E_{x \sim q}[p(x) / q(x)] \le 1$ for a bound.
    """
    density = subject.density
    if density.event == "y":
        return _sum_over_labels(subject)
    events = events_of(subject.data.spec)
    with subject.drawing():
        if events is not None:
            return sum_over(density, events, subject.context)
        if density.discrete or density.conditional or any(subject.data.spec.discrete_dims):
            raise DoesNotApply(f"there are more than {MAX_EVENTS:,} events, and no normalised q is near enough to them")
        return _importance(density)


@check("normalised-recipe", section=SECTION, statement=r"\sum_x p_\theta(x) = 1")
def normalised_recipe(subject: Subject) -> Finding:
    """A small model of the same recipe, over four bits, has 16 probabilities that sum to 1."""
    if subject.density.event == "y" or subject.data.spec.levels is None:
        raise DoesNotApply("it is for densities of data with levels, whose events are too many to enumerate")
    source = known_source(subject)
    model = small_model(subject, source, 40)
    context = subject.context if model.conditional else None
    with evaluating(model, subject.seed):
        return sum_over(model, source.events, context)


def sum_over(density: Density, events: Shaped[Tensor, "N ..."], context: Tensor | None = None) -> Finding:
    """Sum p over all events, each with the same context; of a lower bound the sum is at most 1."""
    exact = density.bound is Bound.EXACT
    draws = 1 if exact else 128 if density.importance_weighted else 32
    x = events.to(density.device)
    context = None if context is None else context[:1].expand(len(x))
    log_p = torch.stack([density.log_prob(x, context, samples=1 if exact else 16).double() for _ in range(draws)])
    computed = f"sum over all {len(events)} events"
    if exact:
        return Finding.equal(computed, log_p.exp().sum().item(), 1, tolerance=1e-3)
    if density.importance_weighted:
        total = log_p.exp().sum(1)  # importance weights have heavy tails, which a standard error misses
        return Finding.equal(computed, total.mean().item(), 1, stderr=standard_error(total), tolerance=0.05)
    variance = log_p.var(0) / draws  # of the mean, which the exponential turns into a bias of half of it
    mean = (log_p.mean(0) - variance / 2).exp()
    error = (mean.square() * variance).sum().sqrt().item()
    return Finding.at_most(computed + ", of the bound's exponential", mean.sum().item(), 1, stderr=error)


def _sum_over_labels(subject: Subject) -> Finding:
    classes, x = len(subject.data.spec.classes), subject.context
    assert x is not None
    with subject.drawing():
        labels = [torch.full((len(x),), c, device=x.device) for c in range(classes)]
        total = torch.stack([subject.density.log_prob(y, x).double().exp() for y in labels]).sum(0)
    return Finding.equal(f"largest |sum over {classes} labels - 1|", (total - 1).abs().max().item(), 0, tolerance=1e-4)


def _importance(density: Density) -> Finding:
    exact = density.bound is Bound.EXACT
    n = DRAWS if exact else DRAWS // 4  # a bound takes more time, to draw and to evaluate
    q = gaussian_near(density.sample(n), wider=0.8 if exact else 1.3)
    if exact:
        x = density.sample(n)
        weights = (q.log_prob(x.flatten(1).double().cpu()) - density.log_prob(x).double().cpu()).exp()
        computed = "mean of q(x) / p(x) over samples of p"
    else:
        x = q.sample((n,))
        rows = x.to(density.device, torch.get_default_dtype()).view(n, *density.event_shape)
        weights = (density.log_prob(rows, samples=16).double().cpu() - q.log_prob(x)).exp()
        computed = "mean of p(x) / q(x) over samples of q, p the bound's exponential"
    effective = (weights.sum().square() / weights.square().sum()).item()
    if not effective >= MIN_EFFECTIVE:
        raise DoesNotApply(
            f"no normalised q is near enough: {n:,} weights q / p are worth {effective:.0f} independent draws"
        )
    computed += f", worth {effective:.0f} independent draws"
    if exact:
        return Finding.equal(computed, weights.mean().item(), 1, stderr=standard_error(weights), tolerance=1e-3)
    return Finding.at_most(computed, weights.mean().item(), 1, stderr=standard_error(weights), tolerance=1e-3)
