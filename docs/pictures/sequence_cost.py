"""What attention, a convolution and a recurrence cost against the length of the sequence."""

from loglik.inspection import sequence_cost

CAPTION = {
    "en": "FLOPs, and bytes saved for the backward pass, against the length n at width 32. The numbers in the "
    "legend are the fitted exponents p of n^p: attention by its formula tends to 2, the others to 1.",
    "zh": "宽度为 32 时，浮点运算次数与反向传播所保存的字节数随长度 n 的变化。图例中的数是拟合 n^p 的指数 p：按"
    "公式计算的注意力趋于 2，其余为 1。",
}
LENGTHS = (256, 512, 1024, 2048)


def draw(plt):
    """Draw FLOPs and saved bytes on logarithmic axes."""
    figure, axes = plt.subplots(2, 1, figsize=(5, 6.4))
    for cost in sequence_cost(LENGTHS, width=32, repeats=1):
        axes[0].plot(cost.lengths, cost.flops, "o-", markersize=4, label=f"{cost.kind}: {cost.flops_law.p:.2f}")
        saved = [size / 2**20 for size in cost.saved_bytes]
        axes[1].plot(cost.lengths, saved, "o-", markersize=4, label=f"{cost.kind}: {cost.saved_law.p:.2f}")
    for axis, title in zip(axes, ("FLOPs", "MiB saved"), strict=True):
        axis.set(title=title, xlabel="n", xscale="log", yscale="log")
        axis.set_xticks(LENGTHS, [str(n) for n in LENGTHS])
        axis.minorticks_off()
        axis.legend(fontsize=10)
    return figure
