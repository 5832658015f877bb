r"""The U-Net of diffusion models: residual convolutions at several resolutions, joined by shortcuts.

Level l works at $1/2^l$ of the image's size. On the way down, a convolution of stride 2 separates levels; on the way
up, its transpose. A block on the way up also reads the output of its counterpart on the way down. A block computes
$h \leftarrow h + W_2\,n(W_1\,n(h), c)$, where n is group norm and SiLU, modulated by an optional vector c. B batch,
C channels, H W image, E width of the vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.networks.attention import SelfAttention
from loglik.networks.groupnorm import NormActivation
from loglik.regions import region

__all__ = ["UNet"]


class UNet(nn.Module):
    """Images (B, C, H, W) and a vector (B, E) to images of the same size.

    Args:
        channels: C of the images.
        outputs: O, channels of the output; C if None.
        width: channels of the first level.
        multipliers: for each level, the factor of its width; each level has half the size of the one before.
        blocks: number of residual blocks of each level, on the way down and again on the way up.
        attention: the levels whose blocks are followed by self-attention over all positions.
        heads: number of attention heads.
        context: E, the width of a vector (time, label) that scales and shifts every block; 0 for none.
        groups: number of groups of the group norms.
        dropout: the fraction dropped within the blocks, in training.

    An image whose sides are no multiples of the total stride is padded with zeros at the right and below, and the
    output is cropped. The last map of each block and of the network starts at zero, so that the network's first
    outputs are zero.

    Raises:
        ValueError: groups or heads that do not divide a width; images with another number of channels.

    References: Ronneberger et al. 2015, "U-Net"; Ho et al. 2020, "Denoising diffusion probabilistic models",
    appendix B.
    """

    def __init__(
        self,
        channels: int,
        outputs: int | None = None,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (2,),
        heads: int = 4,
        context: int = 0,
        groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        levels = len(multipliers)
        if not levels or min(multipliers) < 1 or blocks < 1:
            raise ValueError(f"use multipliers and blocks of at least 1, got {tuple(multipliers)} and {blocks}")
        if not set(attention) <= set(range(levels)):
            raise ValueError(f"attention must name levels among 0 ... {levels - 1}, got {tuple(attention)}")
        self.channels, self.outputs = channels, outputs or channels
        self.stride = 2 ** (levels - 1)
        widths = [width * m for m in multipliers]
        vector = 4 * width if context else 0
        self.embedding = (
            nn.Sequential(nn.Linear(context, vector), nn.SiLU(), nn.Linear(vector, vector), nn.SiLU())
            if context
            else None
        )

        def block(inputs: int, level: int, attends: bool) -> _Block:
            return _Block(inputs, widths[level], vector, groups, heads if attends else 0, dropout)

        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            if level:
                self.shrink.append(nn.Conv2d(widths[level - 1], widths[level], 2, stride=2))
                self.grow.append(nn.ConvTranspose2d(widths[level], widths[level - 1], 2, stride=2))
            inputs = width if level == 0 else widths[level]
            attends = level in attention
            self.down.append(
                nn.ModuleList([block(widths[level] if i else inputs, level, attends) for i in range(blocks)])
            )
            self.up.append(nn.ModuleList([block(2 * widths[level], level, attends) for _ in range(blocks)]))
        self.middle = nn.ModuleList([block(widths[-1], levels - 1, levels - 1 in attention)])
        self.norm = NormActivation(width, groups)
        self.output = nn.Conv2d(width, self.outputs, 3, padding=1)
        nn.init.zeros_(self.output.weight)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)

    def forward(
        self, x: Float[Tensor, "B C H W"], context: Float[Tensor, "B E"] | None = None
    ) -> Shaped[Tensor, "B O H W"]:
        if x.shape[1] != self.channels:
            raise ValueError(f"this network expects images of {self.channels} channels, got {tuple(x.shape[1:])}")
        vector = None if self.embedding is None else self.embedding(context)
        height, width = x.shape[2:]
        below, right = (-height) % self.stride, (-width) % self.stride
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        h = self.stem(x.contiguous(memory_format=torch.channels_last))
        shortcuts = []
        for level, blocks in enumerate(self.down):
            if level:
                h = self.shrink[level - 1](h)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, vector)
                shortcuts.append(h)
        for block in self.middle:
            h = block(h, vector)
        for level in reversed(range(len(self.up))):
            for block in self.up[level]:  # type: ignore[attr-defined]
                h = block(torch.cat([h, shortcuts.pop()], dim=1), vector)
            if level:
                h = self.grow[level - 1](h)
        return self.output(self.norm(h))[:, :, :height, :width]


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, context: int, groups: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.first_norm = NormActivation(inputs, groups)
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.second_norm = NormActivation(width, groups, context=context)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()
        self.attention = _ImageAttention(width, heads, groups) if heads else None
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    @region
    def forward(
        self, x: Shaped[Tensor, "B C H W"], context: Shaped[Tensor, "B E"] | None = None
    ) -> Shaped[Tensor, "B C2 H W"]:
        h = self.first(self.first_norm(x))
        h = self.second(self.dropout(self.second_norm(h, context)))
        h = self.shortcut(x) + h
        return h if self.attention is None else self.attention(h)


class _ImageAttention(nn.Module):
    """Self-attention over the positions of an image, added to the image."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.attention = SelfAttention(width, heads)
        nn.init.zeros_(self.attention.output.weight)

    def forward(self, x: Shaped[Tensor, "B C H W"]) -> Shaped[Tensor, "B C H W"]:
        tokens = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        added = self.attention(tokens).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return x + added
