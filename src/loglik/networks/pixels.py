"""The network of an image coupling: convolutions from channels to channels."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PixelConditioner"]


class PixelConditioner(nn.Module):
    r"""Convolutions 3×3, 1×1 and 3×3 with SiLU between them: (B, C, H, W) to (B, O, H, W).

    Args:
        inputs, outputs: numbers of input and output channels, C and O.
        width: number of hidden channels.
        context: width of a context vector, mapped linearly and added at every pixel; 0 for none.

    The last convolution starts at zero.

    Reference: Kingma and Dhariwal 2018, "Glow", section 4, without its norms.
    """

    def __init__(self, inputs: int, outputs: int, width: int, *, context: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.given = nn.Linear(context, width) if context else None  # saved weights have this name
        self.middle = nn.Conv2d(width, width, 1)
        self.output = nn.Conv2d(width, outputs, 3, padding=1)
        nn.init.zeros_(self.output.weight)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)

    def forward(
        self, x: Float[Tensor, "B C H W"], context: Float[Tensor, "B E"] | None = None
    ) -> Float[Tensor, "B O H W"]:
        h = self.first(x)
        if self.given is not None:
            h = h + self.given(context)[:, :, None, None]
        h = nn.functional.silu(self.middle(nn.functional.silu(h)))
        return self.output(h)
