"""A hybrid ViT and a ViT of patches alone, trained on digits, and what the hybrid attends to."""

from functools import cache

import torch

import loglik
from loglik.data import load

CAPTION = {
    "en": "Top: cross-entropy on the validation digits over training, with and without the convolution before "
    "the patches. Bottom: a test digit, and the attention of its four patches, averaged over the heads "
    "of the first layer.",
    "zh": "上：训练过程中验证集上的交叉熵，分别为图块前有卷积和没有卷积。下：一个测试数字，以及它的四个图块的注"
    "意力（第一层各头的平均）。",
}
STEPS = 200


@cache
def trained(stem):
    """Return a run of a ViT on digits."""
    return loglik.fit(
        "classifier", "digits", network="vit", stem=stem, depth=2, max_steps=STEPS, validate_every=20, progress=False
    )


def draw(plt):
    """Draw the validation curves, a digit and the attention weights of the hybrid."""
    figure, panels = plt.subplot_mosaic([["curve", "curve"], ["digit", "weights"]], figsize=(5, 5.2))
    axes = [panels[name] for name in ("curve", "digit", "weights")]
    for stem, label in (("none", "patches alone"), ("convolution", "hybrid")):
        rows = [row for row in trained(stem).history if row.get("validation_nats") is not None]
        axes[0].plot([row["step"] for row in rows], [-row["validation_nats"] for row in rows], label=label)
    axes[0].set(xlabel="step", ylabel="cross-entropy, nats", ylim=(0, None))
    axes[0].legend()
    image = load("digits").test.x[:1]
    density = trained("convolution").density.eval()
    network = density.features
    with torch.no_grad():
        tokens = network.patches(network.stem(density.prepare(image))).flatten(2).transpose(1, 2) + network.positions
        block = network.encoder.blocks[0]
        weights = block.attention.maps(block.norm_attention(tokens))[0].mean(0)
    axes[1].imshow(image[0, 0], cmap="Greys")
    axes[1].axhline(3.5, color="#d1495b")
    axes[1].axvline(3.5, color="#d1495b")
    axes[1].set(title="four patches", xticks=[], yticks=[])
    shown = axes[2].imshow(weights, cmap="Blues", vmin=0)
    axes[2].set(title="attention", xlabel="key", ylabel="query", xticks=range(4), yticks=range(4))
    figure.colorbar(shown, ax=axes[2], shrink=0.7)
    return figure
