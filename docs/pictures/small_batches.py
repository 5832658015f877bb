"""BatchNorm in small batches against one large batch, and LayerNorm."""

import torch

from loglik.data import load
from loglik.networks.norms import batch_norm_formula, layer_norm_formula

CAPTION = {
    "en": "Relative error of the output in batches of B against one batch of all digits: BatchNorm's falls as "
    "1/√B, and LayerNorm's is 0 for every B.",
    "zh": "分成大小为 B 的批次时，输出相对于整批计算的误差：BatchNorm 的误差按 1/√B 下降，LayerNorm 的误差对任"
    "何 B 都是 0。",
}
SIZES = (2, 4, 8, 16, 32, 64, 128, 256)


def draw(plt):
    """Draw the relative error against the size of the batch."""
    x = load("digits").train.x[:1024].flatten(1).double()
    x = x[:, x.std(0) > 1]
    h = (x - x.mean(0)) / x.std(0)
    scale, shift = torch.ones(h.shape[1]).to(h), torch.zeros(h.shape[1]).to(h)
    figure, axis = plt.subplots(figsize=(5, 3.2))
    for name, norm in (("BatchNorm", batch_norm_formula), ("LayerNorm", layer_norm_formula)):
        whole = norm(h, scale, shift)
        errors = []
        for size in SIZES:
            parts = torch.cat([norm(part, scale, shift) for part in h.split(size)])
            errors.append(float((parts - whole).norm() / whole.norm()))
        axis.plot(SIZES, errors, "o-", label=name)
    axis.plot(SIZES, [SIZES[0] ** 0.5 / size**0.5 for size in SIZES], ":", color="gray", label="1/√B, scaled")
    axis.set(xlabel="B", ylabel="relative error", xscale="log")
    axis.set_xticks(SIZES, [str(size) for size in SIZES])
    axis.minorticks_off()
    axis.legend()
    return figure
