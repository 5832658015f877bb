r"""Convolutional networks: residual networks, and plain networks of the same layers without shortcuts.

A residual block computes $y = \text{ReLU}(x + F(x))$ with two or three convolutions F; a plain block computes
$y = \text{ReLU}(F(x))$. Batch norm (`loglik.networks.norms`) follows each convolution. B batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loglik.networks.norms import make_norm
from loglik.regions import region

__all__ = ["ConvNet", "ResNet"]

STEMS = {"small": 1, "strided": 2, "large": 4}


class ResNet(nn.Module):
    """Images to `outputs` features: a stem, stages of residual blocks, and the mean over positions.

    Args:
        channels: C of the images.
        widths: channels of each stage; each stage after the first halves the image.
        blocks: number of blocks of each stage.
        block: `basic`, two 3×3 convolutions; or `bottleneck`, 1×1, 3×3 (with the stride) and 1×1 to 4x the width.
        stem: `small`, 3×3; `strided`, 3×3 with stride 2; `large`, 7×7 with stride 2 and 3×3 max pooling with stride 2.
        residual: whether blocks have shortcuts: the identity, or a 1×1 convolution where the shape changes (the
            paper's option B).
        norm: `batch` or `none`; convolutions have a bias only without a norm.

    `ResNet(3, stem="large")` is ResNet-18, with blocks (3, 4, 6, 3) of bottlenecks ResNet-50; n blocks of widths
    16, 32, 64 make the 6n + 2 layers of the CIFAR family.

    Weights start normal with variance 2 / fan-out (He et al. 2015, "Delving deep into rectifiers"). The last norm of a
    residual block starts at zero, so that blocks start as the identity (Goyal et al. 2017, "Accurate, large minibatch
    SGD"). Without a norm, the last convolution starts at zero (Zhang et al. 2019, "Fixup initialization").

    Raises:
        ValueError: images with another number of channels, or smaller than the total stride; in training, a batch
            with a single value per channel for batch norm.

    Reference: He et al. 2016, "Deep residual learning for image recognition".
    """

    def __init__(
        self,
        channels: int,
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        block: str = "basic",
        stem: str = "small",
        residual: bool = True,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths:
            raise ValueError(f"give one number of blocks for each width, got {len(blocks)} for {len(widths)} widths")
        if min(blocks) < 1:
            raise ValueError(f"each stage needs at least 1 block, got {tuple(blocks)}")
        if block not in ("basic", "bottleneck"):
            raise ValueError(f"unknown block {block!r}: use basic or bottleneck")
        if stem not in STEMS:
            raise ValueError(f"unknown stem {stem!r}: use {', '.join(STEMS)}")
        if norm not in ("batch", "none"):
            raise ValueError(f"unknown norm {norm!r}: use batch or none")
        self.channels, self.norm = channels, norm
        self.stride = STEMS[stem] * 2 ** (len(widths) - 1)
        first = {"small": (3, 1), "strided": (3, 2), "large": (7, 2)}[stem]
        self.stem = _convolution(channels, widths[0], *first, norm)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if stem == "large" else nn.Identity()
        self.stages = nn.ModuleList()
        inputs = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = nn.Sequential()
            for index in range(count):
                stride = 2 if number > 0 and index == 0 else 1
                stage.append(_Block(inputs, width, stride, block == "bottleneck", residual, norm))
                inputs = stage[-1].outputs  # type: ignore[assignment]
            self.stages.append(stage)
        self.outputs = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Block) and residual:
                nn.init.zeros_(module.convolutions[-1][-1].weight)  # type: ignore[index, arg-type]

    def maps(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h H2 W2"]:
        """Return the maps of the last stage, before the mean over positions."""
        if x.shape[1] != self.channels:
            raise ValueError(f"this network expects images of {self.channels} channels, got {tuple(x.shape[1:])}")
        if min(x.shape[-2:]) < self.stride:
            raise ValueError(
                f"images of {x.shape[-2]}×{x.shape[-1]} are smaller than the network's stride {self.stride}: use fewer "
                "stages, a smaller stem or larger images"
            )
        if self.training and self.norm == "batch" and len(x) == 1 and max(x.shape[-2:]) <= self.stride:
            raise ValueError(
                "batch norm needs at least 2 examples per batch in training where maps shrink to 1×1, got 1: use "
                "norm='none', a larger batch or larger images"
            )
        h = self.pool(F.relu(self.stem(x)))
        for stage in self.stages:
            h = stage(h)
        return h

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h"]:
        return self.maps(x).mean((2, 3))


class ConvNet(ResNet):
    """A plain convolutional network: a `ResNet` of the same stages without shortcuts."""

    def __init__(
        self,
        channels: int,
        *,
        widths: Sequence[int] = (64, 128, 256),
        blocks: Sequence[int] = (1, 1, 1),
        stem: str = "small",
        norm: str = "batch",
    ) -> None:
        super().__init__(channels, widths=widths, blocks=blocks, stem=stem, residual=False, norm=norm)


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, residual: bool, norm: str) -> None:
        super().__init__()
        self.outputs = 4 * width if bottleneck else width
        shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, self.outputs, 1, 1)]
        self.convolutions = nn.ModuleList([_convolution(*shape, norm) for shape in shapes])
        self.residual = residual
        same = stride == 1 and inputs == self.outputs
        self.shortcut = _convolution(inputs, self.outputs, 1, stride, norm) if residual and not same else nn.Identity()

    @region
    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        h = x
        for number, convolution in enumerate(self.convolutions):
            h = convolution(F.relu(h) if number else h)
        if not self.residual:
            return F.relu(h)
        # in place on the sum, which no module returned: outputs that hooks can see are not overwritten
        return F.relu(h + self.shortcut(x), inplace=True)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, norm: str) -> nn.Sequential:
    """Return a padded convolution, which shrinks maps only by its stride, and its norm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=norm == "none")
    layers = [convolution] if norm == "none" else [convolution, make_norm(norm, outputs, image=True)]
    return nn.Sequential(*layers)
