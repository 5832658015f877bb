"""Sinusoidal positions, and their inner products."""

from loglik.networks.positions import sinusoids

CAPTION = {
    "en": "Top: the table PE, 64 positions of 64 features. Bottom: the inner product of two positions depends "
    "on their distance only, so the three curves are one.",
    "zh": "上：64 个位置、每个 64 维的 PE 表。下：两个位置的内积只取决于它们的距离，因此三条曲线重合。",
}


def draw(plt):
    """Draw the table, and inner products against the distance."""
    table = sinusoids(64, 64)
    figure, axes = plt.subplots(2, 1, figsize=(5, 6))
    axes[0].imshow(table, cmap="RdBu", aspect="auto", vmin=-1, vmax=1)
    axes[0].set(xlabel="feature", ylabel="pos")
    for start, width in ((0, 6), (15, 3.5), (30, 1.5)):
        axes[1].plot(table[start : start + 33] @ table[start], linewidth=width, label=f"pos = {start}")
    axes[1].set(xlabel="distance k", title=r"$PE_{pos}\cdot PE_{pos+k}$")
    axes[1].legend()
    return figure
