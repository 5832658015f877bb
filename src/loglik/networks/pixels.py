"""The network of a coupling of images: from channels to channels at every pixel."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PixelConditioner"]


class PixelConditioner(nn.Module):
    r"""3×3, then 1×1, then 3×3 convolutions with SiLU between: (B, C, H, W) to (B, O, H, W).

    Args:
        inputs, outputs: channels in and out.
        width: channels between.
        context: width of a context vector that is added at every pixel; 0 for none.

    Source: Kingma and Dhariwal 2018, "Glow", section 4, without its norms.
    """

    def __init__(self, inputs: int, outputs: int, width: int, *, context: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.given = nn.Linear(context, width) if context else None
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
