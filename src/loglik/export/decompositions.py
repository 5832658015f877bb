r"""Operations that ONNX or onnxruntime does not have, from operations that they have.

`erf`, `erfc` and `erfcx` are rational functions in three intervals (Cody 1969, "Rational Chebyshev approximations for
the error function"), with a relative error of about 1e-16; log Γ is the series of Lanczos 1964. Triangular systems and
Cholesky factors are unrolled, since their sizes are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["DECOMPOSITIONS"]

aten = torch.ops.aten

SQRT_PI = math.sqrt(math.pi)
SMALL, LARGE = 0.46875, 4.0  # |x| at the ends of the middle interval
# numerators and denominators, the highest power first
ERF_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
ERFCX_MIDDLE = (
    (
        2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
        2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
        1.23033935479799725e3,
    ),
    (
        1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
        3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3,
    ),
)  # fmt: skip
ERFCX_LARGE = (
    (
        1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
        1.60837851487422766e-2, 6.58749161529837803e-4,
    ),
    (
        1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2,
        2.33520497626869185e-3,
    ),
)  # fmt: skip
LANCZOS = (
    676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059, 12.507343278686905,
    -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
)  # fmt: skip


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Tensor:
    """Return the quotient of two polynomials."""
    above, below = (torch.zeros_like(x) + row[0] for row in coefficients)
    for a in coefficients[0][1:]:
        above = above * x + a
    for b in coefficients[1][1:]:
        below = below * x + b
    return above / below


def _erfcx_positive(x: Tensor) -> Tensor:
    """Return $e^{x^2} \\text{erfc}(x)$ for x of at least `SMALL`."""
    inverse = 1 / (x * x).clamp_min(1.0)
    far = (1 / SQRT_PI - inverse * _ratio(ERFCX_LARGE, inverse)) / x
    return torch.where(x > LARGE, far, _ratio(ERFCX_MIDDLE, x.clamp_max(LARGE)))


def _erf_small(x: Tensor) -> Tensor:
    x = x.clamp(-SMALL, SMALL)
    return x * _ratio(ERF_SMALL, x * x)


def _erfc(x: Tensor) -> Tensor:
    size = x.abs()
    tail = torch.exp(-x * x) * _erfcx_positive(size.clamp_min(SMALL))
    outside = torch.where(x > 0, tail, 2 - tail)
    return torch.where(size > SMALL, outside, 1 - _erf_small(x))


def _erf(x: Tensor) -> Any:
    if x.dtype != torch.float64:  # onnxruntime has it in float32 only
        return NotImplemented
    size = x.abs()
    outside = 1 - torch.exp(-x * x) * _erfcx_positive(size.clamp_min(SMALL))
    return torch.where(size > SMALL, x.sign() * outside, _erf_small(x))


def _erfcx(x: Tensor) -> Tensor:
    size = x.abs()
    right = _erfcx_positive(size.clamp_min(SMALL))
    square = torch.exp(x * x)
    outside = torch.where(x > 0, right, 2 * square - right)
    return torch.where(size > SMALL, outside, square * (1 - _erf_small(x)))


def _expm1(x: Tensor) -> Tensor:
    """Return $e^x - 1$, whose rounding cancels that of $\\log e^x$ (Kahan)."""
    u = x.exp()
    near = (u - 1) * x / u.log()
    return torch.where(u == 1, x, torch.where((u == 0) | u.isinf(), u - 1, near))


def _log1p(x: Tensor) -> Tensor:
    u = 1 + x
    return torch.where(u == 1, x, torch.where((u == 0) | u.isinf(), u.log(), u.log() * x / (u - 1)))


def _sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid, whose values near 0 onnxruntime approximates by their absolute error."""
    return 1 / (1 + (-x).exp())


