"""The bound in T steps rises to the log-density as T grows."""

import math

import torch
from torch import nn

from loglik.diffusion import VLB, Diffusion, LinearLogSNR
from loglik.diffusion.schedule import alpha, sigma

CAPTION = {
    "en": "The ELBO of a chain of T steps with the exact denoiser, on 2,000 draws of ½ N(-1, 0.2²) + ½ N(1, 0.2²): it "
    "rises to the mean log-density, and its distance comes to halve as T doubles.",
    "zh": "使用精确去噪器的 T 步链的 ELBO，在 ½ N(-1, 0.2²) + ½ N(1, 0.2²) 的 2000 个样本上计算："
    "它上升到平均对数密度；T 足够大时，T 加倍则差距减半。",
}

SCALE = 0.2


class Exact(nn.Module):
    """The expected data given x_t of the mixture of two Gaussians."""

    def forward(self, x_t, logsnr, context=None):
        """Return E[x_0 | x_t]."""
        a, s = (f(logsnr).unsqueeze(1) for f in (alpha, sigma))
        variance = (a * SCALE) ** 2 + s**2
        which = torch.tanh(a * x_t / variance)  # the expected sign
        return which * (1 - a**2 * SCALE**2 / variance) + a * SCALE**2 * x_t / variance


@torch.no_grad()
def draw(plt):
    """Draw the bound over T, and its distance from the mean log-density."""
    x = torch.randint(0, 2, (2000, 1)) * 2.0 - 1 + SCALE * torch.randn(2000, 1)
    each = [torch.exp(-0.5 * ((x - m) / SCALE) ** 2) for m in (-1, 1)]
    truth = (torch.log(0.5 * (each[0] + each[1])) - math.log(SCALE * math.sqrt(2 * math.pi))).mean().item()
    model = Diffusion(Exact(), (1,), schedule=LinearLogSNR(9.0, -9.0))
    counts, bounds = [8, 16, 32, 64, 128, 256, 512], []
    for steps in counts:
        model.likelihood = VLB(steps=steps, whole=True)
        bounds.append(model.log_prob(x, samples=2).mean().item())
    figure, (left, right) = plt.subplots(1, 2)
    left.semilogx(counts, bounds, "o-", color="C0", base=2, label="bound")
    left.axhline(truth, color="C1", linestyle="--", label="mean of log p(x)")
    left.set(xlabel="T", ylabel="nats")
    left.legend(loc="lower right")
    right.loglog(counts, [truth - bound for bound in bounds], "o-", color="C0", base=2, label="log p(x) - bound")
    right.loglog(
        counts, [(truth - bounds[-1]) * counts[-1] / n for n in counts], ":", color="C2", base=2, label="1 / T"
    )
    right.set(xlabel="T", ylabel="nats")
    right.legend()
    return figure
