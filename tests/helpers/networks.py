"""Networks to inspect: residual networks written out here, and the vision networks of the library."""

import torch
from torch import nn

from loglik.networks import ConvNet, ResNet, ViT


class Block(nn.Module):
    """A residual block, with a projection where the shapes differ; the sum is in place, as many write it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        h += self.shortcut(x)
        return self.act(h)


def resnet(channels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 7, 2, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        Block(4, 4, dilation=2),
        Block(4, 6, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


VISION = {
    "resnet": lambda: ResNet(1, widths=(4, 8), blocks=(2, 1)),
    "bottlenecks": lambda: ResNet(1, widths=(4, 8), blocks=(1, 1), block="bottleneck", stem="large"),
    "plain": lambda: ConvNet(1, widths=(4, 8), blocks=(1, 1), norm="none"),
    "vit": lambda: ViT((1, 96, 96), patch=16, width=8, depth=1, heads=2),
    "hybrid": lambda: ViT((1, 96, 96), patch=8, stem=(4,), width=8, depth=2, heads=2, pool="class"),
}
