r"""Any density: its samples agree with its log-probabilities, and its unit is that of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from loglik.autoregressive import Autoregressive
from loglik.density import Bound, Density, StandardNormal
from loglik.flows import Flow
from loglik.transforms import Scale
from loglik.verification.check import Finding, Z, check, standard_error
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["causal", "change_of_units", "entropy_of_samples", "expected_score", "two_samples"]

SECTION = "Autumn 2025, B2: likelihood"
DRAWS = 2048
HALF = 256
ROUNDING = 1e-4


@check(
    "entropy-of-samples",
    section=SECTION,
    statement=r"\mathbb E_{x \sim p_\theta}[\log p_\theta(x)] = -H(p_\theta)",
)
def entropy_of_samples(subject: Subject) -> Finding:
    r"""The mean log-probability of a model's own samples is minus its entropy, which is computed in another way.

    Of a flow $H = H(z) - \mathbb E \log\lvert\det \partial z / \partial x\rvert$ with the base's entropy in closed
    form; of an autoregressive density $H = \mathbb E \sum_t H(x_t \mid x_{<t})$.
    """
    density = subject.density
    gaussian = isinstance(density, Flow) and isinstance(density.base, StandardNormal) and density.bound is Bound.EXACT
    if not gaussian and not isinstance(density, Autoregressive):
        raise DoesNotApply("its entropy is known in one way only: as the mean of its own log-probabilities")
    with subject.drawing():
        x = subject.drawn(DRAWS if subject.data.spec.dims <= 16 else DRAWS // 8)
        context = subject.contexts(len(x))
        if isinstance(density, Flow):
            base = density.base
            log_det = density.encode(x, context)[1].double()
            dims = math.prod(base.event_shape)
            minus = log_det - 0.5 * dims * math.log(2 * math.pi * math.e)
        else:
            assert isinstance(density, Autoregressive)
            p = density.logits(x, context).double().softmax(-1)
            minus = torch.xlogy(p, p).sum((1, 2))
        difference = density.log_prob(x, context).double() - minus
    computed = f"mean of log p + H over {len(x)} samples, H = {-minus.mean().item():.4g} nats"
    return Finding.equal(computed, difference.mean().item(), 0, stderr=standard_error(difference), tolerance=1e-3)


@check("expected-score", section=SECTION, statement=r"\mathbb E_{x \sim p_\theta}[\nabla_\theta \log p_\theta(x)] = 0")
def expected_score(subject: Subject) -> Finding:
    r"""The gradient of log p at the model's own samples is zero on average, as it is of no other samples.

    From $\nabla_\theta \int p_\theta(x)\,dx = 0$. Half of the samples choose the direction, their mean gradient; the
    projections of the other half on it have the mean 0.
    """
    density = subject.density
    if density.bound is not Bound.EXACT:
        raise DoesNotApply("log_prob is a bound or an estimate, not log p itself")
    parameters = [p for p in density.parameters() if p.requires_grad]
    if not parameters:
        raise DoesNotApply("this model has no parameters that are trained by gradients")
    with subject.drawing():
        x = subject.drawn(2 * HALF)
        context = subject.contexts(len(x))
    first, last = (None, None) if context is None else context.split(HALF)
    with torch.enable_grad():
        total = density.log_prob(x[:HALF], first).mean()
        direction = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    slope = _projections(density, x[HALF:], last, parameters, direction)
    computed = f"mean projection of {HALF} gradients on that of {HALF} other samples, in standard errors"
    return Finding.at_most(computed, slope.mean().item() / (standard_error(slope) + 1e-12), Z)


@check("change-of-units", section=SECTION, statement=r"\log p_{cX}(cx) = \log p_X(x) - D \log \lvert c \rvert")
def change_of_units(subject: Subject) -> Finding:
    """A density of the same data in another unit differs by the logarithm of the change of volume."""
    density, spec = subject.density, subject.data.spec
    if density.discrete or density.event == "y" or any(spec.discrete_dims):
        raise DoesNotApply("a probability has no unit; it is a density of real numbers that has one")
    factor = 4.0  # a power of 2, so that no value moves across the edge of a bin
    with subject.drawing():
        before = density.log_prob(subject.event, subject.context).double()
    scaled = Flow([Scale(1 / factor)], density).eval()
    with subject.drawing():
        after = scaled.log_prob(factor * subject.event, subject.context).double()
    error = (after - before + spec.dims * math.log(factor)).abs() / before.abs().clamp_min(1)
    computed = f"largest relative error, c = {factor:g}, D = {spec.dims}"
    return Finding.equal(computed, error.max().item(), 0, tolerance=1e-3)


@check("causal", section=SECTION, statement=r"p(x) = \prod_t p(x_t \mid x_{<t})")
def causal(subject: Subject) -> Iterator[Finding]:
    """Each conditional sums to 1, depends on earlier values only, and log p is the sum of their logarithms."""
    part = subject.part(Autoregressive)
    density, x, context = part.density, part.event[:32], None if part.context is None else part.context[:32]
    with subject.drawing():
        logits = density.logits(x, context).double()
        total = logits.softmax(-1).sum(-1)
        own = logits.log_softmax(-1).gather(-1, x.flatten(1).long().unsqueeze(-1)).squeeze(-1).sum(1)
        error = (own - density.log_prob(x, context).double()).abs() / own.abs().clamp_min(1)
        leak = _leak(density, x, context, logits)
    yield Finding.equal("largest |sum of a conditional - 1|", (total - 1).abs().max().item(), 0, tolerance=ROUNDING)
    yield Finding.equal("largest relative error of the sum", error.max().item(), 0, tolerance=ROUNDING)
    yield Finding.equal("largest change of a conditional by values from its own on", leak, 0, tolerance=1e-3)


@check("two-samples", section=SECTION, statement=r"p_\theta = p_{data}")
def two_samples(subject: Subject) -> Iterator[Finding]:
    r"""A test of samples against data: the energy distance and its p-value by permutation; reported, not judged.

    $2\,\mathbb E\lVert X - Y \rVert - \mathbb E\lVert X - X' \rVert - \mathbb E\lVert Y - Y' \rVert$ of standardised
    values. Reference: Székely and Rizzo 2013, "Energy statistics".
    """
    if subject.density.event == "y":
        raise DoesNotApply("a classifier has no samples of the data")
    with subject.drawing():
        data = subject.event.flatten(1).double()
        drawn = subject.drawn(len(data)).flatten(1).double()
        both = torch.cat([data, drawn])
        std = data.std(0)
        both = both / torch.where(std > 0, std, torch.ones_like(std))
        distances = torch.cdist(both, both)
        found = _energy(distances, torch.arange(len(both), device=data.device), len(data))
        orders = [torch.randperm(len(both), device=data.device) for _ in range(199)]
        larger = sum(_energy(distances, order, len(data)) >= found for order in orders)
    yield Finding.reported(f"energy distance of {len(data)} examples and as many samples", found)
    yield Finding.reported("p-value, 199 permutations: small where a test tells them apart", (1 + larger) / 200)


def _projections(
    density: Density,
    x: Tensor,
    context: Tensor | None,
    parameters: list[torch.nn.Parameter],
    direction: Sequence[Tensor],
) -> Float[Tensor, " B"]:
    r"""Return $\langle \nabla_\theta \log p(x_b), v \rangle$ of each example, for a direction v.

    It is the derivative with respect to $u_b$ of $\langle \nabla_\theta \sum_b u_b \log p(x_b), v \rangle$, which two
    backward passes give for all examples at once.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        u = torch.ones(len(x), device=x.device, requires_grad=True)
        total = (u * density.log_prob(x, context)).sum()
        gradients = torch.autograd.grad(total, parameters, create_graph=True, allow_unused=True)
        pairs = zip(gradients, direction, strict=True)
        projection = torch.stack([(g * v).sum() for g, v in pairs if g is not None]).sum()
        (slope,) = torch.autograd.grad(projection, u)
    return slope.double()


def _leak(density: Autoregressive, x: Tensor, context: Tensor | None, logits: Tensor) -> float:
    """Return how much conditionals change where their own and all later values are replaced."""
    flat, largest = x.flatten(1), 0.0
    length = flat.shape[1]
    for t in sorted({0, length // 3, 2 * length // 3, length - 1}):
        changed = flat.clone()
        changed[:, t:] = flat.roll(1, 0)[:, t:]
        after = density.logits(changed.view_as(x), context).double()
        keep = logits[:, : t + 1].isfinite()
        largest = max(largest, (after[:, : t + 1] - logits[:, : t + 1])[keep].abs().max().item())
    return largest


def _energy(distances: Float[Tensor, "N N"], order: Tensor, n: int) -> float:
    a, b = order[:n], order[n:]
    between, first, last = distances[a][:, b].mean(), distances[a][:, a].mean(), distances[b][:, b].mean()
    return (2 * between - first - last).item()
