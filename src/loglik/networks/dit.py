r"""The diffusion Transformer: a vision Transformer from images to images, whose blocks a vector modulates.

A block adds $g \odot f((1 + s) \odot \text{norm}(h) + b)$ to its input h, for attention f and again for an MLP f. The
scale s, shift b and gate g are linear in the vector. B batch, C channels, H W image, E width of the vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.networks.transformer import BlockSettings, Encoder

__all__ = ["DiT"]


class DiT(nn.Module):
    """Images (B, C, H, W) of a fixed shape and a vector (B, E) to images of the same size.

    Args:
        shape: (C, H, W) of the images.
        outputs: O, channels of the output; C if None.
        patch: P, the side of the patches that form the sequence.
        width, depth, heads: of the encoder.
        context: E, the width of the vector (time, label).
        dropout: the fraction dropped in the encoder, in training.
        settings: of the encoder's blocks.

    An image that the patches do not tile is padded with zeros at the right and below, and the output is cropped. Gates
    and the last map start at zero (adaLN-Zero): blocks start as the identity, and the network's first outputs are zero.

    Raises:
        ValueError: a patch below 1; images of another shape; heads that do not divide the width.

    Reference: Peebles and Xie 2023, "Scalable diffusion models with Transformers", section 3.2.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int | None = None,
        *,
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        context: int,
        dropout: float = 0.0,
        settings: BlockSettings | None = None,
    ) -> None:
        super().__init__()
        if patch < 1:
            raise ValueError(f"patch must be at least 1, got {patch}")
        channels, height, image_width = shape
        self.shape, self.patch, self.outputs = tuple(shape), patch, outputs or channels
        count = -(-height // patch) * -(-image_width // patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(torch.empty(count, width).normal_(std=0.02))
        self.embedding = nn.Sequential(nn.Linear(context, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.encoder = Encoder(width, depth, heads, dropout=dropout, settings=settings)
        self.modulations = nn.ModuleList([nn.Linear(width, 6 * width) for _ in range(depth)])
        self.last = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, patch * patch * self.outputs)
        for layer in (*self.modulations, self.last, self.output):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "B C H W"], context: Float[Tensor, "B E"]) -> Shaped[Tensor, "B O H W"]:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this network expects images of shape {self.shape}, got {tuple(x.shape[1:])}")
        height, image_width = x.shape[2:]
        x = F.pad(x, (0, -image_width % self.patch, 0, -height % self.patch))
        maps = self.patches(x)
        h = maps.flatten(2).transpose(1, 2) + self.positions
        vector = self.embedding(context)
        for block, modulation in zip(self.encoder.blocks, self.modulations, strict=True):
            h = block(h, modulation=modulation(vector))
        scale, shift = (m.unsqueeze(1) for m in self.last(vector).chunk(2, dim=1))
        h = self.output(torch.addcmul(shift, self.encoder.norm(h), 1 + scale))
        rows, columns = maps.shape[2:]
        h = h.view(len(x), rows, columns, self.patch, self.patch, self.outputs)
        h = h.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.outputs, rows * self.patch, columns * self.patch)
        return h[:, :, :height, :image_width]
