r"""Singular values of a Jacobian $J = \partial h_{out} / \partial h_{in}$ between two tensors of one autograd graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Spectrum", "singular_values"]

PROBES = 16


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a Jacobian: the largest, the root mean square, the smallest (None for an estimate)."""

    largest: float
    rms: float
    smallest: float | None


def singular_values(
    output: Float[Tensor, "B ..."], inputs: Float[Tensor, "B ..."], *, exact: int = 256, iterations: int = 24
) -> Spectrum | None:
    r"""Return singular values of $J = \partial h_{out} / \partial h_{in}$ at the first example.

    With at most `exact` outputs, J is computed exactly. Otherwise the root mean square is estimated to a few per cent
    from Gaussian probes, $\mathbb E \lVert J^\top v \rVert^2 = \lVert J \rVert_F^2$, and the largest is estimated from
    below by the Lanczos iteration on $J J^\top$. The root mean square is over $\min(n_{in}, n_{out})$ singular values.

    Returns None if the output does not depend on the inputs.

    Reference: Golub and Van Loan 2013, "Matrix computations", section 10.1.
    """
    n_out, n_in = output[0].numel(), inputs[0].numel()

    def pull(v: Tensor, create: bool = False) -> Tensor | None:
        """Return Jᵀ v."""
        full = torch.cat([v.view(1, *output.shape[1:]), torch.zeros_like(output[1:])])
        (g,) = torch.autograd.grad(output, inputs, full, retain_graph=True, create_graph=create, allow_unused=True)
        return None if g is None else g[0].flatten()

    probe = torch.randn(n_out, generator=torch.Generator().manual_seed(0)).to(output)
    if pull(probe) is None:
        return None
    rank = min(n_in, n_out)
    if n_out <= exact:
        rows = [pull(row) for row in torch.eye(n_out, dtype=output.dtype, device=output.device)]
        values = torch.linalg.svdvals(torch.stack([r for r in rows if r is not None]).cpu().double())
        return Spectrum(values[0].item(), values.square().sum().div(rank).sqrt().item(), values[-1].item())
    generator = torch.Generator().manual_seed(1)
    probes = [pull(torch.randn(n_out, generator=generator).to(output)) for _ in range(PROBES)]
    square = sum(float(p.cpu().double().square().sum()) for p in probes if p is not None) / len(probes)
    # J u is the gradient of the linear map v -> Jᵀ v
    v = torch.zeros_like(probe, requires_grad=True)
    pulled = pull(v, create=True)
    if pulled is None or not pulled.requires_grad:
        return Spectrum(0.0, math.sqrt(square / rank), None)

    def gram_product(u: Tensor) -> Tensor:
        """Return J Jᵀ u."""
        inner = pull(u.to(output))
        (w,) = torch.autograd.grad(pulled, v, inner, retain_graph=True)
        return w.cpu().double()

    largest = _largest_eigenvalue(gram_product, probe.cpu().double(), min(iterations, n_out))
    return Spectrum(math.sqrt(largest), math.sqrt(square / rank), None)


def _largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> float:
    """Estimate the largest eigenvalue by the Lanczos iteration with full reorthogonalisation."""
    basis = [start / start.norm()]
    columns: list[Tensor] = []
    for _ in range(iterations):
        w = product(basis[-1])
        known = torch.stack(basis)
        columns.append(known @ w)
        scale = w.norm()
        for _ in range(2):  # one pass leaves a rounding error
            w = w - known.T @ (known @ w)
        if not w.norm() > 1e-6 * scale:
            break
        basis.append(w / w.norm())
    size = len(columns)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i, column in enumerate(columns):
        matrix[: i + 1, i] = matrix[i, : i + 1] = column
    return max(0.0, float(torch.linalg.eigvalsh(matrix)[-1]))
