"""Optimizers: AdamW, SGD with Nesterov's momentum, or Muon for hidden layers with AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from loglik.density import Density
from loglik.training.settings import TrainingSettings
from loglik.training.sharding import local, on_shards

__all__ = ["Muon", "optimizers_of", "orthogonalise"]

STEPS = 5  # of Newton-Schulz
PADDING = 32  # sides are padded with zeros to a multiple of it, so that small matrices share their products


class Muon(Optimizer):
    r"""Step matrices and kernels along their orthogonalised momentum.

    With the gradient $G_t$ of a matrix $W$ with A rows and B columns,

    $M_t = \mu M_{t-1} + (1 - \mu) G_t$, $U_t = \mu M_t + (1 - \mu) G_t$,
    $W \leftarrow (1 - \eta \lambda) W - 0.2\, \eta \sqrt{\max(A, B)}\, \text{NS}(U_t)$,

    as `torch.optim.Muon` with Nesterov's momentum and `adjust_lr_fn="match_rms_adamw"`. A convolution's (O, I, k, k) is
    the matrix (O, I·k·k), read and written through a view of the kernel's memory in that memory's own order.

    Args:
        kernels: the weights of linear maps and convolutions.
        lr: the learning rate η; one that suits AdamW suits Muon.
        weight_decay: λ, decoupled.
        momentum: μ.

    Reference: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
    scalable for LLM training" (the factor 0.2).
    """

    def __init__(
        self, kernels: Iterable[nn.Parameter], lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(kernels, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        blocked = getattr(self, "found_inf", None)
        for group in self.param_groups:
            kernels = [kernel for kernel in group["params"] if kernel.grad is not None]
            directions = [self._direction(kernel, group["momentum"], blocked) for kernel in kernels]
            directions = on_shards(orthogonalise, kernels, directions)
            lr = group["lr"] if blocked is None else group["lr"] * (1 - blocked)
            for kernel, direction in zip(kernels, directions, strict=True):
                rate = 0.2 * lr * math.sqrt(max(len(kernel), kernel.numel() // len(kernel)))
                matrix = _matrix(local(kernel))
                assert matrix.data_ptr() == local(kernel).data_ptr(), "a kernel's memory is not that of a matrix"
                matrix.mul_(1 - lr * group["weight_decay"])
                if isinstance(rate, Tensor):  # which `alpha` would read on the host
                    matrix.sub_(direction * rate)
                else:
                    matrix.add_(direction, alpha=-rate)
        return loss

    def _direction(self, kernel: nn.Parameter, momentum: float, blocked: Tensor | None) -> Tensor:
        """Return the gradient with Nesterov's momentum, as a matrix; of a kernel in shards, this rank's rows.

        The momentum stays where the step is blocked.
        """
        assert kernel.grad is not None
        gradient = _matrix(local(kernel.grad), like=local(kernel))
        buffer = self.state[kernel].get("momentum_buffer")
        if buffer is None:
            buffer = torch.zeros_like(kernel)
        elif local(buffer).stride() != local(kernel).stride():  # as read from a checkpoint
            buffer = torch.empty_like(kernel).copy_(buffer)
        self.state[kernel]["momentum_buffer"] = buffer
        average = _matrix(local(buffer))
        if blocked is None:
            average.lerp_(gradient, 1 - momentum)
        else:
            gradient = torch.where(blocked > 0, torch.zeros_like(gradient), gradient)
            average.lerp_(gradient, (1 - momentum) * (1 - blocked))
        return gradient.lerp(average, momentum)


def orthogonalise(matrices: Sequence[Float[Tensor, "_ _"]]) -> list[Float[Tensor, "_ _"]]:
    r"""Move the singular values of each matrix $U S V^\top$ to about 1: $U S' V^\top$ with S' mostly in 0.7 ... 1.2.

    The matrix is divided by its Frobenius norm and makes five Newton-Schulz steps $X \leftarrow p(X X^\top)\, X$ with
    $p(G) = a I + b\, G + c\, G^2$. The steps are made on the Gram matrix of the shorter side,
    $G \leftarrow p(G)\, G\, p(G)$, at once for all matrices with equal padded sides. Each matrix is multiplied
    once, by the product of the p(G).

    Reference: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    sides: dict[int, list[int]] = {}
    for i, matrix in enumerate(matrices):
        sides.setdefault(math.ceil(min(matrix.shape) / PADDING) * PADDING, []).append(i)
    moved = list(matrices)
    with _full_float32():
        for side, members in sides.items():
            xs = [matrices[i] if matrices[i].dtype == torch.float64 else matrices[i].float() for i in members]
            grams = xs[0].new_zeros(len(xs), side, side)
            for gram, x in zip(grams, xs, strict=True):
                n = min(x.shape)
                gram[:n, :n] = x @ x.mT if len(x) == n else x.mT @ x
            for i, x, product in zip(members, xs, _newton_schulz(grams), strict=True):
                n = min(x.shape)
                moved[i] = product[:n, :n] @ x if len(x) == n else x @ product[:n, :n]
    return moved


def _newton_schulz(gram: Float[Tensor, "N A A"]) -> Float[Tensor, "N A A"]:
    r"""Return the product of all steps' polynomials, for the Gram matrices $X X^\top$ of N matrices X."""
    a, b, c = 3.4445, -4.7750, 2.0315
    squares = gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-14)[:, None, None]
    gram = gram / squares
    product = None
    for step in range(STEPS):
        rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # p(G) - a I
        if product is None:
            product = rest.clone()
            product.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            product = torch.baddbmm(product, rest, product, beta=a)
        if step < STEPS - 1:
            gram = torch.baddbmm(gram, rest, gram, beta=a)
            gram = torch.baddbmm(gram, gram, rest, beta=a)
    assert product is not None
    return product / squares.sqrt()


@contextmanager
def _full_float32() -> Iterator[None]:
    """Multiply float32 matrices in full precision, whatever `torch.set_float32_matmul_precision` allows.

    Rounded to bfloat16 or TF32, the Gram matrix of a low-rank matrix has negative eigenvalues, and the steps enlarge
    them without bound.
    """
    settings = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


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


def _matrix(kernel: Tensor, like: Tensor | None = None) -> Tensor:
    """Return a kernel as a matrix that shares its memory; a copy for a gradient in another order than its kernel."""
    like = kernel if like is None else like
    kernel = kernel.detach()
    if kernel.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.flatten(1)
