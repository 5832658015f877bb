r"""Classification (spring 2025, B1): $\hat y = g_{\theta_2}(f_{\theta_1}(x))$, cross-entropy, SGD, calibration."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.classification import Classifier
from loglik.classification.calibration import reliability
from loglik.devices import fork_generators
from loglik.verification.check import Finding, check
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["cross_entropy", "reliability_of_probabilities", "sgd_is_unbiased", "two_parts"]

SECTION = "Spring 2025, B1: classification"
BATCH = 16
REPEATS = 10
ROUNDING = 1e-5


@check("two-parts", section=SECTION, statement=r"\hat y = g_{\theta_2}(f_{\theta_1}(x)), \quad \sum_c \hat y_c = 1")
def two_parts(subject: Subject) -> Iterator[Finding]:
    """The features map data to h numbers, the head maps these to C probabilities that sum to 1."""
    classifier, x = _classifier(subject)
    with subject.drawing():
        prepared = x if classifier.prepare is None else classifier.prepare(x)
        h = classifier.features(prepared)
        y = classifier.head(h).softmax(-1)
        total = classifier.probabilities(x).sum(-1)
    yield Finding.equal(f"width of the head's output, from h = {h.shape[-1]} features", y.shape[-1], classifier.classes)
    yield Finding.equal("largest |sum of the probabilities - 1|", (total - 1).abs().max().item(), 0, tolerance=ROUNDING)


@check("cross-entropy", section=SECTION, statement=r"\mathcal L = -\sum_c \mathbb I(y = c) \log \hat y_c")
def cross_entropy(subject: Subject) -> Finding:
    """The cross-entropy of the one-hot label is the negative log-likelihood of the label."""
    classifier, x = _classifier(subject)
    y = subject.event
    with subject.drawing():
        one_hot = torch.nn.functional.one_hot(y, classifier.classes)
        formula = -(one_hot * classifier.probabilities(x).double().clamp_min(1e-300).log()).sum(-1)
        error = (formula + classifier.log_prob(y, x).double()).abs() / formula.abs().clamp_min(1)
    return Finding.equal(f"largest relative difference, {len(y)} examples", error.max().item(), 0, tolerance=1e-4)


@check(
    "sgd-unbiased",
    section=SECTION,
    statement=r"\mathbb E_B\left[\nabla_\theta \mathcal L_B\right] = \nabla_\theta \mathcal L",
)
def sgd_is_unbiased(subject: Subject) -> Iterator[Finding]:
    r"""The gradient of a random mini-batch is an unbiased estimate of the gradient of the whole set.

    The full gradient g is that of all examples at once. A mini-batch of n of N examples gives $g_B$ with
    $\mathbb E g_B = g$, so the projection $\langle g_B, g \rangle / \lVert g \rVert^2$ has the mean 1.
    """
    n = len(subject.event)
    if not any(p.requires_grad for p in subject.density.parameters()):
        raise DoesNotApply("this model has no parameters that are trained by gradients")
    whole = _gradient(subject, torch.arange(n))
    if not torch.equal(whole, _gradient(subject, torch.arange(n), salt=1)):
        raise DoesNotApply("the loss draws noise of its own, so the gradient of the whole set is random, too")
    if n < 2 * BATCH or whole.norm() == 0:
        raise DoesNotApply(f"it needs at least {2 * BATCH} examples and a gradient that is not zero")
    projections, distances = [], []
    for _ in range(REPEATS):  # the batches of one permutation are disjoint; a last one that is not full is left out
        for rows in torch.randperm(n).split(BATCH):
            if len(rows) == BATCH:
                gradient = _gradient(subject, rows)
                projections.append((gradient @ whole / whole.square().sum()).item())
                distances.append(((gradient - whole).norm() / whole.norm()).item())
    mean = torch.tensor(projections, dtype=torch.float64)
    error = mean.std().item() / math.sqrt(len(mean))
    computed = f"mean of ⟨g_B, g⟩ / ‖g‖² over {len(mean)} batches of {BATCH}"
    yield Finding.equal(computed, mean.mean().item(), 1, stderr=error, tolerance=1e-4)
    yield Finding.reported("noise of one batch, mean of ‖g_B - g‖ / ‖g‖", sum(distances) / len(distances))


@check("calibration", section=SECTION, statement=r"P(y = c \mid \hat y_c = p) = p")
def reliability_of_probabilities(subject: Subject) -> Finding:
    """Of the examples that are predicted with probability p, the fraction p is predicted right."""
    classifier, x = _classifier(subject)
    with subject.drawing():
        found = reliability(classifier.probabilities(x), subject.event)
    low, high = found.error_interval
    return Finding.reported("expected calibration error", found.error, stderr=(high - low) / 3.92)


def _classifier(subject: Subject) -> tuple[Classifier, Tensor]:
    if not isinstance(subject.density, Classifier):
        raise DoesNotApply("this model is p(x), not p(y | x)")
    assert subject.context is not None
    return subject.density, subject.context


def _gradient(subject: Subject, rows: Tensor, salt: int = 0) -> Float[Tensor, " P"]:
    """Return the gradient of the mean loss of some examples, as one vector."""
    density, (event, context) = subject.density, subject.arguments
    rows = rows.to(event.device)
    parameters = [p for p in density.parameters() if p.requires_grad]
    with fork_generators(event.device), torch.enable_grad():
        torch.manual_seed(subject.seed + salt)
        loss = density.loss(event[rows], None if context is None else context[rows])
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten().double() for g in gradients])
