"""Explicit and denoising score matching of a family of scores: two curves, a constant apart."""

import torch

from loglik.diffusion.schedule import add_noise, alpha, sigma
from loglik.diffusion.score_matching import (
    denoising_score_matching,
    explicit_score_matching,
    score_matching_constant,
)

CAPTION = {
    "en": "Both losses of the scores c · ∇ log p_t(x), for data that are -1 or 1 and three noise levels. Each pair of "
    "curves is a constant apart and has its minimum at c = 1. The minimum of the denoising loss is not 0.",
    "zh": "数据取值为 -1 或 1 时，分数 c · ∇ log p_t(x) 在三个噪声水平下的两种损失。"
    "每一对曲线只相差一个常数，且都在 c = 1 处取最小值；去噪损失的最小值不是 0。",
}


def true_score(x_t, logsnr):
    """Return the score of the mixture ½ N(-α, σ²) + ½ N(α, σ²)."""
    a, s = (f(logsnr).unsqueeze(1) for f in (alpha, sigma))
    return (a * torch.tanh(a * x_t / s**2) - x_t) / s**2


def draw(plt):
    """Draw the two losses over the factor c."""
    factors = torch.linspace(0, 2, 21)
    figure, axes = plt.subplots(1, 3)
    for axis, level in zip(axes, (-2.0, 0.0, 2.0), strict=True):
        x_0 = torch.randint(0, 2, (20_000, 1)) * 2.0 - 1
        epsilon, logsnr = torch.randn_like(x_0), torch.full((len(x_0),), level)
        x_t = add_noise(x_0, epsilon, logsnr)
        explicit, denoising = [], []
        for c in factors.tolist():

            def score(x, lam, c=c):
                return c * true_score(x, lam)

            explicit.append(explicit_score_matching(score, true_score, x_t, logsnr).mean().item())
            denoising.append(denoising_score_matching(score, x_0, epsilon, logsnr).mean().item())
        constant = score_matching_constant(true_score, x_0, epsilon, logsnr).mean().item()
        axis.plot(factors, denoising, color="C1", label="denoising")
        axis.plot(factors, explicit, color="C0", label="explicit")
        axis.plot(
            factors, [value + constant for value in explicit], ":", color="C2", linewidth=3, label="explicit + constant"
        )
        axis.set(title=f"log-SNR {level:g}", xlabel="c", ylim=(0, None))
    axes[0].set_ylabel("loss")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
