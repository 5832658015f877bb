r"""Group norm, scale and shift, and SiLU in one operation, with a fast path for CPUs.

$y = \text{SiLU}(a \hat x + c)$ with $\hat x = (x - \mu)/\sqrt{v + \varepsilon}$, whose mean μ and variance v are those
of a group of channels of one example. B batch, C channels, H W image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["group_norm_silu", "plain_group_norm_silu"]


def group_norm_silu(
    x: Shaped[Tensor, "B C H W"], scale: Float[Tensor, "B C"], shift: Float[Tensor, "B C"], groups: int, eps: float
) -> Shaped[Tensor, "B C H W"]:
    """Return SiLU(scale · group_norm(x) + shift), with a scale and a shift for each example and channel."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return plain_group_norm_silu(x, scale, shift, groups, eps)
    return _GroupNormSiLU.apply(x, scale, shift, groups, eps)[0]


def plain_group_norm_silu(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
    """Return what `group_norm_silu` returns, by torch's operations."""
    normed = F.group_norm(x, groups, eps=eps)
    return F.silu(torch.addcmul(_to_maps(shift, x), normed, _to_maps(scale, x)))


class _GroupNormSiLU(torch.autograd.Function):
    """The same in few passes over channels-last memory, where torch's group norm is slow; its gradient by hand.

    Norm, scale and shift are one multiplication and one addition per channel, from the sums of x and x².
    """

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Any:
        mean = _group_mean(_sum(x), x, groups)
        variance = _group_mean(_sum(x.square()), x, groups) - mean.square()
        rstd = (variance.clamp_min(0) + eps).rsqrt()
        return F.silu(_normalise(x, scale, shift, mean, rstd), inplace=True), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, scale, shift, ctx.groups, ctx.eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, scale, shift, mean, rstd)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> Any:
        x, scale, shift, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is itself differentiated
            y = plain_group_norm_silu(x, scale, shift, ctx.groups, ctx.eps)
            return *torch.autograd.grad(y, (x, scale, shift), grad_y, create_graph=True), None, None
        grad_u = torch.ops.aten.silu_backward(grad_y, _normalise(x, scale, shift, mean, rstd))  # u = a x̂ + c
        grad_shift = _sum(grad_u)
        grad_scale = (_sum(grad_u * x) - grad_shift * mean) * rstd
        # ∂x = r (a ∂u - E[a ∂u] - x̂ E[a ∂u x̂]), with r = 1/√(v + ε) and means E over a group
        mean_grad = _group_mean(scale * grad_shift, x, ctx.groups)
        mean_grad_x = _group_mean(scale * grad_scale, x, ctx.groups) * rstd.square()
        grad_x = torch.addcmul(_to_maps(mean_grad_x * mean - mean_grad * rstd, x), x, _to_maps(-mean_grad_x, x))
        return grad_x.addcmul_(grad_u, _to_maps(scale * rstd, x)), grad_scale, grad_shift, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Any:
        def formula(x: Tensor, scale: Tensor, shift: Tensor) -> Any:
            unused = torch.zeros_like(scale)  # in place of the mean and rstd
            return plain_group_norm_silu(x, scale, shift, groups, eps), unused, unused

        return torch.vmap(formula, in_dims[:3])(x, scale, shift), (0, 0, 0)


def _sum(x: Tensor) -> Float[Tensor, "B C"]:
    return x.sum((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def _group_mean(sums: Float[Tensor, "B C"], x: Tensor, groups: int) -> Float[Tensor, "B C"]:
    """Return for each channel the mean over its group, from the sums over each channel."""
    channels = x.shape[1] // groups
    means = sums.unflatten(1, (groups, channels)).sum(2) / (channels * x.shape[2] * x.shape[3])
    return means.repeat_interleave(channels, dim=1)


def _normalise(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    factor = scale * rstd
    return torch.addcmul(_to_maps(shift - factor * mean, x), x, _to_maps(factor, x))


def _to_maps(vectors: Float[Tensor, "B C"], like: Tensor) -> Shaped[Tensor, "B C 1 1"]:
    return vectors.to(like.dtype)[:, :, None, None]
