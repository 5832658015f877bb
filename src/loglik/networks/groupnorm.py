r"""Group norm, a scale and shift for each example, and SiLU, as one step.

$y = \text{SiLU}\left((\gamma \hat x + \beta)(1 + s) + b\right)$ with $\hat x = (x - \mu)/\sqrt{v + \varepsilon}$, whose
mean μ and variance v are those of a group of channels of one example. B batch, C channels, H W image, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

__all__ = ["NormActivation"]


class NormActivation(nn.Module):
    """Group norm, then the scale and shift of a vector if there is one, then SiLU.

    Args:
        channels, groups: C and G.
        context: width of a vector that gives each example a scale and a shift of its own; 0 for none.

    The vector's map starts at zero, so that a network starts without modulation. Raises ValueError where the groups do
    not divide the channels.

    Sources: Wu and He 2018, "Group normalization"; Dhariwal and Nichol 2021, "Diffusion models beat GANs", section 3.1.
    """

    def __init__(self, channels: int, groups: int = 8, *, context: int = 0, eps: float = 1e-5) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"{channels} channels must be a multiple of the number of groups {groups}")
        self.groups, self.eps = groups, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.modulation = nn.Linear(context, 2 * channels) if context else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Shaped[Tensor, "B C H W"], context: Float[Tensor, "B E"] | None = None
    ) -> Shaped[Tensor, "B C H W"]:
        scale, shift = self.weight.expand(len(x), -1), self.bias.expand(len(x), -1)
        if self.modulation is not None:
            more, add = self.modulation(context).to(scale.dtype).chunk(2, dim=1)
            scale, shift = scale * (1 + more), shift * (1 + more) + add
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return _plain(x, scale, shift, self.groups, self.eps)
        return _NormActivation.apply(x, scale, shift, self.groups, self.eps)[0]


def _plain(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
    normed = F.group_norm(x, groups, eps=eps)
    return F.silu(torch.addcmul(_maps(shift, x), normed, _maps(scale, x)))


class _NormActivation(torch.autograd.Function):
    """`_plain` in few passes over channels-last memory, where torch's group norm is slow, with its gradient by hand.

    Norm, scale and shift are one multiplication and one addition per channel, $u = a x + c$, from the sums of x and x².
    """

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Any:
        mean = _per_group(_sum(x), x, groups)
        variance = _per_group(_sum(x.square()), x, groups) - mean.square()
        rstd = (variance.clamp_min(0) + eps).rsqrt()
        return F.silu(_affine(x, scale, shift, mean, rstd), inplace=True), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, scale, shift, ctx.groups, ctx.eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, scale, shift, mean, rstd)

    @staticmethod
    def backward(ctx: Any, by_y: Tensor, *_: Tensor) -> Any:
        x, scale, shift, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            y = _plain(x, scale, shift, ctx.groups, ctx.eps)
            return *torch.autograd.grad(y, (x, scale, shift), by_y, create_graph=True), None, None
        by_u = torch.ops.aten.silu_backward(by_y, _affine(x, scale, shift, mean, rstd))
        by_shift = _sum(by_u)
        by_scale = (_sum(by_u * x) - by_shift * mean) * rstd
        # ∂x = r (γ ∂u - the group's mean of γ ∂u - x̂ times its mean of γ ∂u x̂)
        straight = _per_group(scale * by_shift, x, ctx.groups)
        along = _per_group(scale * by_scale, x, ctx.groups) * rstd.square()
        by_x = torch.addcmul(_maps(along * mean - straight * rstd, x), x, _maps(-along, x))
        return by_x.addcmul_(by_u, _maps(scale * rstd, x)), by_scale, by_shift, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Any:
        def plain(x: Tensor, scale: Tensor, shift: Tensor) -> Any:
            nothing = torch.zeros_like(scale)
            return _plain(x, scale, shift, groups, eps), nothing, nothing

        return torch.vmap(plain, in_dims[:3])(x, scale, shift), (0, 0, 0)


def _sum(x: Tensor) -> Float[Tensor, "B C"]:
    return x.sum((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def _per_group(sums: Float[Tensor, "B C"], x: Tensor, groups: int) -> Float[Tensor, "B C"]:
    """The mean over each group from the sums over each channel, given back to each channel."""
    each = x.shape[1] // groups
    means = sums.unflatten(1, (groups, each)).sum(2) / (each * x.shape[2] * x.shape[3])
    return means.repeat_interleave(each, dim=1)


def _affine(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    a = scale * rstd
    return torch.addcmul(_maps(shift - a * mean, x), x, _maps(a, x))


def _maps(vectors: Float[Tensor, "B C"], like: Tensor) -> Shaped[Tensor, "B C 1 1"]:
    return vectors.to(like.dtype)[:, :, None, None]
