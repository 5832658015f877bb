"""A network of two ReLUs a layer, composed with itself: each layer doubles the number of linear pieces."""

import torch
import torch.nn.functional as F

CAPTION = {
    "en": "A layer of two ReLUs, applied 1, 3 and 5 times: 2, 8 and 32 linear pieces.",
    "zh": "两个 ReLU 组成的一层，分别复合 1、3、5 次：得到 2、8、32 段线性函数。",
}


def draw(plt):
    """Draw the composed function after 1, 3 and 5 layers."""
    grid = torch.linspace(0, 1, 2**9 + 1)
    figure, axes = plt.subplots(1, 3, sharey=True, figsize=(6.4, 2.6))
    y, depth = grid, 0
    for axis, layers in zip(axes, (1, 3, 5), strict=True):
        while depth < layers:
            y, depth = 2 * F.relu(y) - 4 * F.relu(y - 0.5), depth + 1
        axis.plot(grid, y, color="#2a7fb8", linewidth=1.4)
        axis.set(title=f"L = {layers}", xlabel="x")
    return figure
