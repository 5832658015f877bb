r"""Vision Transformer, hybrid if convolutions precede it (the notes, part B of the hybrid vision Transformer).

An image is cut into P × P patches. One linear map (a convolution of kernel and stride P) maps each patch to a vector of
width E. Positions are added, and an encoder of self-attention reads the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loglik.networks.norms import make_norm
from loglik.networks.positions import sinusoids
from loglik.networks.transformer import Encoder

__all__ = ["ViT"]


class ViT(nn.Module):
    """Images of a fixed shape to `outputs` = E features.

    Args:
        shape: (C, H, W) of the images.
        patch: P, in pixels, or in positions of the stem's maps.
        stem: widths of 3×3 convolutions before the patches, each with stride 2, batch norm and ReLU; empty for none.
        width, depth, heads: of the encoder.
        positions: `learned`, `sinusoidal` (by the index of the patch), or `none`.
        pool: `mean` over the patches, or `class` for the features of a learned class token.
        dropout: the fraction dropped after the positions and in the encoder, in training.

    Raises:
        ValueError: patches that do not tile the maps; images of another shape; in training, a batch of one if the
            stem's maps shrink to 1×1.

    References: Dosovitskiy et al. 2021, "An image is worth 16×16 words", section 3.1; for the stem Xiao et al. 2021,
    "Early convolutions help transformers see better".
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        patch: int = 4,
        stem: Sequence[int] = (),
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        positions: str = "learned",
        pool: str = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, image_width = shape
        self.shape, self.pool = tuple(shape), pool
        layers: list[nn.Module] = []
        for after in stem:
            convolution = nn.Conv2d(channels, after, 3, 2, padding=1, bias=False)
            layers += [convolution, make_norm("batch", after, image=True), nn.ReLU()]
            channels, height, image_width = after, (height + 1) // 2, (image_width + 1) // 2
        if patch < 1 or height % patch or image_width % patch:
            raise ValueError(f"patches of {patch} do not tile maps of {height}×{image_width}: use a divisor of both")
        if positions not in ("learned", "sinusoidal", "none"):
            raise ValueError(f"unknown positions {positions!r}: use learned, sinusoidal or none")
        if pool not in ("mean", "class"):
            raise ValueError(f"unknown pool {pool!r}: use mean or class")
        self.stem = nn.Sequential(*layers)
        self.maps = (height, image_width)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        count = (height // patch) * (image_width // patch) + (pool == "class")
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if pool == "class" else None
        self.positions: Tensor | None
        if positions == "learned":
            self.positions = nn.Parameter(torch.empty(count, width).normal_(std=0.02))
        else:
            table = sinusoids(count, width) if positions == "sinusoidal" else None
            self.register_buffer("positions", table, persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(width, depth, heads, dropout=dropout)
        self.outputs = width

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E"]:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this network expects images of shape {self.shape}, got {tuple(x.shape[1:])}")
        if self.training and len(self.stem) and len(x) == 1 and self.maps == (1, 1):
            raise ValueError(
                "batch norm needs at least 2 examples per batch in training where maps shrink to 1×1, got 1: use a "
                "shorter stem or a larger batch"
            )
        h = self.patches(self.stem(x)).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            h = torch.cat([self.class_token.expand(len(h), -1, -1), h], dim=1)
        if self.positions is not None:
            h = h + self.positions
        h = self.encoder(self.dropout(h))
        return h[:, 0] if self.class_token is not None else h.mean(1)
