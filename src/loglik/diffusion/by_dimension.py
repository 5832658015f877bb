r"""The terms of a diffusion's bound by dimension of the data.

The squared residual $\lVert r \rVert^2$ and the reconstruction are sums over dimensions. The control variate is a sum
over directions, $g = \sum_e g_e$; with the orthogonal basis Q a dimension d gets $\sum_e Q_{de}^2\, g_e$, of the draw
and of its mean alike. So each dimension's number is an unbiased estimate of
$-\tfrac12 \int \mathbb E\, r_d^2\, d\lambda$, and the numbers sum to the estimate that `VLB` returns for the same draw.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.diffusion.chain import prior_term
from loglik.diffusion.control import BINS, Control, Tables, bins_of
from loglik.diffusion.likelihood import Model, draw_noise
from loglik.diffusion.reconstruction import Codes, Levels, gaussian_reconstruction

__all__ = ["bound_by_dimension"]


def bound_by_dimension(
    model: Model, x: Shaped[Tensor, "B ..."], v: Float[Tensor, "B ..."], u: Float[Tensor, " B"]
) -> dict[str, Float[Tensor, "B D"]]:
    """Return reconstruction, prior and diffusion of the bound in continuous time, by dimension of x.

    The random numbers are those of `VLB.terms`, in the same order.
    """
    high, low = model.schedule.ends(v)
    diffusion = _diffusion(model, v, u)
    prior = prior_term(v.reshape(-1, 1), low).view(len(v), -1)
    owned = {"prior": _of_data(model, prior), "diffusion": _of_data(model, diffusion)}
    return {"reconstruction": _reconstruction(model, x, v, high), **owned}


def _diffusion(model: Model, v: Tensor, u: Tensor) -> Float[Tensor, "B V"]:
    control, ends = model.control, model.schedule.ends(v)
    tables = control.integral(model.schedule, v)
    projected = control.project(v, tables)
    c = control.coefficients.to(v)
    logsnr, density = control.draw(u, ends)
    draw = draw_noise(model, v, logsnr)
    eta = draw.epsilon.flatten(1)
    eta = eta if tables.basis is None else eta @ tables.basis
    p = torch.sigmoid(logsnr.unsqueeze(1) + tables.log_variance)
    variate = (p * (eta - torch.exp(-0.5 * logsnr).unsqueeze(1) * projected)).square()
    variate = variate * (c[bins_of(logsnr, tables.edges)] @ tables.groups.T)
    slope = (c.unsqueeze(2) * tables.slope).sum((0, 1))
    expected = projected.square() * slope + _offsets(control, tables)
    spread = None if tables.basis is None else tables.basis.square().T
    known = expected - variate / density.unsqueeze(1)
    known = known if spread is None else known @ spread
    return -0.5 * (known + draw.residual.flatten(1).square() / density.unsqueeze(1))


def _offsets(control: Control, tables: Tables) -> Float[Tensor, " V"]:
    r"""Return $\sum_b c_b\, [\log(1 + e^y) - \varsigma(y)]$ over the bins b, of each direction."""
    width = (tables.high - tables.low) / BINS
    starts = tables.low + width * torch.arange(BINS, device=tables.high.device)
    y = starts.unsqueeze(1) + tables.log_variance
    rise = F.softplus(y + width) - F.softplus(y) - torch.sigmoid(y + width) + torch.sigmoid(y)
    c = control.coefficients.to(y) @ tables.groups.T
    return (c * rise).sum(0)


def _reconstruction(model: Model, x: Tensor, v: Tensor, high: Tensor) -> Float[Tensor, "B D"]:
    rule = model.reconstruction
    if isinstance(rule, Levels):
        seen = v + torch.exp(-0.5 * high) * torch.randn_like(v)
        each = (x.reshape(-1, 1), v.reshape(-1, 1), seen.reshape(-1, 1))
        return rule.log_prob(*each, high).view(len(v), -1)
    each_real = gaussian_reconstruction(1, high)
    if not isinstance(rule, Codes):
        return each_real.expand(len(v), math.prod(v.shape[1:]))
    own = v[:, rule.real_dims :]
    seen = (own + torch.exp(-0.5 * high) * torch.randn_like(own)) * high.exp()
    log_p = torch.cat([block.log_softmax(1) for block in seen.split(rule.counts, 1)], 1) * own
    return _of_data(model, torch.cat([each_real.expand(len(v), rule.real_dims), log_p], 1))


def _of_data(model: Model, values: Float[Tensor, "B V"]) -> Float[Tensor, "B D"]:
    """Sum over the parts of v that stand for one dimension of the data, such as a code's one-hot vector."""
    rule = model.reconstruction
    if not isinstance(rule, Codes):
        return values
    return values.new_zeros(len(values), rule.dims).index_add(1, rule.owner, values)
