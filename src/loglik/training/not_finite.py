"""Where a loss or a gradient stopped being finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loglik.density import Density
from loglik.training.sharding import whole

__all__ = ["NotFinite", "find_not_finite"]


class NotFinite(FloatingPointError):
    """The loss or a gradient is not finite; training stopped and the last good weights are kept."""


def find_not_finite(
    density: Density, loss: float, event: Tensor, context: Tensor | None, trained: Density | None = None
) -> str:
    """Return what is not finite, in words: a parameter's gradient, or the loss and its first such term.

    `trained` has the gradients, if not the density itself.
    """
    if math.isfinite(loss):
        gradients = {n: whole(p.grad) for n, p in (trained or density).named_parameters() if p.grad is not None}
        bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        return f"the gradient of {bad[0] if bad else 'the loss'} is not finite"
    with torch.no_grad():
        terms = density.terms(event, context) or {"log_prob": density.log_prob(event, context)}
    named = [name for name, term in terms.items() if not term.isfinite().all()]
    return f"the loss is {loss}" + (f", in its term {named[0]!r}" if named else "")
