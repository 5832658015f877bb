r"""The likelihood of a flow by dimension: which dimensions of an event are unlikely given those before them.

With $z = T(v)$ and its Jacobian $J = Q L$, Q orthogonal and L lower triangular, $u = Q^\top z$ has the Jacobian L at v,
so that $u_d$ depends on $v_1, \dots, v_d$ only, to first order. For the base N(0, I)

$\log p(v) = \sum_d \left[\log \mathcal N(u_d; 0, 1) + \log \lvert L_{dd} \rvert\right]$.

The sum is exact, and does not depend on how T rotates or permutes the base's dimensions. Each bracket is
$\log p(v_d \mid v_{<d})$ where T is autoregressive or linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.density import Bound, Density, StandardNormal
from loglik.transforms import Dequantize, Transform

__all__ = ["flow_terms", "has_terms", "triangular"]

COPIES = 2**16  # values of an event's copies, each of which gives one row of the Jacobian


def has_terms(transforms: Sequence[Transform], base: Density) -> bool:
    """Return whether `flow_terms` applies: a base N(0, I), or one with terms behind columnwise transforms."""
    rest = transforms[_dequantized(transforms) :]
    if any(transform.bound is not Bound.EXACT for transform in rest):
        return False
    return isinstance(base, StandardNormal) or all(transform.columnwise for transform in rest)


def flow_terms(
    transforms: Sequence[Transform],
    base: Density,
    vector: Tensor | None,
    x: Shaped[Tensor, "B ..."],
    context: Tensor | None,
    *,
    samples: int = 1,
) -> dict[str, Float[Tensor, "B ..."]]:
    """Return the base's terms and the log-determinant by dimension, (B, D), in the order of the data's dimensions.

    A learned dequantization adds a term for whole events, (B,).

    Args:
        transforms: a dequantization or none, then transforms that are exact.
        base: N(0, I), or any base if the other transforms are columnwise: it may have terms itself.
        vector: the transforms' context.
        x: events.
        context: the base's context.
        samples: of the base.
    """
    v, rest, noise, slopes = x, transforms[_dequantized(transforms) :], {}, None
    if len(rest) < len(transforms):
        first = transforms[0]
        assert isinstance(first, Dequantize)
        if first.columnwise:
            v, slopes = first.encode_dims(x)
        else:
            v, log_det = first.encode(x, vector)
            noise = {"dequantization": log_det}

    def encode(rows: Tensor, row_vector: Tensor | None) -> Tensor:
        for transform in rest:
            rows, _ = transform.encode(rows, row_vector)
        return rows

    if isinstance(base, StandardNormal):
        u, log_det = triangular(*_jacobian(encode, v, vector))
        terms = {"base": -0.5 * (u.square() + math.log(2 * math.pi))}
    else:
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            z = encode(v, vector)
            (diagonal,) = torch.autograd.grad(z.sum(), v)
        terms, log_det = base.terms_by_dimension(z.detach(), context, samples=samples), diagonal.abs().log().flatten(1)
        if not terms:
            return {}
    log_det = log_det if slopes is None else log_det + slopes.flatten(1)
    return {**terms, "log-determinant": log_det, **noise}


def _dequantized(transforms: Sequence[Transform]) -> int:
    """Return the number of transforms that are a dequantization: the first one, or none."""
    return int(bool(transforms) and isinstance(transforms[0], Dequantize))


def triangular(
    z: Float[Tensor, "B D"], jacobian: Float[Tensor, "B D D"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    r"""Return $u = Q^\top z$ and $\log \lvert L_{dd} \rvert$ of $J = Q L$, in float64."""
    q, r = torch.linalg.qr(jacobian.double().flip(2))
    u = (q.mT @ z.double().unsqueeze(2)).squeeze(2).flip(1)
    return u, r.diagonal(dim1=1, dim2=2).abs().log().flip(1)


def _jacobian(
    encode: Callable[[Tensor, Tensor | None], Tensor], v: Tensor, vector: Tensor | None
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D D"]]:
    """Return z and dz/dv of each event; copies of an event give the rows, one backward pass for all copies."""
    dims = v[0].numel()
    at_once = max(1, min(dims, COPIES // dims))
    outputs, jacobians = [], []
    for i, one in enumerate(v):
        rows = []
        for start in range(0, dims, at_once):
            count = min(at_once, dims - start)
            with torch.enable_grad():
                copies = one.detach().expand(count, *one.shape).clone().requires_grad_()
                z = encode(copies, None if vector is None else vector[i].expand(count, *vector.shape[1:])).flatten(1)
                (slopes,) = torch.autograd.grad(z[torch.arange(count), start + torch.arange(count)].sum(), copies)
            rows.append(slopes.flatten(1))
        outputs.append(z[0].detach())
        jacobians.append(torch.cat(rows))
    return torch.stack(outputs), torch.stack(jacobians)
