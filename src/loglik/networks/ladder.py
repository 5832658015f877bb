r"""The two networks of a ladder VAE: bottom-up features of an image, and the top-down network of latents.

Level l has maps of height $\lceil H / 2^{l+1} \rceil$: the first convolution halves the image, and a pixel shuffle at
the end doubles it. Blocks are residual, $h + F(h)$ with two 3×3 convolutions after SiLU, and start as the identity.
B batch, C channels, H W image, Z channels of a latent, E width of a context.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loglik.regions import region

__all__ = ["Pyramid", "TopDown"]


class Pyramid(nn.Module):
    """Features of an image for each group of latents, from coarse to fine.

    Args:
        channels: C.
        widths: channels of each level, from fine to coarse.
        blocks: number of residual blocks of each level.
        groups: for each level, how many groups of latents read its features.
        context: E, the width of a vector that is added to the first features; 0 for none.
    """

    def __init__(
        self, channels: int, *, widths: Sequence[int], blocks: Sequence[int], groups: Sequence[int], context: int = 0
    ) -> None:
        super().__init__()
        self.groups = list(groups)
        self.stem = nn.Conv2d(channels, widths[0], 5, stride=2, padding=2)
        self.context = nn.Linear(context, widths[0]) if context else None
        self.down = nn.ModuleList(
            [nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in zip(widths, widths[1:], strict=False)]
        )
        self.levels = nn.ModuleList(
            [nn.Sequential(*[_Residual(w) for _ in range(n)]) for w, n in zip(widths, blocks, strict=True)]
        )

    def forward(
        self, x: Float[Tensor, "B C H W"], context: Float[Tensor, "B E"] | None = None
    ) -> list[Float[Tensor, "B W2 H2 W3"]]:
        h = self.stem(x.to(memory_format=torch.channels_last))
        if self.context is not None:
            h = h + self.context(context)[..., None, None]
        features: list[Tensor] = []
        for number, level in enumerate(self.levels):
            if number:
                h = self.down[number - 1](F.silu(h))
            h = level(h)
            features = [h] * self.groups[number] + features
        return features


class TopDown(nn.Module):
    """The top-down network, from the coarsest group of latents to the outputs for each pixel.

    Args:
        height, image_width: H and W.
        outputs: number of outputs for each pixel.
        widths: channels of each level, from fine to coarse.
        latents: Z of each level.
        groups: for each level, its number of groups of latents, with one block each; at least 1 at the coarsest level.
        context: E, the width of a vector that is added to the first map; 0 for none.

    Attributes:
        shapes: (Z, h, w) of each group's latents, from coarse to fine.
        steps: for each group, its prior, its posterior and the block that its latents enter.
    """

    def __init__(
        self,
        height: int,
        image_width: int,
        outputs: int,
        *,
        widths: Sequence[int],
        latents: Sequence[int],
        groups: Sequence[int],
        context: int = 0,
    ) -> None:
        super().__init__()
        if groups[-1] < 1:
            raise ValueError(f"the coarsest level needs at least 1 group of latents, got {tuple(groups)}")
        levels = range(len(widths))
        self.sides = [(-(-height // 2 ** (level + 1)), -(-image_width // 2 ** (level + 1))) for level in levels]
        self.height, self.image_width, self.groups = height, image_width, list(groups)
        self.first = nn.Parameter(torch.zeros(1, widths[-1], *self.sides[-1]))
        self.context = nn.Linear(context, widths[-1]) if context else None
        self.shapes: list[tuple[int, int, int]] = []
        self.steps = nn.ModuleList()
        for level in reversed(levels):
            for group in range(groups[level]):
                up = None if group or level == levels[-1] else self._up(level, widths)
                step = _Step(widths[level], latents[level], first=not self.shapes, up=up)
                self.steps.append(step)
                self.shapes.append((latents[level], *self.sides[level]))
        last = next(level for level in levels if groups[level])
        self.rise = nn.ModuleList([_Up(widths[n + 1], widths[n], self.sides[n]) for n in reversed(range(last))])
        self.last = nn.Conv2d(widths[0], 4 * outputs, 3, padding=1)

    def _up(self, level: int, widths: Sequence[int]) -> nn.Module:
        above = next(n for n in range(level + 1, len(widths)) if self.groups[n])
        ups = [_Up(widths[n + 1], widths[n], self.sides[n]) for n in reversed(range(level, above))]
        return nn.Sequential(*ups)

    def start(self, n: int, context: Float[Tensor, "n E"] | None = None) -> Float[Tensor, "n W2 h w"]:
        """Return the first map for n examples: a learned constant, plus a linear map of the context."""
        h = self.first.expand(n, -1, -1, -1)
        if self.context is not None:
            h = h + self.context(context)[..., None, None]
        return h.contiguous(memory_format=torch.channels_last)

    @property
    def output(self) -> nn.Module:
        return self.last

    def finish(self, h: Float[Tensor, "B W2 h w"]) -> Float[Tensor, "B O H W"]:
        """Return the outputs for each pixel from the map after the last group."""
        for up in self.rise:
            h = up(h)
        return F.pixel_shuffle(self.last(F.silu(h)), 2)[..., : self.height, : self.image_width]


class _Step(nn.Module):
    def __init__(self, width: int, latent: int, *, first: bool, up: nn.Module | None) -> None:
        super().__init__()
        self.up = up
        self.to_prior = None if first else _zero_init(nn.Conv2d(width, 2 * latent, 1))
        self.joined = nn.Conv2d(2 * width, width, 3, padding=1)
        self.to_posterior = _zero_init(nn.Conv2d(width, 2 * latent, 1))
        self.enter = nn.Conv2d(latent, width, 1)
        self.block = _Residual(width)

    def rise(self, h: Float[Tensor, "B W2 h w"]) -> Float[Tensor, "B W3 H2 W4"]:
        """Return the map of the coarser group at this group's resolution."""
        return h if self.up is None else self.up(h)

    def prior(self, h: Float[Tensor, "B W2 h w"]) -> Float[Tensor, "B Z2 h w"]:
        """Return the parameters of p(z | coarser latents)."""
        assert self.to_prior is not None
        return self.to_prior(h)

    def posterior(self, h: Float[Tensor, "B W2 h w"], features: Float[Tensor, "B W2 h w"]) -> Float[Tensor, "B Z2 h w"]:
        """Return the parameters of q(z | x, coarser latents)."""
        return self.to_posterior(F.silu(self.joined(F.silu(torch.cat([h, features], 1)))))

    def merge(self, h: Float[Tensor, "B W2 h w"], z: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B W2 h w"]:
        """Return the map after the group's latents have entered."""
        return self.block(h + self.enter(z))


class _Up(nn.Module):
    """Upsampling by 2 to another number of channels, cropped to a fixed side."""

    def __init__(self, inputs: int, outputs: int, side: tuple[int, int]) -> None:
        super().__init__()
        self.side = side
        self.width = nn.Conv2d(inputs, outputs, 1)

    def forward(self, h: Float[Tensor, "B W h w"]) -> Float[Tensor, "B W2 h2 w2"]:
        h = F.interpolate(self.width(h), scale_factor=2, mode="nearest")
        return h[..., : self.side[0], : self.side[1]]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = _zero_init(nn.Conv2d(width, width, 3, padding=1))

    @region
    def forward(self, h: Float[Tensor, "B W h w"]) -> Float[Tensor, "B W h w"]:
        return h + self.second(F.silu(self.first(F.silu(h))))


def _zero_init(convolution: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution
