"""Optimizers: AdamW, SGD with Nesterov's momentum, or Muon for hidden layers with AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from loglik.density import Density
from loglik.training.muon import Muon
from loglik.training.settings import TrainingSettings

__all__ = ["optimizers_of"]


def optimizers_of(density: Density, settings: TrainingSettings, *, deferred: bool = False) -> list[Optimizer]:
    r"""Return the optimizers of the settings; each trained parameter is in exactly one.

    Each moves the parameters against the gradient. `sgd` without momentum makes the step
    $\theta \leftarrow \theta - \eta \nabla_\theta L$ with the learning rate η and the gradient of a batch's mean loss.
    Weight decay is for matrices and kernels, not for biases, norms and other vectors.

    With `deferred` they read nothing on the host: they accept a learning rate in a tensor, and make no step where
    their attribute `found_inf`, as torch's gradient scaler sets it, is a tensor that holds 1.

    Reference: Robbins and Monro 1951, "A stochastic approximation method".
    """
    trained = [p for p in density.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() >= 2], [p for p in trained if p.dim() < 2]
    decay, rate = settings.weight_decay, settings.learning_rate
    if settings.optimizer == "sgd":
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        nesterov, fused = settings.momentum > 0, deferred or None
        return [torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=nesterov, fused=fused)]
    kernels: list[Any] = []
    if settings.optimizer == "muon":
        kernels = [p for p in _hidden_kernels(density) if p.requires_grad]
    in_muon = {id(p) for p in kernels}
    matrices = [p for p in matrices if id(p) not in in_muon]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    first = AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True, capturable=deferred)
    if not kernels:
        return [first]
    return [first, Muon(kernels, lr=rate, weight_decay=decay)]


def _hidden_kernels(density: Density) -> list[Tensor]:
    """Return the weights of linear maps and convolutions between hidden units.

    Embeddings are tables of vectors, and the rows of an output layer are classes or a distribution's parameters.
    """
    outputs = set(density.output_layers())
    layers = (m for m in density.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d)))
    return [layer.weight for layer in layers if layer not in outputs]
