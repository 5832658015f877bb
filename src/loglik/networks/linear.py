"""A linear map over sequences that is fast on processors of every make."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

__all__ = ["Linear"]

SIDE = 16  # positions in a row of the image that a sequence is taken for
FEWEST = 1024  # rows from which on the choice of kernel counts


class Linear(nn.Linear):
    """`nn.Linear`, by a convolution of kernel 1 where many float32 vectors are mapped on a processor.

    It is the same map of the same memory: (B, T, E) is an image (B, E, T/16, 16) in channels-last order. torch's
    convolutions are oneDNN's, which uses all of a processor's vector units; its float32 products are MKL's, which does
    so on Intel's only (elsewhere they are half as fast).
    """

    def forward(self, x: Shaped[Tensor, "*B E"]) -> Shaped[Tensor, "*B F"]:
        if not _as_image(x):
            return F.linear(x, self.weight, self.bias)
        batch, length, width = x.shape
        image = x.view(batch, length // SIDE, SIDE, width).permute(0, 3, 1, 2)
        y = F.conv2d(image, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(batch, length, self.out_features)


def _as_image(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.dim() == 3
        and x.shape[1] % SIDE == 0
        and x.shape[0] * x.shape[1] >= FEWEST
        and x.is_contiguous()
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
