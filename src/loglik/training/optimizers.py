"""What follows the gradient: AdamW, SGD with Nesterov's momentum, or Muon for matrices with AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from loglik.density import Density
from loglik.training.settings import TrainingSettings

__all__ = ["Muon", "optimizers_of"]


class Muon(torch.optim.Muon):
    """torch's Muon for kernels too: a convolution's (O, I, k, k) is the matrix (O, I·k·k).

    Each kernel is stepped through a view of its memory, in whichever order that memory has.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(self, kernels: list[nn.Parameter], **options: Any) -> None:
        self.pairs = [(p, nn.Parameter(_matrix(p.detach()), requires_grad=False)) for p in kernels]
        super().__init__([view for _, view in self.pairs], **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for kernel, view in self.pairs:
            view.grad = None if kernel.grad is None else _matrix(kernel.grad, like=kernel)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for kernel, _ in self.pairs:
            kernel.grad = None


def optimizers_of(density: Density, settings: TrainingSettings) -> list[Optimizer]:
    """The optimizers that settings ask for; together they hold each trained parameter once.

    Weight decay is for matrices and kernels; biases, norms and other vectors are spared.
    """
    trained = [p for p in density.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() >= 2], [p for p in trained if p.dim() < 2]
    decay, rate = settings.weight_decay, settings.learning_rate
    if settings.optimizer == "sgd":
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        return [torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=settings.momentum > 0)]
    kernels: list[Any] = []
    if settings.optimizer == "muon":
        # what maps between hidden units; embeddings are tables of vectors, and the last layer's rows are classes
        layers = [m for m in density.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]
        kernels = [layer.weight for layer in layers[:-1] if layer.weight.requires_grad]
    taken = {id(p) for p in kernels}
    matrices = [p for p in matrices if id(p) not in taken]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    first = AdamW([g for g in groups if g["params"]], lr=rate, betas=(0.9, 0.99), fused=True)
    if not kernels:
        return [first]
    muon = Muon(kernels, lr=rate, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [first, muon]


def _matrix(kernel: Tensor, like: Tensor | None = None) -> Tensor:
    """A kernel as a matrix that shares its memory."""
    like = kernel if like is None else like
    if kernel.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.flatten(1)
