r"""Classification (spring 2025, B1): $\hat y = g_{\theta_2}(f_{\theta_1}(x))$, cross-entropy, calibration."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from loglik.classification import Classifier
from loglik.classification.calibration import reliability
from loglik.verification.check import Finding, check
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["cross_entropy", "reliability_of_probabilities", "two_parts"]

SECTION = "Spring 2025, B1: classification"
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
