"""Attention weights: with and without the division by the root of the width."""

import torch

from loglik.networks.attention import attention_weights

CAPTION = {
    "en": "A row of attention weights for heads of 4, 64 and 1024 features: with the division by √d the "
    "weights stay spread.",
    "zh": "宽度为 4、64、1024 的头的一行注意力权重：除以 √d 后，权重保持分散。",
}


def draw(plt):
    """Draw sorted weights of one query against 32 keys."""
    figure, axes = plt.subplots(1, 2, sharey=True)
    for width in (4, 64, 1024):
        q, k = torch.randn(1, 1, 1, width), torch.randn(1, 1, 32, width)
        spread = attention_weights(q, k).flatten().sort(descending=True).values
        sharp = attention_weights(q * width**0.5, k).flatten().sort(descending=True).values
        axes[0].plot(spread, label=f"d = {width}")
        axes[1].plot(sharp)
    axes[0].set(title="scores / √d", xlabel="key, sorted", ylabel="weight")
    axes[1].set(title="scores", xlabel="key, sorted")
    axes[0].legend()
    return figure
