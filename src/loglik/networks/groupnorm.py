r"""Group norm, a scale and shift for each example, and SiLU, as one step.

$y = \text{SiLU}\left((\gamma \hat x + \beta)(1 + s) + b\right)$ with $\hat x = (x - \mu)/\sqrt{v + \varepsilon}$, whose
mean μ and variance v are those of a group of channels of one example. B batch, C channels, H W image, G groups.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.cpu import groupnorm

__all__ = ["NormActivation"]


class NormActivation(nn.Module):
    r"""Group norm, then a scale and shift for each example, then SiLU.

    $y = \text{SiLU}\left((\gamma \hat x + \beta)(1 + s) + b\right)$, where $(s, b) = W c + d$ for a context vector c,
    and zeros without one.

    Args:
        channels, groups: C and G.
        context: width of the context vector; 0 for none.
        eps: ε, added to each variance.

    W and d start at zero, so that a network starts without modulation. Raises ValueError where the groups do not divide
    the channels.

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
            s, b = self.modulation(context).to(scale.dtype).chunk(2, dim=1)
            scale, shift = scale * (1 + s), shift * (1 + s) + b
        return _operation(x.device.type)(x, scale, shift, self.groups, self.eps)


def _operation(device: str) -> Callable[..., Tensor]:
    """Return the operation for a type of device."""
    if device == "cuda":
        from loglik.gpu.groupnorm import group_norm_silu  # imports Triton, which takes a second

        return group_norm_silu
    return groupnorm.group_norm_silu
