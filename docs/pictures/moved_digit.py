"""A convolution of a moved digit, and the moved convolution."""

import torch

from loglik.data import load
from loglik.networks import ResNet

CAPTION = {
    "en": "A digit x, the translation g by one pixel to the right, and one channel of the convolution f. The "
    "difference in the last panel is 0 except at the border, where the padding of f shows.",
    "zh": "数字 x、向右平移一个像素的 g，以及卷积 f 的一个通道。最后一图的差除边界外为 0，边界处是 f 的填充造成的。",
}


def draw(plt):
    """Draw x, f(g(x)), g(f(x)) and the difference of the last two."""

    def move(image):
        return image.roll(1, -1)

    x = load("digits").test.x[3:4].float() / 16
    convolution = ResNet(1, widths=(8,), blocks=(1,)).stem[0]
    with torch.no_grad():
        first, last = convolution(move(x))[0, 0], move(convolution(x))[0, 0]
    figure, axes = plt.subplots(1, 4, figsize=(5.2, 1.7))
    largest = float(torch.stack([first, last]).abs().max())
    axes[0].imshow(x[0, 0], cmap="Greys")
    for axis, image in zip(axes[1:], (first, last, first - last), strict=True):
        axis.imshow(image, cmap="RdBu", vmin=-largest, vmax=largest)
    for axis, title in zip(axes, ("x", "f(g(x))", "g(f(x))", "difference"), strict=True):
        axis.set(title=title, xticks=[], yticks=[])
    return figure