def _clamp(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Clamp by numbers of the type of x, which the exporter would make tensors of."""
    number = float if x.is_floating_point() else int
    x = x if low is None else x.clamp_min(number(low))
    return x if high is None else x.clamp_max(number(high))


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    assert beta == 1
    return x.clamp_min(0) + _log1p((-x.abs()).exp())


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    high = torch.maximum(a, b)
    return torch.where(high.isinf(), high, high + _log1p((-(a - b).abs()).exp()))


def _logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    high = x.amax(dim, keepdim=True)
    high = torch.where(high.isinf(), 0.0, high)
    total = (x - high).exp().sum(dim, keepdim=True).log() + high
    return total if keepdim else total.squeeze(dim)


def _asinh(x: Tensor) -> Tensor:
    size = x.abs()
    return x.sign() * _log1p(size + size * size / (1 + (1 + size * size).sqrt()))


def _sinh(x: Tensor) -> Tensor:
    e = _expm1(x.abs())
    return 0.5 * x.sign() * (e + e / (e + 1))


def _ndtr(x: Tensor) -> Tensor:
    return 0.5 * _erfc(-x * math.sqrt(0.5))


def _log_ndtr(x: Tensor) -> Tensor:
    t = x * math.sqrt(0.5)
    left = torch.log(_erfcx((-t).clamp_min(0.0)) / 2) - t * t
    return torch.where(x < -1, left, _log1p(-0.5 * _erfc(t.clamp_min(-1.0))))


def _lgamma(x: Tensor) -> Tensor:
    """Return log Γ(x) for x above 0, in float64 within."""
    y = x.double() - 1
    total = torch.full_like(y, 0.99999999999980993)
    for k, coefficient in enumerate(LANCZOS):
        total = total + coefficient / (y + k + 1)
    t = y + 7.5
    return (0.5 * math.log(2 * math.pi) + (y + 0.5) * t.log() - t + total.log()).to(x.dtype)


def _searchsorted(
    edges: Tensor, values: Tensor, *, out_int32: bool = False, right: bool = False, side: Any = None, sorter: Any = None
) -> Tensor:
    """Return the number of edges below each value, or up to it if `right`."""
    if edges.dim() == 1 and values.dim() != 1:
        edges = edges.view(*[1] * (values.dim() - 1), -1)
    edges, values = edges.unsqueeze(-2), values.unsqueeze(-1)
    found = edges <= values if right or side == "right" else edges < values
    return found.to(torch.int64).sum(-1).to(torch.int32 if out_int32 else torch.int64)


def _bucketize(values: Tensor, edges: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    flat = edges.view(*[1] * values.dim(), -1)
    found = flat <= values.unsqueeze(-1) if right else flat < values.unsqueeze(-1)
    return found.to(torch.int64).sum(-1).to(torch.int32 if out_int32 else torch.int64)


def _solve_triangular(
    matrix: Tensor, right: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """Return the solution X of A X = B, row by row."""
    if not left:
        return _solve_triangular(matrix.mT, right.mT, upper=not upper, unitriangular=unitriangular).mT
    n = matrix.shape[-1]
    rows: dict[int, Tensor] = {}
    for i in reversed(range(n)) if upper else range(n):
        known = sorted(rows)
        row = right[..., i : i + 1, :]
        if known:
            first, last = known[0], known[-1] + 1
            row = row - matrix[..., i : i + 1, first:last] @ torch.cat([rows[j] for j in known], -2)
        rows[i] = row if unitriangular else row / matrix[..., i : i + 1, i : i + 1]
    return torch.cat([rows[i] for i in range(n)], -2)


def _cholesky(matrix: Tensor, *, upper: bool = False, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """Return the lower factor, column by column, and zeros for its errors."""
    n, columns = matrix.shape[-1], []
    rest = matrix
    for i in range(n):
        column = rest[..., :, i : i + 1] / rest[..., i : i + 1, i : i + 1].sqrt()
        column = torch.cat([torch.zeros_like(column[..., :i, :]), column[..., i:, :]], -2)
        columns.append(column)
        rest = rest - column * column.mT
    factor = torch.cat(columns, -1)
    return (factor.mT if upper else factor), torch.zeros(matrix.shape[:-2], dtype=torch.int32)


def _cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Any = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    assert weight is None and reduction == 0 and label_smoothing == 0
    return -logits.log_softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)


def _sum(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """Return a sum in int64 where it would be in an integer type that onnxruntime cannot sum."""
    if dtype in (torch.uint8, torch.int8, torch.int16):
        return aten.sum.dim_IntList(x.to(torch.int64), dim, keepdim).to(dtype)
    return NotImplemented


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.clamp.default: _clamp,
    aten.sigmoid.default: _sigmoid,
    aten.expm1.default: _expm1,
    aten.log1p.default: _log1p,
    aten.softplus.default: _softplus,
    aten.log_sigmoid.default: lambda x: -_softplus(-x),
    aten.logaddexp.default: _logaddexp,
    aten.logsumexp.default: _logsumexp,
    aten.sinh.default: _sinh,
    aten.asinh.default: _asinh,
    aten.erf.default: _erf,
    aten.erfc.default: _erfc,
    aten.special_erfcx.default: _erfcx,
    aten.special_ndtr.default: _ndtr,
    aten.special_log_ndtr.default: _log_ndtr,
    aten.lgamma.default: _lgamma,
    aten.searchsorted.Tensor: _searchsorted,
    aten.bucketize.Tensor: _bucketize,
    aten.linalg_solve_triangular.default: _solve_triangular,
    aten.linalg_cholesky_ex.default: _cholesky,
    aten.cross_entropy_loss.default: _cross_entropy,
    aten.sum.dim_IntList: _sum,
    aten._assert_async.msg: lambda *args: None,
}
