r"""Stochastic gradient descent (spring 2025, B1): the gradient of a mini-batch is unbiased."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.devices import fork_generators
from loglik.verification.check import Finding, check, standard_error
from loglik.verification.subject import DoesNotApply, Subject

__all__ = ["sgd_is_unbiased"]

SECTION = "Spring 2025, B1: classification"
BATCH = 16
REPEATS = 10


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
    error = standard_error(mean)
    computed = f"mean of ⟨g_B, g⟩ / ‖g‖² over {len(mean)} batches of {BATCH}"
    yield Finding.equal(computed, mean.mean().item(), 1, stderr=error, tolerance=1e-4)
    yield Finding.reported("noise of one batch, mean of ‖g_B - g‖ / ‖g‖", sum(distances) / len(distances))


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
