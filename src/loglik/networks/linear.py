"""A linear map of many vectors that is fast on processors of every make."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

__all__ = ["Linear"]

IMAGES, SIDE = 16, 8  # that the vectors are taken for: so many images, this many vectors wide
FEWEST = 128  # vectors from which on the choice of kernel counts


class Linear(nn.Linear):
    """`nn.Linear`, by a convolution of kernel 1 where many float32 vectors are mapped on a processor.

    It is the same map of the same memory: M vectors of E numbers are images (16, E, M/128, 8) in channels-last order.
    torch's convolutions are oneDNN's (on one thread from 16 images on), which use all of a processor's vector units;
    its float32 products are MKL's, which do so on Intel's only, and elsewhere are half as fast.
    """

    def forward(self, x: Shaped[Tensor, "*B E"]) -> Shaped[Tensor, "*B F"]:
        if not _as_images(x):
            return F.linear(x, self.weight, self.bias)
        images = x.view(IMAGES, -1, SIDE, self.in_features).permute(0, 3, 1, 2)
        y = F.conv2d(images, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


def _as_images(x: Tensor) -> bool:
    vectors = x.numel() // x.shape[-1]
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and vectors >= FEWEST
        and vectors % (IMAGES * SIDE) == 0
        and x.is_contiguous()
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
