"""Muon: steps along orthogonalised momentum, for matrices and kernels of hidden layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from loglik.cpu.private import copy_each_, scale_each_, subtract_each_
from loglik.training.sharding import local, on_shards

__all__ = ["Muon", "orthogonalise", "orthogonalise_stack"]

STEPS = 5  # of Newton-Schulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of p(G) = a I + b G + c G²
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
            lr = group["lr"] if blocked is None else group["lr"] * (1 - blocked)
            one_by_one = any(kernel.device.type == "cpu" or isinstance(kernel, DTensor) for kernel in kernels)
            advance = self._one_by_one if one_by_one else self._by_shape
            advance(kernels, lr, group["weight_decay"], group["momentum"], blocked)
        return loss

    def _one_by_one(
        self, kernels: list[Tensor], lr: float | Tensor, decay: float, momentum: float, blocked: Tensor | None
    ) -> None:
        """Step each kernel alone, with the polynomials of kernels with about the same side together."""
        directions = [self._direction(kernel, momentum, blocked) for kernel in kernels]
        directions = on_shards(orthogonalise, kernels, directions)
        for kernel, direction in zip(kernels, directions, strict=True):
            rate = _rate(lr, len(kernel), kernel.numel() // len(kernel))
            matrix = _weights(kernel)
            matrix.mul_(1 - lr * decay)
            if isinstance(rate, Tensor):  # which `alpha` would read on the host
                matrix.sub_(direction * rate)
            else:
                matrix.add_(direction, alpha=-rate)

    def _by_shape(
        self, kernels: list[Tensor], lr: float | Tensor, decay: float, momentum: float, blocked: Tensor | None
    ) -> None:
        """Step all kernels of a shape together: a GPU launches few operations, however many kernels there are."""
        shapes: dict[tuple[int, int], list[Tensor]] = {}
        for kernel in kernels:
            shapes.setdefault((len(kernel), kernel.numel() // len(kernel)), []).append(kernel)
        for (rows, columns), members in shapes.items():
            buffers = [_matrix(self._momentum(kernel)) for kernel in members]
            gradient = torch.stack([_gradient(kernel) for kernel in members])
            average = torch.stack(buffers)
            if blocked is not None:  # the momentum stays
                gradient = torch.where(blocked > 0, average, gradient)
            average.lerp_(gradient, 1 - momentum)
            copy_each_(buffers, average.unbind())
            steps = orthogonalise_stack(gradient.lerp_(average, momentum)) * _rate(lr, rows, columns)
            weights = [_weights(kernel) for kernel in members]
            scale_each_(weights, 1 - lr * decay)
            subtract_each_(weights, steps.unbind())

    def _momentum(self, kernel: Tensor) -> Tensor:
        """Return a kernel's momentum, in the kernel's order in memory."""
        buffer = self.state[kernel].get("momentum_buffer")
        if buffer is None:
            buffer = torch.zeros_like(kernel)
        elif local(buffer).stride() != local(kernel).stride():  # as read from a checkpoint
            buffer = torch.empty_like(kernel).copy_(buffer)
        self.state[kernel]["momentum_buffer"] = buffer
        return local(buffer)

    def _direction(self, kernel: Tensor, momentum: float, blocked: Tensor | None) -> Tensor:
        """Return the gradient with Nesterov's momentum, as a matrix; of a kernel in shards, this rank's rows.

        The momentum stays where the step is blocked.
        """
        gradient = _gradient(kernel)
        average = _matrix(self._momentum(kernel))
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


def orthogonalise_stack(matrices: Float[Tensor, "N A B"]) -> Float[Tensor, "N A B"]:
    r"""Do as `orthogonalise` for matrices of one shape, by products with the matrices themselves.

    On CUDA the products are in bfloat16, as in torch's Muon: the steps need no more, and the factors' singular values
    are not squared as a Gram matrix squares them.
    """
    a, b, c = COEFFICIENTS
    long = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if long else matrices
    x = x / x.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-7)
    if x.is_cuda and x.dtype == torch.float32:
        x = x.bfloat16()
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if long else x).to(matrices.dtype)


def _newton_schulz(gram: Float[Tensor, "N A A"]) -> Float[Tensor, "N A A"]:
    r"""Return the product of all steps' polynomials, for the Gram matrices $X X^\top$ of N matrices X."""
    a, b, c = COEFFICIENTS
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


def _matrix(kernel: Tensor, like: Tensor | None = None) -> Tensor:
    """Return a kernel as a matrix that shares its memory; a copy for a gradient in another order than its kernel."""
    like = kernel if like is None else like
    kernel = kernel.detach()
    if kernel.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.flatten(1)


def _gradient(kernel: Tensor) -> Tensor:
    """Return a kernel's gradient as a matrix in the kernel's order in memory."""
    assert kernel.grad is not None
    return _matrix(local(kernel.grad), like=local(kernel))


def _weights(kernel: Tensor) -> Tensor:
    """Return a kernel as a matrix that shares its memory."""
    matrix = _matrix(local(kernel))
    assert matrix.is_meta or matrix.data_ptr() == local(kernel).data_ptr(), "a kernel's memory is not that of a matrix"
    return matrix


def _rate(lr: float | Tensor, rows: int, columns: int) -> float | Tensor:
    return 0.2 * lr * math.sqrt(max(rows, columns))
