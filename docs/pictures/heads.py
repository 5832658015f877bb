"""What the heads of a ViT attend to, for one patch of a digit."""

from functools import cache

import torch

import loglik
from loglik.data import load

CAPTION = {
    "en": "A digit, and what four heads of one layer attend to from its patch marked +, after 100 steps: each "
    "head differently.",
    "zh": "一个数字，以及训练 100 步后，同一层的四个头从标 + 的图块出发各自关注的位置：各不相同。",
}
PATCHES, CENTRE = 4, 9


@cache
def trained():
    """Return a classifier of digits: one block, four heads, 4 × 4 patches of 2 × 2 pixels."""
    options = {"network": "vit", "stem": "none", "patch": 2, "width": 128, "depth": 1}
    return loglik.fit("classifier", "digits", max_steps=100, progress=False, **options).density.eval()


def draw(plt):
    """Draw a digit and the attention weights of each head, as images."""
    image = load("digits").test.x[:1]
    density = trained()
    network = density.features
    with torch.no_grad():
        tokens = network.patches(density.prepare(image)).flatten(2).transpose(1, 2) + network.positions
        block = network.encoder.blocks[0]
        maps = block.attention.maps(block.norm_attention(tokens))[0, :, CENTRE]
    figure, axes = plt.subplots(1, 1 + len(maps), figsize=(5.4, 1.5))
    axes[0].imshow(image[0, 0], cmap="Greys")
    axes[0].set_title("x")
    for number, (axis, head) in enumerate(zip(axes[1:], maps, strict=True), start=1):
        axis.imshow(head.view(PATCHES, PATCHES), cmap="Blues", vmin=0)
        axis.set_title(f"head {number}")
    for axis in axes:
        cell = 2 if axis is axes[0] else 1  # pixels of a patch
        place = ((CENTRE % PATCHES + 0.5) * cell - 0.5, (CENTRE // PATCHES + 0.5) * cell - 0.5)
        axis.plot(*place, "+", color="#d1495b", markersize=9)
        axis.set(xticks=[], yticks=[])
    return figure
