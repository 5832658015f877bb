"""The receptive field of a unit by the recursion, and how much each pixel changes the unit."""

import torch
from matplotlib.patches import Rectangle

from loglik.inspection import effective_field, receptive_fields
from loglik.networks import ConvNet

CAPTION = {
    "en": "The middle unit of the last maps of three plain networks at their initial weights: the square is "
    "the field by the recursion, the colour is how much each pixel changes the unit.",
    "zh": "三个普通网络（初始权重）最后一层特征图的中间单元：方框是按递推公式算出的感受野，颜色是每个像素对该单"
    "元的影响大小。",
}
SIDE = 64


def draw(plt):
    """Draw the effective field of three depths, with the square of the recursion."""
    figure, axes = plt.subplots(1, 3, figsize=(5.2, 2.1))
    for axis, blocks in zip(axes, ((1,), (1, 1), (1, 1, 1)), strict=True):
        network = ConvNet(1, widths=(8, 16, 32)[: len(blocks)], blocks=blocks)
        x = torch.randn(8, 1, SIDE, SIDE)
        last = f"stages.{len(blocks) - 1}.0"
        field = next(field for field in receptive_fields(network, x) if field.layer == last)
        (top, bottom), (left, right) = field.seen
        axis.imshow(effective_field(network, x, last, draws=8), cmap="viridis")
        axis.add_patch(
            Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, fill=False, edgecolor="#f2a65a")
        )
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"{1 + 2 * len(blocks)} layers: {field.size[0]}×{field.size[1]}", fontsize=10)
    return figure
